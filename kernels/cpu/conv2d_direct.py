"""Convolution on register tiles, with no matrix of columns: section 3 of kernels/README.md.

With stride 1, write the zero-padded picture row after row as one line of numbers, Wq of them a row.
Then what tap (i, j) reads for the output position p = (row) Wq + (column) stands at p + i Wq + j:
for all positions the same shift.  So an output tile, MR channels times NR neighbouring positions,
is ::

    y[o, p : p + NR]  +=  weight[o, c, i, j] * x[c, p + i Wq + j : ... + NR]     for all (c, i, j)

a product of matrices whose right-hand rows are read where they already stand.  The positions beyond
a row's end are computed too, and thrown away: 2 in 34 of a 32-pixel row.

Stride s: the picture is split into s * s phases, every s-th row and column, and tap (i, j) reads
phase (i mod s, j mod s), shifted by (i // s, j // s).  The gradient in x turns that round: each
phase of dx is a stride-1 sum over dy with the taps that reach it.  Both are `correlate` below, with
different plans.
"""
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import prange

from tinydiff.kernels.cpu import conv2d_columns
from tinydiff.kernels.cpu.jit import allocates, parallel, serial
from tinydiff.kernels.cpu.phases import pad_phases
from tinydiff.kernels.cpu.rows import copy_plus
from tinydiff.kernels.cpu.simd import (
    LANES,
    MR,
    NR,
    STEPS,
    tile_outer,
    tile_plus,
    tile_store,
    tile_zero,
)

BAND = 1 << 17                          # numbers of a padded picture that a task keeps in its cache
TASKS = 16                              # at least so many, where the work can be cut
COPY = 6                                # multiply-adds that a vector copied to a column costs


class Sizes(NamedTuple):
    """The numbers of one run of `correlate`."""

    C: int                  # what is read: channels, height and width of a picture
    H: int
    W: int
    stride: int             # row r of phase u is the picture's row stride * r + u - top
    top: int
    left: int
    Hq: int                 # rows and columns of one phase
    Wq: int
    O: int                  # what is written
    Ho: int
    Wo: int
    rows: int               # the positions that are computed, and where they go:
    columns: int            # position (a, b) to row step * a + u, column step * b + v
    step: int
    u: int
    v: int
    band: int               # a task computes `band` rows
    bands: int
    parts: int              # and one of `parts` parts of the channels
    tasks: int
    by_columns: bool        # or a task is some pixels: `conv2d_columns`, where bands is 1


class Plan(NamedTuple):
    """Where `correlate` reads and writes."""

    taps: np.ndarray        # (T,): places in a kernel of KH * KW, in the order they are used
    offsets: np.ndarray     # (C * T,): where tap t of channel c reads, for position 0
    sizes: Sizes


