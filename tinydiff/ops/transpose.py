"""Exchange of an array's last two axes, in memory too: from pixels to tokens and back."""
from tinydiff.backends.table import replaceable


@replaceable
def transpose_forward(x):
    """Exchange the last two axes.

    NumPy alone would return another view of `x`.  Here the numbers change places, since all that
    follows reads them one after the other.

    Parameters
    ----------
    x : (B, M, N) ndarray

    Returns
    -------
    y : (B, N, M) ndarray
        ``y[b, n, m] = x[b, m, n]``, contiguous.
    cache : None

    Examples
    --------
    >>> import numpy as np
    >>> transpose_forward(np.array([[[1, 2, 3], [4, 5, 6]]]))[0]
    array([[[1, 4],
            [2, 5],
            [3, 6]]])
    """
    return x.transpose(0, 2, 1).copy(), None


@replaceable
def transpose_backward(dy, cache):
    """Pull `dy` back: each gradient goes where its number came from."""
    return dy.transpose(0, 2, 1).copy()
