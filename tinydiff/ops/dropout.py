"""Dropout, given its random numbers, and its derivative."""


def dropout_forward(x, rate, uniform):
    """Zero a random share of the entries of `x`, and scale up the rest to keep the mean.

    Parameters
    ----------
    x : (...) ndarray
    rate : float
        The probability of zero, ``0 <= rate < 1``.
    uniform : ndarray, the shape of `x`
        Uniform random numbers in [0, 1), drawn by the caller.

    Returns
    -------
    y : ndarray, the shape of `x`
        ``x * mask``, with mask = 1 / (1 - rate) where ``uniform >= rate``, else 0.
    cache : tuple
        ``(mask,)``, for `dropout_backward`.

    Raises
    ------
    ValueError
        If `rate` is out of range.

    References
    ----------
    .. [1] N. Srivastava et al., "Dropout: A Simple Way to Prevent Neural Networks from
       Overfitting", JMLR 15, 2014, Sec. 10 for the scaling during training.

    Examples
    --------
    >>> import numpy as np
    >>> dropout_forward(np.ones(4), 0.5, np.array([0.1, 0.6, 0.4, 0.9]))[0]
    array([0., 2., 0., 2.])
    """
    if not 0 <= rate < 1:
        raise ValueError(f"dropout rate {rate} is not in [0, 1)")
    mask = (uniform >= rate).astype(x.dtype)
    mask *= 1 / (1 - rate)
    return x * mask, (mask,)


def dropout_backward(dy, cache):
    """Pull `dy` back: dropout is linear, the mask is its own transpose."""
    (mask,) = cache
    return dy * mask
