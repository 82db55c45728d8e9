"""Vectors scaled to length one, and the derivative of that."""


def unit_forward(x):
    """Divide each vector, the last axis of `x`, by its length.

    Parameters
    ----------
    x : (..., D) ndarray
        No vector of zeros among them.

    Returns
    -------
    y : (..., D) ndarray
    cache : tuple
        ``(y, 1 / the lengths)``, for `unit_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> unit_forward(np.array([3.0, 4.0]))[0]
    array([0.6, 0.8])
    """
    inv_length = (x * x).sum(axis=-1, keepdims=True) ** -0.5          # (..., 1)
    y = x * inv_length
    return y, (y, inv_length)


def unit_backward(dy, cache):
    """Pull the gradient `dy` back through `unit_forward`.

    Notes
    -----
    `x` acts directly and through its length; what is left of `dy` is at right angles to y::

        dx = (dy  -  y sum(dy * y)) / length
             direct  via the length
    """
    y, inv_length = cache
    via_length = y * (dy * y).sum(axis=-1, keepdims=True)
    return (dy - via_length) * inv_length
