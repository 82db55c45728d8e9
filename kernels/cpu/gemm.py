"""The matrix product, C = A B, blocked for the caches: section 2 of kernels/README.md.

A tile of MR x NR sums waits for no load if the NR numbers of B that each of its steps needs stand
side by side, and all steps of a tile close together.  So B is first copied into that order
("packed"), a block of STEPS steps at a time, which fits the second-level cache.  K. Goto and R. van
de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008, Sec. 4; they pack A as well,
but its numbers are loaded one by one here, so they may stay where they are.

Either factor may be transposed: flat arrays come with a stride for each index.  Each sum runs over
k from 0 upwards, whatever the sizes of A and B and the number of threads.
"""
from functools import lru_cache

import numpy as np
from numba import prange

from tinydiff.kernels.cpu.jit import parallel, serial
from tinydiff.kernels.cpu.rows import add, copy
from tinydiff.kernels.cpu.simd import (
    MR,
    NR,
    STEPS,
    tile_outer,
    tile_plus,
    tile_store,
    tile_zero,
)

BLOCK = 512                             # its rows of A and columns of B, at most
TASKS = 8                               # blocks to share among threads, where there is enough work
SMALL = 1 << 16                         # multiply-adds that are not worth cutting
NO_BIAS = np.empty(0, np.float32)


def multiply(a, a_m, a_k, b, b_k, b_n, bias, c, M, N, K):
    """Set ``c[m, n] = sum_k a[m, k] b[k, n] + bias[n]``, for flat float32 arrays.

    Element (m, k) of A is ``a[m * a_m + k * a_k]``, (k, n) of B is ``b[k * b_k + n * b_n]``; c is
    contiguous.  An empty `bias` counts as zeros.
    """
    _multiply(a, a_m, a_k, b, b_k, b_n, bias, c, M, N, K, *_blocks(M, N, K))


@lru_cache(maxsize=1024)
def _blocks(M, N, K):
    """Return rows and columns of a block: large ones pack less, several share the threads."""
    rows, columns = min(BLOCK, _up(M, MR)), min(BLOCK, _up(N, NR))
    while -(-M // rows) * -(-N // columns) < TASKS and rows * columns * K > SMALL:
        if columns >= rows and columns > NR:
            columns = _up(columns // 2, NR)
        elif rows > MR:
            rows = _up(rows // 2, MR)
        else:
            break
    return rows, columns


def _up(size, unit):
    return -(-size // unit) * unit


@parallel
def _multiply(a, a_m, a_k, b, b_k, b_n, bias, c, M, N, K, rows, columns):
    across = (N + columns - 1) // columns
    for task in prange((M + rows - 1) // rows * across):
        i, j = np.int64(task) // across * rows, np.int64(task) % across * columns
        _multiply_block(a, a_m, a_k, b, b_k, b_n, bias, c, M, N, K, i, j,
                        min(rows, M - i), min(columns, N - j))


@serial
def _multiply_block(a, a_m, a_k, b, b_k, b_n, bias, c, M, N, K, i, j, rows, columns):
    """Compute c[i : i + rows, j : j + columns]."""
    panels = (columns + NR - 1) // NR
    packed = np.empty(panels * NR * min(K, STEPS), np.float32)
    whole = (rows + MR - 1) // MR * MR
    block = np.empty((whole if a_k != 1 else MR) * min(K, STEPS), np.float32)
    edge = np.empty(MR * NR, np.float32)
    for k in range(0, K, STEPS):
        steps = min(STEPS, K - k)
        for q in range(panels):
            _pack(b, k * b_k + (j + q * NR) * b_n, b_n, b_k, packed, q * NR * steps, NR,
                  min(NR, N - j - q * NR), steps)
        if a_k != 1:
            _pack_transposed(a, i * a_m + k * a_k, a_m, a_k, block, rows, steps)
        for m in range(i, i + rows, MR):
            if a_k != 1:
                source, at, stride, step = block, (m - i) * steps, 1, MR
            elif m + MR <= M:
                source, at, stride, step = a, m * a_m + k, a_m, 1
            else:                                                     # no whole panel is left
                _pack(a, m * a_m + k, a_m, 1, block, 0, MR, M - m, steps)
                source, at, stride, step = block, 0, 1, MR
            for q in range(panels):
                _multiply_panel(source, at, stride, step, packed, q * NR * steps, c,
                                m, j + q * NR, M, N, steps, k > 0, edge)
    if bias.size > 0:
        for m in range(i, i + rows):
            add(c[m * N + j:], bias[j:], columns)


@serial
def _pack(source, start, stride, step, packed, i, width, valid, steps):
    """Copy `valid` rows of a factor, `stride` apart, to ``packed[i:]`` as [step][width]."""
    if valid < width:
        packed[i:i + width * steps] = np.float32(0)
    if stride == 1:
        for k in range(steps):
            copy(packed[i + k * width:], source[start + k * step:], valid)
    else:
        for r in range(valid):
            row, column = source[start + r * stride:], packed[i + r:]
            for k in range(steps):
                column[k * width] = row[k * step]


@serial
def _pack_transposed(a, start, stride, step, block, rows, steps):
    """Copy rows of A whose steps are not neighbours, to [panel][step][row of MR]."""
    whole = rows // MR * MR
    if whole < rows:
        block[whole * steps:] = np.float32(0)
    for k in range(steps):
        for m in range(0, whole, MR):
            to, at = block[m * steps + k * MR:], a[start + k * step + m * stride:]
            if stride == 1:
                for r in range(MR):
                    to[r] = at[r]
            else:
                for r in range(MR):
                    to[r] = at[r * stride]
        for m in range(whole, rows):
            block[whole * steps + k * MR + m - whole] = a[start + k * step + m * stride]


@serial
def _multiply_panel(a, at, stride, step, packed, b, c, row, column, M, N, steps, go_on, edge):
    """Multiply MR rows of A with a panel of B into c at (row, column), adding to it if `go_on`."""
    rows, columns = min(MR, M - row), min(NR, N - column)
    out, place, pitch = c, row * N + column, N
    inside = rows == MR and columns == NR
    if not inside:                                                    # by way of a whole tile
        out, place, pitch = edge, 0, NR
        if go_on:
            _copy(c, row * N + column, N, edge, 0, NR, rows, columns)
    tile = tile_zero()
    if stride == 1:                                                   # told apart for the compiler
        for s in range(steps):
            tile = tile_outer(tile, a, at + s * step, 1, packed, b + s * NR)
    else:
        for s in range(steps):
            tile = tile_outer(tile, a, at + s * step, stride, packed, b + s * NR)
    if go_on:
        tile = tile_plus(tile, out, place, pitch)
    tile_store(tile, out, place, pitch)
    if not inside:
        _copy(edge, 0, NR, c, row * N + column, N, rows, columns)


@serial
def _copy(source, i, i_stride, target, j, j_stride, rows, columns):
    for m in range(rows):
        copy(target[j + m * j_stride:], source[i + m * i_stride:], columns)
