"""The gradient of a convolution in its weight, on register tiles: section 4 of kernels/README.md.

In the layout of `conv2d_direct`, rows Wq apart and tap k = (c, i, j) a fixed shift away, the sum ::

    dweight[o, k] = sum_p  dy[o, p] * x[offset_k + p]

runs along the contiguous positions of both factors.  A tile holds DM x DN such sums, a vector of
partial sums each, and adds up the lanes once at the end.  dy gets zeros where rows have gaps, so
that what x holds there does not count.  Small pictures stand in a row, to make long sums.

The pictures are cut in `slices`, fixed by the shapes alone: each adds up its own dweight, and these
are added in order, so the result does not depend on the number of threads.
"""
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numba import prange

from tinydiff.kernels.cpu.conv2d_direct import output_size
from tinydiff.kernels.cpu.groups import add_up
from tinydiff.kernels.cpu.jit import allocates, parallel, serial
from tinydiff.kernels.cpu.phases import pad_phases
from tinydiff.kernels.cpu.rows import clear, copy
from tinydiff.kernels.cpu.simd import DM, DN, LANES, dots_step, dots_store, dots_zero

CACHE = 1 << 17                         # numbers of x that a task works on
RUN = 1024                              # positions a tile of sums reads before it moves on
SLICES = 8
PARTIAL = 1 << 22                       # numbers that all slices' results may take


class Sizes(NamedTuple):
    """The numbers of one run; C to Wq are those of `conv2d_direct.Sizes`."""

    C: int
    H: int
    W: int
    stride: int
    top: int
    left: int
    O: int
    Ho: int
    Wo: int
    Hq: int
    Wq: int
    G: int                  # pictures, or bands of one, that stand in a row
    band: int
    bands: int
    units: int              # bands of all pictures
    slices: int
    parts: int              # of the output channels


@lru_cache(maxsize=1024)
def plan(x_shape, w_shape, stride, padding):
    """Return offsets (C * T,): where each tap reads; and the sizes."""
    (top, _), (left, _) = padding
    B, C, H, W = x_shape
    O, _, KH, KW = w_shape
    Ho, Wo = output_size(x_shape, w_shape, stride, padding)
    reach, Wq = (KH - 1) // stride, Wo + (KW - 1) // stride
    phases = stride * stride
    row = C * phases * Wq                                             # of all phases
    band = min(Ho, max(1, CACHE // row - reach))
    bands = -(-Ho // band)
    Hq = band + reach
    units = B * bands
    slices = max(1, min(units, SLICES, PARTIAL // (O * C * KH * KW)))
    G = 1 if bands > 1 else max(1, min(RUN // (Hq * Wq), CACHE // (row * Hq), -(-units // slices)))
    parts = min(-(-O // DM), max(1, SLICES // slices))
    offsets = [(c * phases + i % stride * stride + j % stride) * G * Hq * Wq
               + i // stride * Wq + j // stride
               for c in range(C) for i in range(KH) for j in range(KW)]
    return np.array(offsets, np.int64), Sizes(
        C, H, W, stride, top, left, O, Ho, Wo, Hq, Wq, G, band, bands, units, slices, parts)


@parallel
def _dweight(x, dy, offsets, dweight, dbias, sizes):
    """Fill dweight (slices, O, K) and dbias (slices, O), both flat and zero before."""
    for task in prange(sizes.slices * sizes.parts):
        _dweight_task(x, dy, offsets, dweight, dbias, sizes, np.int64(task))


@allocates
def _dweight_task(x, dy, offsets, dweight, dbias, q, task):
    """Add up one slice of the pictures, for one part of the output channels."""
    nth, part = task // q.parts, task % q.parts
    blocks = (q.O + DM - 1) // DM
    first, last = blocks * part // q.parts * DM, min(blocks * (part + 1) // q.parts * DM, q.O)
    plane = q.Hq * q.Wq
    length = (q.G * plane + LANES - 1) // LANES * LANES               # positions, gaps included

    planes = np.empty(q.C * q.stride**2 * q.G * plane + plane + LANES, np.float32)
    rows = np.zeros((last - first + DM - 1) // DM * DM * length, np.float32)
    sums = np.empty(DM * DN, np.float32)
    start, stop = q.units * nth // q.slices, q.units * (nth + 1) // q.slices
    for unit in range(start, stop, q.G):
        for g in range(q.G):
            n, row = (unit + g) // q.bands, (unit + g) % q.bands * q.band
            m, H = min(q.band, q.Ho - row), q.H
            if unit + g >= stop:                                      # a place left over: zeros
                n, m, H = 0, 0, 0
            pad_phases(x, n * q.C * q.H * q.W, planes, g, q.G, q.C, H, q.W, q.stride,
                       q.top - q.stride * row, q.left, q.Hq, q.Wq)
            for o in range(first, last):
                _copy_rows(dy, ((n * q.O + o) * q.Ho + row) * q.Wo, rows,
                           (o - first) * length + g * plane, m, q.Wo, q.Hq, q.Wq)
        for o in range(first, last):
            dbias[nth * q.O + o] += rows[(o - first) * length:(o - first + 1) * length].sum()
        for p in range(0, length, RUN):
            _dots(rows, planes, offsets, dweight, nth * q.O + first, last - first, length,
                  p, min(p + RUN, length), sums)


@serial
def _copy_rows(dy, source, rows, line, m, Wo, Hq, Wq):
    """Copy m rows of Wo numbers to rows of Wq, with zeros between and below."""
    for a in range(Hq):
        to = rows[line + a * Wq:]
        valid = Wo if a < m else 0
        copy(to, dy[source + a * Wo:], valid)
        clear(to[valid:], Wq - valid)


@serial
def _dots(rows, planes, offsets, dweight, row, O, length, start, stop, sums):
    """Add the products of positions start to stop to rows `row` ... of dweight."""
    K = offsets.size
    for o in range(0, O, DM):
        for k in range(0, K, DN):
            j0, j1 = offsets[k], offsets[min(k + 1, K - 1)]
            j2, j3 = offsets[min(k + 2, K - 1)], offsets[min(k + 3, K - 1)]
            dots = dots_zero()
            for p in range(start, stop, LANES):
                dots = dots_step(dots, rows, o * length + p, length, planes,
                                 j0 + p, j1 + p, j2 + p, j3 + p)
            dots_store(dots, sums, 0)
            for m in range(min(DM, O - o)):
                for n in range(min(DN, K - k)):
                    dweight[(row + o + m) * K + k + n] += sums[m * DN + n]


def backward_weight(dy, x, w_shape, stride, padding):
    """Return dweight and dbias, from contiguous float32 arrays."""
    offsets, sizes = plan(x.shape, w_shape, stride, padding)
    dweight = np.zeros((sizes.slices, *w_shape), np.float32)
    dbias = np.zeros((sizes.slices, sizes.O), np.float32)
    _dweight(x.reshape(-1), dy.reshape(-1), offsets, dweight.reshape(-1), dbias.reshape(-1), sizes)
    return add_up(dweight), dbias.sum(axis=0)
