"""Nearest-neighbour upsampling, and its derivative.

Downsampling is `conv2d_forward` with a stride.
"""
import numpy as np


def upsample_nearest_forward(x, scale=2, size=None):
    """Repeat every pixel `scale` times in both directions, or as often as `size` asks.

    Parameters
    ----------
    x : (B, C, H, W) ndarray
    scale : int, default 2
    size : (int, int), optional
        (Ho, Wo) in pixels, instead of `scale`: where an odd size was halved on the way
        down, doubling does not lead back to it.

    Returns
    -------
    y : (B, C, Ho, Wo) ndarray
        ``y[b, c, p, q] = x[b, c, p * H // Ho, q * W // Wo]``
    cache : tuple
        For `upsample_nearest_backward`.

    Examples
    --------
    >>> upsample_nearest_forward(np.array([[[[1.0, 2.0]]]]))[0][0, 0]
    array([[1., 1., 2., 2.],
           [1., 1., 2., 2.]])
    >>> upsample_nearest_forward(np.array([[[[1.0, 2.0]]]]), size=(1, 3))[0][0, 0]
    array([[1., 1., 2.]])
    """
    B, C, H, W = x.shape
    Ho, Wo = size or (scale * H, scale * W)
    if (Ho, Wo) != (scale * H, scale * W):
        rows, columns = _repeats(H, Ho, x), _repeats(W, Wo, x)
        return rows @ x @ columns.T, (scale, rows, columns)

    y = np.empty((B, C, H, scale, W, scale), x.dtype, like=x)
    for j in range(scale):
        y[:, :, :, 0, :, j] = x                                       # stretch one row, then
    for i in range(1, scale):
        y[:, :, :, i] = y[:, :, :, 0]                                 # copy it whole
    return y.reshape(B, C, Ho, Wo), (scale, None, None)


def upsample_nearest_backward(dy, cache):
    """Pull `dy` back: each pixel collects the gradients of its copies."""
    scale, rows, columns = cache
    if rows is not None:
        return rows.T @ dy @ columns
    dx = dy[:, :, ::scale, ::scale].copy()                            # (B, C, H, W)
    for i, j in np.ndindex(scale, scale):
        if (i, j) != (0, 0):
            dx += dy[:, :, i::scale, j::scale]
    return dx


def _repeats(n, n_out, like):
    """Return the (n_out, n) matrix of zeros and ones that repeats the entries of a vector."""
    matrix = np.zeros((n_out, n), like.dtype, like=like)
    for p in range(n_out):
        matrix[p, p * n // n_out] = 1
    return matrix
