"""Numbers that two programs agree on without exchanging them: cheap to make, keyed by a name."""
import zlib
from functools import cache
from math import prod

import numpy as np

STOCK = 999_983                         # a prime: no row of a matrix repeats the row above it


@cache
def _stock():
    """Make the numbers that all others are taken from: uniform, mean 0, variance 1.

    The k-th is SplitMix64's hash of k, in integer arithmetic: the same under every NumPy.
    G. Steele et al., "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    z = np.arange(1, STOCK + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    unit = (z >> np.uint64(40)).astype(np.float32) / np.float32(2**24)          # [0, 1)
    return (unit - np.float32(0.5)) * np.float32(12**0.5)


def values(name, shape):
    """Return float32 numbers of mean 0 and variance 1.

    Parameters
    ----------
    name : str
        Where in the stock to begin.
    shape : sequence of int

    Returns
    -------
    ndarray

    Examples
    --------
    >>> np.array_equal(values("x", (3, 5)).ravel(), values("x", (15,)))
    True
    >>> bool((values("x", (3, 5)) == values("y", (3, 5))).any())
    False
    """
    stock = _stock()
    out = np.empty(prod(shape), np.float32)
    begin, done = zlib.crc32(name.encode()) % STOCK, 0
    while done < out.size:
        part = stock[begin:begin + out.size - done]
        out[done:done + part.size] = part
        begin, done = 0, done + part.size
    return out.reshape(shape)


def weight(name, shape):
    """Return a tensor of a network that keeps the size of what passes through it.

    Parameters
    ----------
    name : str
        The tensor's; a bias ends in "bias".
    shape : sequence of int
        (out, in, ...), or one axis: a bias, or the scale of a normalisation.

    Returns
    -------
    ndarray
    """
    x = values(name, shape)
    if name.endswith("bias"):
        x *= np.float32(0.1)
    elif len(shape) == 1:
        x *= np.float32(0.1)
        x += np.float32(1)
    else:
        x *= np.float32(prod(shape[1:]) ** -0.5)
    return x
