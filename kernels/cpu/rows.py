"""Loops over neighbouring numbers, each counting from 0, so that it becomes vector code.

An index that is a sum, ``a[i + k]``, might be negative for all that Numba knows, which in Python
means counting from the end.  That check in every step costs the vector instructions; a slice has it
once.
"""
import numpy as np

from tinydiff.kernels.cpu.jit import allocates, inlined

LINE = 64                               # bytes in a line of the cache


@allocates
def room(n):
    """Return n float32 numbers, of any value, that begin with a line of the cache.

    A vector of 16 that does not is in two lines, and each load or store of it costs two.
    """
    numbers = np.empty(n + LINE // 4, np.float32)
    start = -numbers.ctypes.data % LINE // 4
    return numbers[start:start + n]


@inlined
def copy(target, source, n):
    """Set the first n numbers of `target` to those of `source`."""
    for i in range(n):
        target[i] = source[i]


@inlined
def copy_every(target, source, stride, n):
    """Set the first n numbers of `target` to every `stride`-th of `source`."""
    if stride == 2:                                       # told apart for the compiler
        for i in range(n):
            target[i] = source[2 * i]
    else:
        for i in range(n):
            target[i] = source[i * stride]


@inlined
def add(target, source, n):
    """Add the first n numbers of `source` to those of `target`."""
    for i in range(n):
        target[i] += source[i]


@inlined
def copy_plus(target, source, n, constant):
    """Set the first n numbers of `target` to those of `source` plus a constant."""
    for i in range(n):
        target[i] = source[i] + constant


@inlined
def clear(target, n):
    """Set the first n numbers of `target` to zero."""
    for i in range(n):
        target[i] = 0
