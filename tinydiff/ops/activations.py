"""Pointwise non-linearities and their derivatives: ReLU, SiLU, quick GELU, mish.

The Gaussian error units, GELU and GEGLU, have a file of their own, `gelu`.
Each forward takes ``x : (...) ndarray`` and returns ``(y, cache)`` with y of the same shape.
"""
import numpy as np

from tinydiff.backends.table import replaceable


def relu_forward(x):
    """Rectified linear unit, ``y = max(x, 0)``; the cache is ``(x > 0,)``."""
    return np.maximum(x, 0.0), (x > 0,)


def relu_backward(dy, cache):
    """Pull `dy` back: ``dx = dy`` where x > 0, else 0 (also at the kink, x = 0)."""
    (positive,) = cache
    return dy * positive


@replaceable
def silu_forward(x):
    """SiLU, also called swish: ``y = x sigmoid(x)``; the cache is ``(sigmoid(x), y)``.

    References
    ----------
    .. [1] P. Ramachandran, B. Zoph and Q. V. Le, "Searching for Activation Functions", 2017,
       arXiv:1710.05941, with beta = 1.

    Examples
    --------
    >>> silu_forward(np.array([-1e4, 0.0, 1e4]))[0]
    array([   -0.,     0., 10000.])
    """
    s = _sigmoid(x)
    y = x * s
    return y, (s, y)


@replaceable
def silu_backward(dy, cache):
    """Pull `dy` back through `silu_forward`.

    Notes
    -----
    With s = sigmoid(x) and ``ds/dx = s (1 - s)``, and since ``x s`` is y::

        dy/dx = s  +  x s (1 - s)  =  s  +  y (1 - s)
    """
    s, y = cache
    dx = 1.0 - s
    dx *= y
    dx += s
    dx *= dy
    return dx


@replaceable
def quick_gelu_forward(x):
    """Sigmoid form of the GELU, ``y = x sigmoid(1.702 x)``; the cache is ``(sigmoid(1.702 x), y)``.

    References
    ----------
    .. [1] D. Hendrycks and K. Gimpel, "Gaussian Error Linear Units", 2016,
       arXiv:1606.08415, Sec. 2.
    """
    s = _sigmoid(1.702 * x)
    y = x * s
    return y, (s, y)


@replaceable
def quick_gelu_backward(dy, cache):
    """Pull `dy` back: as `silu_backward`, ``dy/dx = s + 1.702 y (1 - s)``."""
    s, y = cache
    return dy * (s + 1.702 * y * (1.0 - s))


def mish_forward(x):
    """Mish: ``y = x tanh(softplus(x))`` with ``softplus(x) = log(1 + e^x)``.

    The cache is ``(x, tanh(softplus(x)))``.

    References
    ----------
    .. [1] D. Misra, "Mish: A Self Regularized Non-Monotonic Activation Function", 2019,
       arXiv:1908.08681, Eq. 1.
    """
    gate = np.tanh(np.logaddexp(x, 0.0))
    return x * gate, (x, gate)


def mish_backward(dy, cache):
    """Pull `dy` back through `mish_forward`.

    Notes
    -----
    The derivative of softplus is the sigmoid::

        dy/dx = gate  +  x dgate/dx,    dgate/dx = (1 - gate^2) sigmoid(x)
    """
    x, gate = cache
    dgate_dx = (1.0 - gate * gate) * _sigmoid(x)
    return dy * (gate + x * dgate_dx)


def _sigmoid(x):
    """``1 / (1 + e^-x) = (1 + tanh(x / 2)) / 2``: the second form cannot overflow."""
    s = 0.5 * x
    s = np.tanh(s, out=s)
    s *= 0.5
    s += 0.5
    return s
