"""The matrix product, C = A B, blocked for the caches: section 2 of kernels/README.md.

A tile of sums waits for no load if the numbers that its steps need lie close together.  A row of A
is such, and a few columns of B; of a wide or transposed B, or a transposed A, each block of STEPS
steps is first copied into the order in which tiles read it ("packed").  K. Goto and R. van de
Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008, Sec. 4; they pack all of A as
well, but its numbers are loaded one by one here, so its rows may stay where they are.

Either factor may be transposed: flat arrays come with a stride for each index.  And there may be
many products at once, such as one for each picture: side by side, or all added up, as the gradient
of a weight that all of them share.
"""
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import config, prange

from tinydiff.kernels.cpu.groups import add_up
from tinydiff.kernels.cpu.jit import allocates, inlined, parallel, serial
from tinydiff.kernels.cpu.rows import copy, room
from tinydiff.kernels.cpu.simd import (
    LANES,
    MR,
    NR,
    STEPS,
    WR,
    narrow_zero,
    tile_ask,
    tile_outer,
    tile_plus,
    tile_store,
    tile_zero,
    wide_zero,
)
from tinydiff.kernels.cpu.vectors import move, transpose, vector_load, vector_store

HEIGHT = max(LANES, MR)                 # rows of A that are packed side by side
ROWS, COLUMNS = 256, 1024               # a task's rows of A and columns of B, at most
TASKS = max(4, 2 * config.NUMBA_NUM_THREADS)        # blocks to share, where there is enough work
GROUPS = 8                              # of sums, and with them the bits: whatever the threads
SMALL = 1 << 16                         # multiply-adds that are not worth cutting
PARTIAL = 1 << 20                       # numbers that all groups' sums may take
NO_BIAS = np.empty(0, np.float32)


class Sizes(NamedTuple):
    """Numbers of the products; element (m, k) of A number g is ``a[g a_next + m a_m + k a_k]``."""

    M: int
    N: int
    K: int
    count: int
    a_next: int
    a_m: int
    a_k: int
    b_next: int
    b_k: int
    b_n: int
    by_row: bool            # bias[m], not bias[n]
    added: bool             # up: a group makes one sum; else each product has its own place in c
    groups: int             # of neighbouring products (or blocks of their steps)
    rows: int               # of a block: what one task computes, for one group
    columns: int


def multiply(a, a_m, a_k, b, b_k, b_n, bias, c, M, N, K, *, count=1, a_next=0, b_next=0,
             by_row=False):
    """Set ``c[m, n] = sum_k a[m, k] b[k, n] + bias[n]``, for flat float32 arrays.

    Element (m, k) of A is ``a[m * a_m + k * a_k]``, (k, n) of B is ``b[k * b_k + n * b_n]``; c is
    contiguous.  An empty `bias` counts as zeros; `by_row`, it is ``bias[m]``.  Each sum runs over k
    from 0 upwards, whatever the other sizes and the number of threads.

    With `count` products, their factors are `a_next` and `b_next` apart and the results follow each
    other.
    """
    groups, rows, columns = _cut(M, N, K, count, False)
    _multiply(a, b, bias, c, NO_BIAS, Sizes(M, N, K, count, a_next, a_m, a_k, b_next, b_k, b_n,
                                            by_row, False, groups, rows, columns))


def add_products(a, a_m, a_k, b, b_k, b_n, M, N, K, *, count=1, a_next=0, b_next=0, out=None):
    """Return ``c[m, n] = sum_g sum_k a[g, m, k] b[g, k, n]`` and ``sum_g sum_k a[g, m, k]``.

    The arguments are those of `multiply`; c is `out`, if that is given.  The sums are cut in groups
    that depend on the sizes alone, and these are added in order.

    Returns
    -------
    c : (M, N) ndarray
    sums : (M,) ndarray
    """
    groups, rows, columns = _cut(M, N, K, count, True)
    alone = out is not None and groups == 1
    c = out[None] if alone else np.empty((groups, M, N), np.float32)
    sums = np.zeros((groups, M), np.float32)
    _multiply(a, b, NO_BIAS, c.reshape(-1), sums.reshape(-1),
              Sizes(M, N, K, count, a_next, a_m, a_k, b_next, b_k, b_n, False, True, groups, rows,
                    columns))
    return add_up(c, out), sums.sum(axis=0)


