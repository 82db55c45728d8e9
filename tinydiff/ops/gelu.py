"""The Gaussian error linear unit: exact, its tanh approximation, and as a gate.

D. Hendrycks and K. Gimpel, "Gaussian Error Linear Units", 2016, arXiv:1606.08415, Sec. 2.
Each forward takes ``x : (...) ndarray`` and returns ``(y, cache)``.
"""
from math import pi, sqrt

import numpy as np

from tinydiff.backends.table import replaceable


def gelu_forward(x):
    """Exact GELU: ``y = x Phi(x)``, Phi the standard normal distribution function.

    The cache is ``(x, Phi(x))``.

    Examples
    --------
    >>> gelu_forward(np.array([-1.0, 0.0, 1.0]))[0].round(4)
    array([-0.1587,  0.    ,  0.8413])
    """
    cdf = _normal_cdf(x)
    return x * cdf, (x, cdf)


def gelu_backward(dy, cache):
    """Pull `dy` back through `gelu_forward`.

    Notes
    -----
    The derivative of Phi is the normal density phi::

        dy/dx = Phi(x) + x phi(x),    phi(x) = exp(-x^2 / 2) / sqrt(2 pi)
    """
    x, cdf = cache
    density = np.exp(-0.5 * x * x)
    density *= sqrt(0.5 / pi)
    return dy * (cdf + x * density)


def _normal_cdf(x):
    """Give Phi(x), to the precision of its dtype.

    Notes
    -----
    ``Phi(x) = (1 + erf(x / sqrt(2))) / 2``.  SciPy's erf works in double precision inside, at 30
    times the cost of a float32 `exp`: it would take longer than the matrix products around it.  So
    float32 uses an approximation [1]_ whose error in Phi, 7.5e-8, is that of float32 itself::

        1 - erf(z) = (a1 t + a2 t^2 + a3 t^3 + a4 t^4 + a5 t^5) exp(-z^2),   z = |x| / sqrt(2)
                 t = 1 / (1 + 0.3275911 z)

    References
    ----------
    .. [1] M. Abramowitz and I. A. Stegun, "Handbook of Mathematical Functions", 1964, Eq. 7.1.26.
    """
    if x.dtype != np.float32:
        from scipy.special import erf  # here, not above: SciPy is slow to import

        return 0.5 * (1.0 + erf(x * sqrt(0.5)))

    t = np.abs(x)
    t *= 0.3275911 * sqrt(0.5)
    t += 1.0
    t = np.divide(1.0, t, out=t)
    half_tail = 1.061405429 * t                                       # Horner, from a5 down to a1
    for a in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        half_tail += a
        half_tail *= t
    half_tail *= 0.5 * np.exp(-0.5 * x * x)                           # (1 - erf(z)) / 2
    half_erf = np.subtract(0.5, half_tail, out=half_tail)
    return np.copysign(half_erf, x) + 0.5                             # erf is odd


@replaceable
def gelu_tanh_forward(x):
    """Tanh form of the GELU: ``y = x (1 + tanh(u)) / 2``, ``u = sqrt(2 / pi) (x + 0.044715 x^3)``.

    The cache is ``(x, tanh(u))``.
    """
    tanh_u = np.tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x))
    return 0.5 * x * (1.0 + tanh_u), (x, tanh_u)


@replaceable
def gelu_tanh_backward(dy, cache):
    """Pull `dy` back through `gelu_tanh_forward`.

    Notes
    -----
    ::

        dy/dx = (1 + tanh u) / 2  +  x / 2 (1 - tanh^2 u) du/dx
        du/dx = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
    """
    x, tanh_u = cache
    du_dx = sqrt(2 / pi) * (1.0 + 3 * 0.044715 * x * x)
    return dy * (0.5 * (1.0 + tanh_u) + 0.5 * x * (1.0 - tanh_u * tanh_u) * du_dx)


@replaceable
def geglu_forward(x):
    """Gate one half of the features with the GELU of the other.

    Parameters
    ----------
    x : (..., 2 D) ndarray
        ``[hidden, gate]`` along the last axis: the order of the field's files.

    Returns
    -------
    y : (..., D) ndarray
        ``hidden * gelu(gate)``.
    cache : tuple
        For `geglu_backward`.

    Raises
    ------
    ValueError
        If the last axis has odd length.

    References
    ----------
    .. [1] N. Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202, Eq. 5.
    """
    if x.shape[-1] % 2:
        raise ValueError(f"GEGLU halves its last axis, whose length {x.shape[-1]} is odd")
    D = x.shape[-1] // 2
    hidden, gate = x[..., :D], x[..., D:]
    opened, gelu_cache = gelu_forward(gate)
    return hidden * opened, (hidden, opened, gelu_cache)


@replaceable
def geglu_backward(dy, cache):
    """Pull `dy` back through `geglu_forward`: each factor's gradient is `dy` times the other."""
    hidden, opened, gelu_cache = cache
    dhidden = dy * opened
    dgate = gelu_backward(dy * hidden, gelu_cache)
    return np.concatenate([dhidden, dgate], axis=-1)
