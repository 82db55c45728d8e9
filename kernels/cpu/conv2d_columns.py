"""Convolution of few pixels, by a matrix of columns: section 3 of kernels/README.md.

`conv2d_direct` reads each number where the padded picture stands, and computes the gaps between
rows and pictures too: two pictures of 4x4 pixels are two lines of 24 numbers, a tile each, though
their 32 pixels would fill one (registers of 16).  So here the pixels of all pictures are numbered
through, and what tap t of channel c reads for NR of them is copied side by side before it is
multiplied ("im2col").  A copy serves all output channels.

The plan, its order of sums and so every bit are those of `conv2d_direct.correlate`.
"""
import numpy as np
from numba import prange

from tinydiff.kernels.cpu.jit import allocates, parallel, serial
from tinydiff.kernels.cpu.phases import pad_phases
from tinydiff.kernels.cpu.rows import copy_plus
from tinydiff.kernels.cpu.simd import (
    LANES,
    MR,
    NR,
    STEPS,
    narrow_zero,
    tile_outer,
    tile_plus,
    tile_store,
    tile_zero,
)
from tinydiff.kernels.cpu.vectors import vector_load, vector_store

TASKS = 8                               # at least so many, where the work can be cut
PITCH = STEPS * NR + LANES              # between two pieces: whole vectors are copied, and spill


@parallel
def correlate(x, weight, row, step, offsets, bias, y, q, B):
    """Run a plan that writes every pixel of B whole pictures; see `conv2d_direct.correlate`."""
    plane = q.C * q.stride**2 * q.Hq * q.Wq
    planes = np.empty(B * plane + LANES, np.float32)
    panels = (B * q.rows * q.columns + NR - 1) // NR
    pieces = (offsets.size + STEPS - 1) // STEPS
    columns = np.empty(panels * pieces * PITCH, np.float32)
    cuts = min(4, q.C)
    for task in prange(B * cuts):
        n, cut = divmod(np.int64(task), cuts)
        _pad(x, planes, plane, n, q.C * cut // cuts, q.C * (cut + 1) // cuts, q)
    for piece in prange(panels * pieces):
        _copy_columns(planes, plane, offsets, columns, q, B, np.int64(piece) // pieces,
                      np.int64(piece) % pieces)
    blocks = (q.O + MR - 1) // MR
    parts = min(blocks, (TASKS + panels - 1) // panels)
    for task in prange(panels * parts):
        panel, part = divmod(np.int64(task), parts)
        _multiply(weight, row, step, columns, offsets.size, bias, y, q, B, panel,
                  blocks * part // parts, blocks * (part + 1) // parts)


@serial
def _pad(x, planes, plane, n, first, last, q):
    """Copy channels `first` to ``last - 1`` of picture n, with zeros around, in phases."""
    size = plane // q.C
    start = n * plane + first * size
    pad_phases(x, (n * q.C + first) * q.H * q.W, planes[start:start + (last - first) * size], 0, 1,
               last - first, q.H, q.W, q.stride, q.top, q.left, q.Hq, q.Wq)


@allocates
def _copy_columns(planes, plane, offsets, columns, q, B, panel, piece):
    """Copy STEPS numbers for each of NR pixels: those that neighbour in a row, as one vector.

    From left to right: what a vector writes beyond its pixels, the next one mends.
    """
    P = q.rows * q.columns
    sources, targets = np.empty(NR, np.int64), np.empty(NR, np.int64)
    count, lane = 0, 0
    while lane < NR and panel * NR + lane < B * P:
        n, p = divmod(panel * NR + lane, P)
        a, b = divmod(p, q.columns)
        sources[count] = n * plane + a * q.Wq + b
        targets[count] = lane
        count += 1
        lane += min(q.columns - b, LANES)
    place = (panel * ((offsets.size + STEPS - 1) // STEPS) + piece) * PITCH
    for k in range(piece * STEPS, min((piece + 1) * STEPS, offsets.size)):
        for i in range(count):
            vector_store(vector_load(planes, sources[i] + offsets[k]), columns, place + targets[i])
        place += NR


@allocates
def _multiply(weight, row, step, columns, K, bias, y, q, B, panel, first, last):
    """Compute blocks `first` to ``last - 1`` of MR channels for NR pixels."""
    P = q.rows * q.columns
    pieces = (K + STEPS - 1) // STEPS
    valid = min(NR, B * P - panel * NR)
    sums = np.empty((last - first) * MR * NR, np.float32)
    for block in range(first, last):
        for piece in range(pieces):
            k0 = piece * STEPS
            _add_piece(weight, block * K * MR + k0 * step, row, step, columns,
                       (panel * pieces + piece) * PITCH, min(STEPS, K - k0), sums,
                       (block - first) * MR * NR, valid <= LANES, piece > 0)
    lane = 0
    while lane < valid:
        n, p = divmod(panel * NR + lane, P)
        width = min(P - p, valid - lane)
        for o in range(first * MR, min(last * MR, q.O)):
            copy_plus(y[(n * q.O + o) * P + p:], sums[(o - first * MR) * NR + lane:], width,
                      bias[o])
        lane += width


@serial
def _add_piece(weight, at, row, step, columns, place, steps, sums, target, narrow, go_on):
    """Multiply MR rows with a panel of columns; add what `sums` has if `go_on`."""
    if narrow:
        half = narrow_zero()
        for k in range(steps):
            half = tile_outer(half, weight, at + k * step, row, columns, place + k * NR)
        if go_on:
            half = tile_plus(half, sums, target, NR)
        tile_store(half, sums, target, NR)
        return
    tile = tile_zero()
    if row == 1:                                                      # told apart for the compiler
        for k in range(steps):
            tile = tile_outer(tile, weight, at + k * step, 1, columns, place + k * NR)
    else:
        for k in range(steps):
            tile = tile_outer(tile, weight, at + k * step, row, columns, place + k * NR)
    if go_on:
        tile = tile_plus(tile, sums, target, NR)
    tile_store(tile, sums, target, NR)
