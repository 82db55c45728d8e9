"""What a variational autoencoder does with its latents: a bounded log-variance, and a draw.

D. Kingma and M. Welling, "Auto-Encoding Variational Bayes", 2013, arXiv:1312.6114.
"""
import numpy as np


def clamp_forward(x, low, high):
    """Move what lies outside [low, high] to its nearer end.

    Parameters
    ----------
    x : (...) ndarray
    low, high : float

    Returns
    -------
    y : (...) ndarray
    cache : tuple
        ``(inside,)``, 1 where nothing was moved and 0 elsewhere.
    """
    inside = ((x >= low) & (x <= high)).astype(x.dtype)
    return np.clip(x, low, high), (inside,)


def clamp_backward(dy, cache):
    """Pull `dy` back: what stands at an end does not move."""
    (inside,) = cache
    return dy * inside


def reparameterise_forward(mean, logvar, eps):
    """Draw from N(mean, exp(logvar)) by a function that has a derivative.

    Parameters
    ----------
    mean, logvar : (...) ndarray
    eps : (...) ndarray
        Standard normal noise, drawn by the caller.

    Returns
    -------
    z : (...) ndarray
        ``mean + std * eps`` with ``std = exp(logvar / 2)``.
    cache : tuple
        ``(std, eps)``, for `reparameterise_backward`.

    References
    ----------
    .. [1] D. Kingma and M. Welling, 2013, arXiv:1312.6114, Sec. 2.4.

    Examples
    --------
    >>> reparameterise_forward(np.array([5.0, 5.0]), np.array([0.0, np.log(4)]), np.ones(2))[0]
    array([6., 7.])
    """
    std = np.exp(0.5 * logvar)
    return mean + std * eps, (std, eps)


def reparameterise_backward(dz, cache):
    """Pull the gradient `dz` back through `reparameterise_forward`; the noise is a constant.

    Returns
    -------
    dmean, dlogvar : (...) ndarray

    Notes
    -----
    The derivative of ``std = exp(logvar / 2)`` is std / 2::

        dmean   = dz
        dlogvar = dz * eps * std / 2
    """
    std, eps = cache
    return dz, dz * eps * (0.5 * std)
