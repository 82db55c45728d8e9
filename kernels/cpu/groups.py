"""Sums that were made in groups, fixed by the sizes alone, added up in order."""
import numpy as np
from numba import prange

from tinydiff.kernels.cpu.jit import parallel, serial
from tinydiff.kernels.cpu.rows import add, copy

PIECE = 1 << 12                         # numbers that a task adds up


def add_up(parts, total=None):
    """Return the sum over the first axis of a contiguous float32 array, as `parts.sum(axis=0)`.

    Where there is something to add, it is written to `total`, if that is given.
    """
    if len(parts) == 1:
        return parts[0]
    total = np.empty(parts.shape[1:], np.float32) if total is None else total
    _add_up(parts.reshape(-1), len(parts), total.reshape(-1))
    return total


@parallel
def _add_up(parts, count, total):
    for task in prange((total.size + PIECE - 1) // PIECE):
        _add_piece(parts, count, total, np.int64(task) * PIECE)


@serial
def _add_piece(parts, count, total, first):
    width = min(PIECE, total.size - first)
    copy(total[first:], parts[first:], width)
    for g in range(1, count):
        add(total[first:], parts[g * total.size + first:], width)
