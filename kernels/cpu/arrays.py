"""Which arrays the kernels take, and in which form."""
import numpy as np

FLOAT32 = np.dtype(np.float32)


def all_float32(*arrays):
    """Say whether all are plain NumPy arrays of float32: anything else is for the definition."""
    return all(type(array) is np.ndarray and array.dtype == FLOAT32 for array in arrays)


def flat(gradient, size):
    """Return `gradient`, of any strides, as one row of `size` float32 numbers.

    Raises
    ------
    ValueError
        If it has not `size` entries: a kernel would read beyond its end.
    """
    return np.ascontiguousarray(gradient, FLOAT32).reshape(size)
