"""Convolution by columns of pixels, made as they are needed: section 3 of kernels/README.md.

`conv2d_direct` reads each number where the padded picture stands, and computes the gaps between
rows and pictures too: a picture of 4x4 pixels is a line of 24 numbers, and its 16 pixels take a
whole tile (registers of 16).  So here the pixels of all pictures are numbered through, and what tap
t of channel c reads for NR of them is copied side by side before it is multiplied ("im2col").  A
copy serves all output channels: where these are cut among tasks, all copies are made first.

The plan, its order of sums and so every bit are those of `conv2d_direct.correlate`.
"""
import numpy as np
from numba import prange

from tinydiff.kernels.cpu.jit import allocates, parallel, serial
from tinydiff.kernels.cpu.phases import pad_phases
from tinydiff.kernels.cpu.rows import copy_plus, room
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
GROUP = 8                               # pieces of STEPS steps that a task keeps in its cache
PITCH = STEPS * NR + LANES              # between two pieces: whole vectors are copied, and spill


@parallel
def correlate(x, weight, row, step, offsets, bias, y, q, B):
    """Run a plan for B whole pictures; see `conv2d_direct.correlate`."""
    plane = q.C * q.stride**2 * q.Hq * q.Wq
    planes = np.empty(B * plane + LANES, np.float32)
    cuts = min(4, q.C)
    for task in prange(B * cuts):
        n, cut = divmod(np.int64(task), cuts)
        _pad(x, planes, plane, n, q.C * cut // cuts, q.C * (cut + 1) // cuts, q)
    panels = (B * q.rows * q.columns + NR - 1) // NR
    pieces = (offsets.size + STEPS - 1) // STEPS
    shared = panels < TASKS
    columns = room(panels * pieces * PITCH if shared else 0)
    if shared:
        for piece in prange(panels * pieces):
            _copy_piece(planes, plane, offsets, columns, q, B, np.int64(piece) // pieces,
                        np.int64(piece) % pieces)
    blocks = (q.O + MR - 1) // MR
    parts = min(blocks, (TASKS + panels - 1) // panels)
    for task in prange(panels * parts):
        panel, part = divmod(np.int64(task), parts)
        _multiply(weight, row, step, planes, plane, offsets, columns, bias, y, q, B, panel,
                  blocks * part // parts, blocks * (part + 1) // parts)


@serial
def _pad(x, planes, plane, n, first, last, q):
    """Copy channels `first` to ``last - 1`` of picture n, with zeros around, in phases."""
    size = plane // q.C
    start = n * plane + first * size
    pad_phases(x, (n * q.C + first) * q.H * q.W, planes[start:start + (last - first) * size], 0, 1,
               last - first, q.H, q.W, q.stride, q.top, q.left, q.Hq, q.Wq)


@allocates
def _copy_piece(planes, plane, offsets, columns, q, B, panel, piece):
    """Copy one piece of a panel to its place in the matrix of columns."""
    sources, targets = np.empty(NR, np.int64), np.empty(NR, np.int64)
    count = _find(plane, q, B, panel, sources, targets)
    pieces = (offsets.size + STEPS - 1) // STEPS
    _copy(planes, offsets, piece * STEPS, min((piece + 1) * STEPS, offsets.size), sources, targets,
          count, columns, (panel * pieces + piece) * PITCH)


@serial
def _find(plane, q, B, panel, sources, targets):
    """Find where a panel's pixels stand: those that neighbour in a row, as one vector.

    From left to right: what a vector writes beyond its pixels, the next one mends.
    """
    P = q.rows * q.columns
    count, lane = 0, 0
    while lane < NR and panel * NR + lane < B * P:
        n, p = divmod(panel * NR + lane, P)
        a, b = divmod(p, q.columns)
        sources[count] = n * plane + a * q.Wq + b
        targets[count] = lane
        count += 1
        lane += min(q.columns - b, LANES)
    return count


@serial
def _copy(planes, offsets, first, last, sources, targets, count, columns, place):
    """Copy steps `first` to ``last - 1`` of a panel."""
    for k in range(first, last):
        for i in range(count):
            vector_store(vector_load(planes, sources[i] + offsets[k]), columns, place + targets[i])
        place += NR


@allocates
def _multiply(weight, row, step, planes, plane, offsets, columns, bias, y, q, B, panel, first,
              last):
    """Compute blocks `first` to ``last - 1`` of MR channels for NR pixels.

    If `columns` is empty, what is needed of it is made here.
    """
    K = offsets.size
    pieces = (K + STEPS - 1) // STEPS
    valid = min(NR, B * q.rows * q.columns - panel * NR)
    sums = room((last - first) * MR * NR)
    shared = columns.size > 0
    kept = columns if shared else room(min(GROUP, pieces) * PITCH)
    sources, targets = np.empty(NR, np.int64), np.empty(NR, np.int64)
    count = _find(plane, q, B, panel, sources, targets)
    if K == 0:                                                        # no tap at all
        sums[:] = 0
    for start in range(0, pieces, GROUP):
        end = min(start + GROUP, pieces)
        if not shared:
            for piece in range(start, end):
                _copy(planes, offsets, piece * STEPS, min((piece + 1) * STEPS, K), sources,
                      targets, count, kept, (piece - start) * PITCH)
        for block in range(first, last):
            for piece in range(start, end):
                k = piece * STEPS
                _add_piece(weight, block * K * MR + k * step, row, step, kept,
                           (panel * pieces + piece if shared else piece - start) * PITCH,
                           min(STEPS, K - k), sums, (block - first) * MR * NR, valid <= LANES,
                           piece > 0)
    _write(sums, first, last, bias, y, q, panel * NR, valid)


@serial
def _write(sums, first, last, bias, y, q, pixel, valid):
    """Write the sums of `valid` pixels, from number `pixel` on."""
    P = q.rows * q.columns
    whole = q.step == 1 and q.rows == q.Ho and q.columns == q.Wo
    lane = 0
    while lane < valid:
        n, p = divmod(pixel + lane, P)
        a, b = divmod(p, q.columns)
        width = min(P - p if whole else q.columns - b, valid - lane)
        place = (q.step * a + q.u) * q.Wo + q.step * b + q.v
        for o in range(first * MR, min(last * MR, q.O)):
            target = y[(n * q.O + o) * q.Ho * q.Wo + place:]
            source = sums[(o - first * MR) * NR + lane:]
            if q.step == 1:
                copy_plus(target, source, width, bias[o])
            else:
                for i in range(width):
                    target[q.step * i] = source[i] + bias[o]
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
