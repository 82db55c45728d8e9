"""The exchange of two axes by blocks of LANES x LANES: twins of the pair in tinydiff/ops.

One of the two arrays is read or written across its rows, a cache line for each number.  In blocks
both go line by line, and what is between them stays in registers.
"""
import numpy as np
from numba import prange

from tinydiff.backends.table import Saved
from tinydiff.kernels.cpu.arrays import all_float32
from tinydiff.kernels.cpu.jit import parallel, serial
from tinydiff.kernels.cpu.simd import LANES
from tinydiff.kernels.cpu.vectors import transpose

ROWS = 4 * LANES                        # of a matrix, that a task takes


def transpose_forward(x):
    """Exchange the last two axes, see `tinydiff.ops.transpose_forward`."""
    if not all_float32(x) or x.ndim != 3 or not x.size:
        return NotImplemented
    return _swapped(x), Saved(transpose_backward, ())


def transpose_backward(dy, arrays):
    """Exchange them again."""
    return _swapped(dy)


def _swapped(x):
    B, M, N = x.shape
    y = np.empty((B, N, M), np.float32)
    _swap(np.ascontiguousarray(x, np.float32).reshape(-1), y.reshape(-1), B, M, N)
    return y


@parallel
def _swap(x, y, B, M, N):
    blocks = (M + ROWS - 1) // ROWS
    for task in prange(B * blocks):
        b, block = divmod(np.int64(task), blocks)
        _swap_rows(x, y, b * M * N, M, N, block * ROWS)


@serial
def _swap_rows(x, y, at, M, N, first):
    """Write rows `first` to ``first + ROWS - 1`` of the matrix at ``x[at:]`` as columns of y."""
    last = min(first + ROWS, M)
    for n in range(0, N, LANES):
        for m in range(first, last, LANES):
            if m + LANES <= last and n + LANES <= N:
                transpose(y, at + n * M + m, M, x, at + m * N + n, N)
            else:
                for i in range(m, min(m + LANES, last)):
                    for j in range(n, min(n + LANES, N)):
                        y[at + j * M + i] = x[at + i * N + j]
