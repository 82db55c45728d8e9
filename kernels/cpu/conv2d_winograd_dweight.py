"""A 3x3 convolution's dweight by Winograd's shortcut: section 5 of kernels/README.md.

Y = Aᵀ [(G g Gᵀ) * (Bᵀ d B)] A is linear in g, so its gradient is the transpose, from the outside
in::

    dM = A dY Aᵀ,    dU = sum over tiles of dM * V,    dg = Gᵀ dU G,         V = Bᵀ d B

For all channels, dU[xi] = dM[xi] V[xi]ᵀ: 36 matrix products with sums over the tiles.

The tiles are cut in `slices`, fixed by the shapes alone: each adds up its own dU, and these are
added in order, so the result does not depend on the number of threads.
"""
import numpy as np
from numba import prange

from tinydiff.kernels.cpu.conv2d_winograd import Sizes, transform_inputs
from tinydiff.kernels.cpu.jit import allocates, parallel, serial
from tinydiff.kernels.cpu.rows import add, room
from tinydiff.kernels.cpu.simd import (
    LANES,
    MR,
    NR,
    tile_outer,
    tile_plus,
    tile_store,
    tile_zero,
)
from tinydiff.kernels.cpu.vectors import transpose
from tinydiff.kernels.cpu.winograd import (
    PLACES,
    SCRATCH,
    SIDE,
    TILE,
    apart,
    plan_lines,
    transform_back,
    transform_gradient,
)

SLICES = 8
SPAN = 64                               # tiles that one pass over dU adds up,
ROOM = 1 << 19                          # unless their V and dM have more numbers than this


def backward_weight(dy, x, top, left):
    """Return dweight (O, C, 3, 3) and dbias (O,), from contiguous float32 arrays."""
    B, C, H, W = x.shape
    _, O, Ho, Wo = dy.shape
    th, tw = -(-Ho // TILE), -(-Wo // TILE)
    tiles = B * th * tw
    slices = min(SLICES, -(-tiles // NR), max(2, -(-tiles // SPAN)))
    du = np.empty((slices, PLACES, -(-O // MR) * MR, -(-C // NR) * NR), np.float32)
    dbias = np.zeros((slices, O), np.float32)
    _accumulate(x.reshape(-1), dy.reshape(-1), du.reshape(-1), dbias.reshape(-1), slices,
                Sizes(C, H, W, O, Ho, Wo, top, left, th, tw, tiles, 9 * C, 9, False))
    dweight = np.empty((O, C, 3, 3), np.float32)
    _finish(du.reshape(-1), dweight.reshape(-1), O, C, du.shape[2] * du.shape[3], du.shape[3],
            slices)
    return dweight, dbias.sum(axis=0)


@parallel
def _accumulate(x, dy, du, dbias, slices, sizes):
    for nth in prange(slices):
        _accumulate_slice(x, dy, du, dbias, slices, sizes, np.int64(nth))


@allocates
def _accumulate_slice(x, dy, du, dbias, slices, sizes, nth):
    """Add up dU and dbias of one slice of the tiles, NR tiles at a time."""
    C, O, tiles = sizes.K, sizes.M, sizes.tiles
    rows, columns = (O + MR - 1) // MR * MR, (C + NR - 1) // NR * NR
    most = max(1, min(SPAN // NR, ROOM // (PLACES * (rows + columns) * NR)))
    v_next, m_next = apart(columns, NR), apart(rows, NR)
    v_size, m_size = PLACES * v_next, PLACES * m_next                 # of NR tiles
    v, m, turned = room(most * v_size), room(most * m_size), room(most * columns * NR)
    v[:] = 0
    m[:] = 0
    panels = (tiles + NR - 1) // NR
    begin, end = panels * nth // slices, panels * (nth + 1) // slices
    for panel in range(begin, end, most):
        count = min(most, end - panel)
        for g in range(count):
            first = (panel + g) * NR
            transform_inputs(x, sizes, first, 0, C, v, v_next, g * v_size)
            _transform_gradients(dy, sizes, first, min(NR, tiles - first), m, m_next, g * m_size)
            for o in range(O):
                dbias[nth * O + o] += _outputs(m, g * m_size + o * NR, m_next)
        _add_products(m, v, turned, count, rows, columns, du, nth * PLACES * rows * columns,
                      panel > begin)


@serial
def _add_products(m, v, turned, count, rows, columns, du, place, go_on):
    """Write dM Vᵀ of `count` times NR tiles to dU, (PLACES, rows, columns) at `place`.

    With `go_on` add what is there.
    """
    for xi in range(PLACES):
        for g in range(count):
            for c in range(0, columns, LANES):
                for t in range(0, NR, LANES):
                    transpose(turned, (g * NR + t) * columns + c, columns,
                              v, (g * PLACES + xi) * apart(columns, NR) + c * NR + t, NR)
        for row in range(0, rows, MR):
            for column in range(0, columns, NR):
                tile = tile_zero()
                for g in range(count):
                    a = (g * PLACES + xi) * apart(rows, NR) + row * NR
                    b = g * NR * columns + column
                    for t in range(NR):
                        tile = tile_outer(tile, m, a + t, NR, turned, b + t * columns)
                at = place + (xi * rows + row) * columns + column
                if go_on:
                    tile = tile_plus(tile, du, at, columns)
                tile_store(tile, du, at, columns)


@serial
def _outputs(m, place, stride):
    """Add up the outputs of NR tiles from A dY Aᵀ.

    Row (1, 1, 1, 1) of A stands at the point 1, place 1 in both directions: there A dY Aᵀ is the
    sum of a tile's sixteen numbers.
    """
    total = np.float32(0)
    for value in m[place + (SIDE + 1) * stride:][:NR]:
        total += value
    return total


@allocates
def _transform_gradients(dy, sizes, first, tiles, m, stride, place):
    """Write dM, zeros beyond the last tile: channel o to ``m[place + xi * stride + o * NR:]``."""
    O, Ho, Wo, th, tw = sizes.M, sizes.Ho, sizes.Wo, sizes.th, sizes.tw
    count = ((first + tiles - 1) // tw - first // tw + 1) * TILE
    sources, targets = np.empty(count, np.int64), np.empty(count, np.int64)
    places = np.empty(NR, np.int64)
    nowhere = count * TILE * tw                                       # a tile of zeros
    lines = np.zeros(nowhere + TILE * TILE * tw, np.float32)
    scratch = room(SCRATCH)
    count = plan_lines(first, tiles, TILE, O, Ho, Wo, 0, 0, th, tw, sources, targets, places)
    for t in range(tiles, NR):
        places[t] = nowhere
    for o in range(O):
        transform_gradient(dy, o * Ho * Wo, Wo, sources, targets, count, places, tw, lines, scratch,
                           m, place + o * NR, stride)


@parallel
def _finish(du, dweight, O, C, stride, columns, slices):
    for o in prange(O):
        _finish_row(du, dweight, np.int64(o), C, stride, columns, slices)


@allocates
def _finish_row(du, dweight, o, C, stride, columns, slices):
    """Add up the slices of one output channel, in order; then dg = Gᵀ dU G."""
    for xi in range(PLACES):
        at = xi * stride + o * columns
        for nth in range(1, slices):
            add(du[at:], du[nth * PLACES * stride + at:], columns)
    transform_back(du, o * columns, stride, dweight, o * C * 9, C, room(SCRATCH))
