"""Concatenation of two arrays, as in a U-Net's skip connections, and its derivative."""
import numpy as np


def concat_forward(a, b, axis=1):
    """Join `a` and `b` along `axis`, by default the channels.

    Returns
    -------
    y : ndarray
    cache : tuple
        ``(length of a along axis, axis)``, for `concat_backward`.
    """
    return np.concatenate([a, b], axis=axis), (a.shape[axis], axis)


def concat_backward(dy, cache):
    """Cut `dy` where the two parts met.

    Returns
    -------
    da, db : ndarray
        Views of `dy`.
    """
    length, axis = cache
    da, db = np.split(dy, [length], axis=axis)
    return da, db