@lru_cache(maxsize=1024)
def plan_forward(x_shape, w_shape, stride, padding):
    """Plan y from x: every tap, one pass."""
    (top, _), (left, _) = padding
    B, C, H, W = x_shape
    O, _, KH, KW = w_shape
    Ho, Wo = output_size(x_shape, w_shape, stride, padding)
    taps = [(i * KW + j, i % stride, j % stride, i // stride, j // stride)
            for i in range(KH) for j in range(KW)]
    return _plan(B, (C, H, W), (O, Ho, Wo), taps, read=(stride, top, left),
                 grid=(Ho, Wo), write=(1, 0, 0))


@lru_cache(maxsize=1024)
def plans_backward(x_shape, w_shape, stride, padding):
    """Plan dx from dy: the s * s phases of dx, each reached by its own taps.

    ``x_padded[s a + u]`` is read by output row p through tap i if s p + i = s a + u; so
    i = u mod s, and p = a - (i - u) / s.
    """
    (top, _), (left, _) = padding
    B, C, H, W = x_shape
    O, _, KH, KW = w_shape
    Ho, Wo = output_size(x_shape, w_shape, stride, padding)
    s = stride
    plans = []
    for u in range(s):
        for v in range(s):
            a0, b0 = -(-max(top - u, 0) // s), -(-max(left - v, 0) // s)   # the first inside
            rows = (H - 1 + top - u) // s - a0 + 1
            columns = (W - 1 + left - v) // s - b0 + 1
            far_i, far_j = (KH - 1 - u) // s, (KW - 1 - v) // s       # the largest (i - u) / s
            taps = [(i * KW + j, 0, 0, far_i - (i - u) // s, far_j - (j - v) // s)
                    for i in range(u, KH, s) for j in range(v, KW, s)]
            if rows > 0 and columns > 0:
                plans.append(_plan(B, (O, Ho, Wo), (C, H, W), taps,
                                   read=(1, far_i - a0, far_j - b0), grid=(rows, columns),
                                   write=(s, s * a0 + u - top, s * b0 + v - left)))
    return plans


def output_size(x_shape, w_shape, stride, padding):
    """Give (Ho, Wo)."""
    (top, bottom), (left, right) = padding
    return ((x_shape[2] + top + bottom - w_shape[2]) // stride + 1,
            (x_shape[3] + left + right - w_shape[3]) // stride + 1)


def _plan(B, read_shape, write_shape, taps, read, grid, write):
    C, H, W = read_shape
    stride, top, left = read
    rows, columns = grid
    reach = max((t[3] for t in taps), default=0), max((t[4] for t in taps), default=0)
    Wq = columns + reach[1]
    phases = stride * stride
    band = min(rows, max(1, BAND // max(1, C * phases * Wq) - reach[0]))
    by_columns = _worth_columns(B, rows, columns, Wq, band, write_shape[0])
    band = rows if by_columns else band
    bands = -(-rows // band)
    Hq = band + reach[0]
    parts = min(-(-write_shape[0] // MR), max(1, TASKS // (B * bands)))
    plane = Hq * Wq
    offsets = [(c * phases + t[1] * stride + t[2]) * plane + t[3] * Wq + t[4]
               for c in range(C) for t in taps]
    sizes = Sizes(C, H, W, stride, top, left, Hq, Wq, *write_shape, rows, columns, *write, band,
                  bands, parts, B * bands * parts, by_columns)
    return Plan(np.array([t[0] for t in taps], np.int64), np.array(offsets, np.int64), sizes)


def _worth_columns(B, rows, columns, Wq, band, O):
    """Say whether copied columns cost less than computed gaps; counted in multiply-adds per tap."""
    gaps = B * -(-rows // band) * -(-band * Wq // NR) * O
    panels = -(-B * rows * columns // NR)
    return panels * (O + COPY * -(-NR // min(columns, LANES))) < gaps


@parallel
def correlate(x, weight, row, step, offsets, bias, y, sizes):
    """Run one plan: y (flat) from x (flat), the weights and a bias for each channel.

    Output channel m's weight for offset k is ``weight[m * row + k * step]`` in a block of MR
    channels, and blocks are ``MR * len(offsets)`` apart.  One task is one picture, or a band of its
    rows, and a part of the output channels.
    """
    for task in prange(sizes.tasks):
        _correlate_task(x, weight, row, step, offsets, bias, y, sizes, np.int64(task))


@allocates
def _correlate_task(x, weight, row, step, offsets, bias, y, q, task):
    part = task % q.parts
    top = task // q.parts % q.bands * q.band                          # the band's first row
    n = task // q.parts // q.bands
    m = min(q.band, q.rows - top)
    blocks = (q.O + MR - 1) // MR
    first, last = blocks * part // q.parts, blocks * (part + 1) // q.parts
    positions = m * q.Wq
    width = (positions + NR - 1) // NR * NR

    planes = np.empty(q.C * q.stride**2 * q.Hq * q.Wq + width - positions + q.Wq + NR, np.float32)
    pad_phases(x, n * q.C * q.H * q.W, planes, 0, 1, q.C, q.H, q.W, q.stride,
               q.top - q.stride * top, q.left, q.Hq, q.Wq)
    sums = np.empty((last - first) * MR * width, np.float32)
    _add_taps(weight, row, step, offsets, planes, sums, width, first, last)
    _write(sums, width, first, last, bias, y, q, n, top, m)


@serial
def _add_taps(weight, row, step, offsets, planes, sums, width, first, last):
    """Fill sums, (blocks of MR channels, MR, positions), for blocks `first` to ``last - 1``."""
    K = offsets.size
    for p in range(0, width, NR):
        for block in range(first, last):
            a, place = block * K * MR, (block - first) * MR * width + p
            for k0 in range(0, max(K, 1), STEPS):                     # no tap at all: zeros
                tile = tile_zero()
                if row == 1:                                          # told apart for the compiler
                    for k in range(k0, min(k0 + STEPS, K)):
                        tile = tile_outer(tile, weight, a + k * step, 1, planes, offsets[k] + p)
                else:
                    for k in range(k0, min(k0 + STEPS, K)):
                        tile = tile_outer(tile, weight, a + k * step, row, planes, offsets[k] + p)
                if k0 > 0:
                    tile = tile_plus(tile, sums, place, width)
                tile_store(tile, sums, place, width)


@serial
def _write(sums, width, first, last, bias, y, q, n, top, m):
    """Write the m rows from row `top` of picture n to y, without the gaps between them."""
    for o in range(first * MR, min(last * MR, q.O)):
        for a in range(m):
            source = sums[(o - first * MR) * width + a * q.Wq:]
            target = y[((n * q.O + o) * q.Ho + q.step * (top + a) + q.u) * q.Wo + q.v:]
            if q.step == 1:
                copy_plus(target, source, q.columns, bias[o])
            else:
                for b in range(q.columns):
                    target[q.step * b] = source[b] + bias[o]


@parallel
def pack(weight, taps, packed, M, K, stride_m, stride_k):
    """Write the weights as tiles read them: ``packed[block, k * T + t, m]``, MR rows a block.

    Row m of the product and channel k of what is read stand `stride_m` and `stride_k` apart in
    `weight`; rows beyond M are zeros.
    """
    T = taps.size
    for block in prange((M + MR - 1) // MR):
        _pack_block(weight, taps, packed, M, K, stride_m, stride_k, np.int64(block), T)


@serial
def _pack_block(weight, taps, packed, M, K, stride_m, stride_k, block, T):
    i = block * K * T * MR
    for k in range(K):
        for t in range(T):
            source = k * stride_k + taps[t]
            for m in range(block * MR, block * MR + MR):
                packed[i] = weight[m * stride_m + source] if m < M else np.float32(0)
                i += 1


def forward(x, weight, bias, stride, padding):
    """Convolve: contiguous float32 arrays of at least one number, `padding` as pairs; return y."""
    B, C, _, _ = x.shape
    O, _, KH, KW = weight.shape
    plan = plan_forward(x.shape, weight.shape, stride, padding)
    K = C * KH * KW
    row, step, weight = K, 1, weight.reshape(-1)
    if O % MR:                                            # the last block would lack channels
        packed = np.empty(-(-O // MR) * MR * K, np.float32)
        pack(weight, plan.taps, packed, O, C, K, KH * KW)
        row, step, weight = 1, MR, packed
    y = np.empty((B, O, *output_size(x.shape, (O, C, KH, KW), stride, padding)), np.float32)
    _run(plan, x, weight, row, step, bias, y)
    return y


def backward_x(dy, x_shape, weight, stride, padding):
    """Return dx."""
    _, C, _, _ = x_shape
    O, _, KH, KW = weight.shape
    dx = np.empty(x_shape, np.float32)
    no_bias = np.zeros(C, np.float32)
    for plan in plans_backward(x_shape, weight.shape, stride, padding):
        packed = np.empty(-(-C // MR) * MR * O * plan.taps.size, np.float32)
        pack(weight.reshape(-1), plan.taps, packed, C, O, KH * KW, C * KH * KW)
        _run(plan, dy, packed, 1, MR, no_bias, dx)
    return dx


def _run(plan, x, weight, row, step, bias, y):
    """Run one plan in the way that suits its size; both give the same bits."""
    arguments = x.reshape(-1), weight, row, step, plan.offsets, bias, y.reshape(-1), plan.sizes
    if plan.sizes.by_columns:
        conv2d_columns.correlate(*arguments, x.shape[0])
    else:
        correlate(*arguments)