@lru_cache(maxsize=1024)
def _cut(M, N, K, count, added):
    """Return groups, rows and columns of a task: large ones pack less, many share the threads.

    Only the number of groups has a say in the order of sums, and it follows from the sizes.
    """
    if added:
        groups = min(GROUPS, count * -(-K // STEPS), max(1, PARTIAL // (M * N)))
    else:
        groups = min(TASKS, count)
    work = K * count // groups
    down, across = -(-M // ROWS), -(-N // COLUMNS)                    # blocks of C
    while True:
        rows, columns = _up(-(-M // down), HEIGHT), _up(-(-N // across), WR)
        tasks = groups * down * across
        uneven = tasks < 2 * TASKS and tasks % 2                      # to be shared by two
        enough = tasks >= TASKS and not uneven
        if enough or rows * columns * work <= SMALL or (rows, columns) == (HEIGHT, WR):
            return groups, rows, columns
        if rows > columns or columns == WR:
            down *= 2
        else:
            across *= 2


def _up(size, unit):
    return -(-size // unit) * unit


@parallel
def _multiply(a, b, bias, c, sums, q):
    across = (q.N + q.columns - 1) // q.columns
    blocks = (q.M + q.rows - 1) // q.rows * across
    for task in prange(q.groups * blocks):
        group, block = divmod(np.int64(task), blocks)
        _multiply_block(a, b, bias, c, sums, q, group, block // across * q.rows,
                        block % across * q.columns)


@allocates
def _multiply_block(a, b, bias, c, sums, q, group, i, j):
    """Compute ``c[i : i + rows, j : j + columns]`` of one group."""
    rows, columns = min(q.rows, q.M - i), min(q.columns, q.N - j)
    pieces = (q.K + STEPS - 1) // STEPS                               # of one product
    if q.added:
        first, last = _share(q.count * pieces, group, q.groups)
    else:
        first, last = _share(q.count, group, q.groups)
        first, last = first * pieces, last * pieces
    most = min(q.K, STEPS)
    whole = rows // MR * MR if q.a_k == 1 else 0                      # rows of A read in place
    strips = room((rows - whole + HEIGHT) * most)                     # the others
    panel, edge = room(WR * most), room(MR * WR)
    shift = np.zeros((rows + MR) * WR if q.by_row else columns + WR, np.float32)
    _spread(bias, q.by_row, i, rows, j, columns, shift)
    for piece in range(first, last):
        g, k = piece // pieces, piece % pieces * STEPS
        steps = min(STEPS, q.K - k)
        a_at = g * q.a_next + k * q.a_k + i * q.a_m
        _pack_strips(a, a_at + whole * q.a_m, q.a_m, q.a_k, strips, rows - whole, steps)
        _multiply_piece(a, a_at, b, g * q.b_next + k * q.b_k + j * q.b_n, c,
                        ((group if q.added else g) * q.M + i) * q.N + j, q, rows, columns, steps,
                        whole, strips, panel, edge, piece > first if q.added else k > 0,
                        bias.size > 0 and k + steps == q.K, shift)
        if j == 0 and sums.size > 0:
            _add_rows(a, a_at, q.a_m, whole, strips, rows, steps, sums[group * q.M + i:], edge)


@serial
def _spread(bias, by_row, i, rows, j, columns, shift):
    """Write the bias in rows as wide as a tile: one for each row of C, or one after the other."""
    if bias.size > 0 and by_row:
        for m in range(rows):
            shift[m * WR:(m + 1) * WR] = bias[i + m]
    elif bias.size > 0:
        copy(shift, bias[j:], columns)


@serial
def _multiply_piece(a, a_at, b, b_at, c, c_at, q, rows, columns, steps, whole, strips, panel, edge,
                    go_on, shifts, shift):
    """Multiply a block of A, `steps` wide, with a block of B; they begin at a_at, b_at, c_at."""
    for n in range(0, columns, WR):
        width = min(WR, columns - n)
        pitch = (width + LANES - 1) // LANES * LANES
        _pack(b, b_at + n * q.b_n, q.b_n, q.b_k, panel, 0, pitch, width, steps)
        for m in range(0, rows, MR):
            if m < whole:
                source, at, stride = a, a_at + m * q.a_m, q.a_m
            else:
                r = m - whole
                source, at, stride = strips, r // HEIGHT * HEIGHT * steps + r % HEIGHT, 1
            _multiply_tile(source, at, stride, panel, pitch, steps, c, c_at + m * q.N + n, q.N,
                           min(MR, rows - m), width, go_on, shifts, shift,
                           m * WR if q.by_row else n, WR if q.by_row else 0, edge)


@serial
def _share(total, nth, parts):
    """Return the first of a part's things, and the first after it."""
    return total * nth // parts, total * (nth + 1) // parts


@serial
def _pack_strips(a, start, stride, step, strips, rows, steps):
    """Copy rows of A as [strip][step][HEIGHT], and zeros where the last strip has fewer."""
    whole = rows // HEIGHT * HEIGHT if stride == 1 else 0
    for k in range(steps):                                # along A's memory
        for m in range(0, whole, HEIGHT):
            for lane in range(m, m + HEIGHT, LANES):
                vector_store(vector_load(a, start + lane + k * step), strips,
                             m * steps + k * HEIGHT + lane - m)
    for m in range(whole, rows, HEIGHT):
        _pack(a, start + m * stride, stride, step, strips, m * steps, HEIGHT,
              min(HEIGHT, rows - m), steps)


@serial
def _pack(x, start, stride, step, packed, place, pitch, count, steps):
    """Copy `count` lines of numbers, `stride` apart, as [step][pitch], and zeros beyond them."""
    if count < pitch:
        packed[place:place + pitch * steps] = np.float32(0)
    whole = count // LANES * LANES
    taken = steps if stride == 1 else steps // LANES * LANES if step == 1 else 0
    for n in range(0, whole, LANES):
        if stride == 1:
            for k in range(steps):
                vector_store(vector_load(x, start + n + k * step), packed, place + k * pitch + n)
        else:
            for k in range(0, taken, LANES):
                transpose(packed, place + k * pitch + n, pitch, x, start + n * stride + k, stride)
    for k in range(steps):
        for n in range(whole if k < taken else 0, count):
            packed[place + k * pitch + n] = x[start + n * stride + k * step]


@inlined
def _add_steps(tile, a, at, stride, panel, pitch, steps):
    """Add up the steps of a tile."""
    if stride == 1:                                                   # a strip
        for s in range(steps):
            tile = tile_outer(tile, a, at + s * HEIGHT, 1, panel, s * pitch)
    else:
        for s in range(steps):
            tile = tile_outer(tile, a, at + s, stride, panel, s * pitch)
    return tile


@inlined
def _make_tile(zero, a, at, stride, panel, pitch, steps, out, out_at, out_pitch, go_on, shifts,
               shift, shift_at, shift_pitch):
    """Add up a tile and write it."""
    tile_ask(zero, out, out_at, out_pitch)
    tile = _add_steps(zero, a, at, stride, panel, pitch, steps)
    if go_on:
        tile = tile_plus(tile, out, out_at, out_pitch)
    if shifts:
        tile = tile_plus(tile, shift, shift_at, shift_pitch)
    tile_store(tile, out, out_at, out_pitch)


@inlined
def _multiply_tile(a, at, stride, panel, pitch, steps, c, c_at, N, rows, columns,
                   go_on, shifts, shift, shift_at, shift_pitch, edge):
    """Multiply MR rows of A with up to WR columns of B."""
    out, out_at, out_pitch = c, c_at, N
    inside = rows == MR and columns == pitch
    if not inside:                                                    # by way of a whole tile
        out, out_at, out_pitch = edge, 0, WR
        if go_on:
            for m in range(rows):
                move(edge, m * WR, c, c_at + m * N, columns)
    if pitch == WR:
        _make_tile(wide_zero(), a, at, stride, panel, WR, steps, out, out_at, out_pitch, go_on,
                   shifts, shift, shift_at, shift_pitch)
    elif pitch == NR:
        _make_tile(tile_zero(), a, at, stride, panel, NR, steps, out, out_at, out_pitch, go_on,
                   shifts, shift, shift_at, shift_pitch)
    else:
        _make_tile(narrow_zero(), a, at, stride, panel, LANES, steps, out, out_at, out_pitch,
                   go_on, shifts, shift, shift_at, shift_pitch)
    if not inside:
        for m in range(rows):
            move(c, c_at + m * N, edge, m * WR, columns)


@serial
def _add_rows(a, at, stride, whole, strips, rows, steps, sums, part):
    """Add the sum of each row of A's block to `sums`; beyond the first `whole`, of the strips."""
    for m in range(whole):
        total = np.float32(0)
        for value in a[at + m * stride:][:steps]:
            total += value
        sums[m] += total
    for m in range(whole, rows, HEIGHT):
        for lane in range(0, HEIGHT, LANES):
            first = (m - whole) * steps + lane
            total = vector_load(strips, first)
            for k in range(1, steps):
                total = total + vector_load(strips, first + k * HEIGHT)
            vector_store(total, part, lane)
        for r in range(min(HEIGHT, rows - m)):
            sums[m + r] += part[r]
