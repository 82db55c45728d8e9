"""3x3 convolutions of stride 1 by Winograd's shortcut: section 5 of kernels/README.md.

The 36 products M[xi] = U[xi] V[xi] are cut so that what is transformed is multiplied while it is
still in the cache, in one of two ways:

- many tiles, few weights (a batch of small pictures): U is made once; a task takes NR tiles from
  pixels to pixels, through V and M of those alone;
- few tiles, many weights (Stable Diffusion's lower levels): V is made once; a task takes the
  kernels of some output channels, a block of input channels at a time, so that U never exists as
  a whole.

Both add up the same blocks of CHANNELS channels in the same order, so they give the same bits.
"""
from typing import NamedTuple

import numpy as np
from numba import prange

from tinydiff.kernels.cpu.jit import allocates, parallel, serial
from tinydiff.kernels.cpu.rows import room
from tinydiff.kernels.cpu.simd import (
    LANES,
    MR,
    NR,
    narrow_zero,
    tile_outer,
    tile_plus,
    tile_store,
    tile_zero,
)
from tinydiff.kernels.cpu.winograd import (
    OB,
    PLACES,
    SCRATCH,
    SIDE,
    TILE,
    apart,
    plan_lines,
    plan_outputs,
    transform_input,
    transform_output,
    transform_weights,
)

WEIGHTS = 1 << 20                       # numbers of U up to which it is made as a whole
FEWEST = 2                              # groups of NR tiles too few to share among threads
PANELS = 8                              # groups of NR tiles from which on it is made as a whole too
CHANNELS = 128                          # input channels of a block of U, and of a chain of sums


class Sizes(NamedTuple):
    """What is read, (K, H, W); what is written, (M, Ho, Wo); and the tiles it is cut in."""

    K: int
    H: int
    W: int
    M: int
    Ho: int
    Wo: int
    top: int                # zeros around what is read
    left: int
    th: int                 # tiles in a picture: rows and columns
    tw: int
    tiles: int              # in all
    stride_m: int           # between the kernels of neighbouring rows and columns of U
    stride_k: int
    flip: bool


def convolve(x, weight, bias, y, top, left, flip=False):
    """Fill y (B, M, Ho, Wo) from x (B, K, H, W), all contiguous float32.

    `weight` is (M, K, 3, 3); with `flip` it is (K, M, 3, 3), with kernels turned by half a turn.
    """
    B, K, H, W = x.shape
    _, M, Ho, Wo = y.shape
    th, tw = -(-Ho // TILE), -(-Wo // TILE)
    tiles = B * th * tw
    sizes = Sizes(K, H, W, M, Ho, Wo, top, left, th, tw, tiles,
                  *((9, 9 * M) if flip else (9 * K, 9)), flip)
    few_weights = PLACES * K * M <= WEIGHTS and tiles > FEWEST * NR
    run = _by_tiles if few_weights or tiles >= PANELS * NR else _by_channels
    run(x.reshape(-1), weight.reshape(-1), bias, y.reshape(-1), sizes)


@parallel
def _by_tiles(x, weight, bias, y, sizes):
    K, M, tiles = sizes.K, sizes.M, sizes.tiles
    blocks = (M + OB - 1) // OB
    u = room(blocks * PLACES * apart(K, OB))
    for block in prange(blocks):
        _transform_weights(weight, sizes, np.int64(block), u)
    for panel in prange((tiles + NR - 1) // NR):
        _convolve_panel(x, u, bias, y, sizes, np.int64(panel) * NR)


@allocates
def _transform_weights(weight, sizes, block, u):
    """Make U for OB rows, all columns."""
    transform_weights(weight, sizes.stride_m, sizes.stride_k, sizes.flip, sizes.M, block * OB, 0,
                      sizes.K, u, block * PLACES * apart(sizes.K, OB), apart(sizes.K, OB),
                      room(SCRATCH))


@allocates
def _convolve_panel(x, u, bias, y, sizes, first):
    """Take NR tiles, from number `first`, all the way."""
    K, M = sizes.K, sizes.M
    rows = (M + OB - 1) // OB * OB
    u_next, v_next, m_next = apart(K, OB), apart(K, NR), apart(rows, NR)
    v, m = room(PLACES * v_next), room(PLACES * m_next)
    transform_inputs(x, sizes, first, 0, K, v, v_next, 0)
    narrow = sizes.tiles - first <= LANES
    for xi in range(PLACES):
        for row in range(0, rows, MR):
            for k in range(0, K, CHANNELS):
                _multiply(u, (row // OB * PLACES + xi) * u_next + k * OB + row % OB,
                          v, xi * v_next + k * NR, m, xi * m_next + row * NR,
                          min(CHANNELS, K - k), narrow, k > 0)
    _transform_outputs(m, m_next, bias, y, sizes, first, 0, M, 0)


@serial
def _multiply(u, a, v, b, m, place, channels, narrow, go_on):
    """Multiply MR rows of U with a panel of V, over some channels; add what m has if `go_on`."""
    if narrow:
        row = narrow_zero()
        for c in range(channels):
            row = tile_outer(row, u, a + c * OB, 1, v, b + c * NR)
        if go_on:
            row = tile_plus(row, m, place, NR)
        tile_store(row, m, place, NR)
        return
    tile = tile_zero()
    for c in range(channels):
        tile = tile_outer(tile, u, a + c * OB, 1, v, b + c * NR)
    if go_on:
        tile = tile_plus(tile, m, place, NR)
    tile_store(tile, m, place, NR)


@allocates
def transform_inputs(x, sizes, first, c_first, c_last, v, stride, place):
    """Write V of NR tiles: channel c, place xi to ``v[place + xi * stride + c * NR:]``.

    Only LANES of them if there are no more.
    """
    q = sizes
    tiles = min(NR, q.tiles - first)
    count = ((first + tiles - 1) // q.tw - first // q.tw + 1) * SIDE
    sources, targets = np.empty(count, np.int64), np.empty(count, np.int64)
    places = np.empty(NR, np.int64)
    lines = np.zeros(count * (TILE * q.tw + 2) + 2 * LANES, np.float32)
    scratch = room(SCRATCH)
    count = plan_lines(first, tiles, SIDE, q.K, q.H, q.W, q.top, q.left, q.th, q.tw,
                       sources, targets, places)
    for c in range(c_first, c_last):
        transform_input(x, c * q.H * q.W, q.W, sources, targets, count, places, q.tw, lines,
                        scratch, v, place + c * NR, stride, NR if tiles > LANES else LANES)


@allocates
def _transform_outputs(m, stride, bias, y, sizes, first, o_first, o_last, place):
    """Write y of NR tiles: channel o_first, place xi stands at ``m[place + xi * stride:]``."""
    q = sizes
    places, valid = np.empty(NR, np.int64), np.empty(NR, np.int64)
    scratch = room(SCRATCH)
    plan_outputs(first, min(NR, q.tiles - first), q.M, q.Ho, q.Wo, q.th, q.tw, places, valid)
    for o in range(o_first, o_last):
        transform_output(m, place + (o - o_first) * NR, stride, bias[o], y, o * q.Ho * q.Wo,
                         q.Wo, places, valid, q.tw, scratch)


@parallel
def _by_channels(x, weight, bias, y, sizes):
    K, M, tiles = sizes.K, sizes.M, sizes.tiles
    panels = (tiles + NR - 1) // NR
    v_next = apart(K, NR)
    v = room(panels * PLACES * v_next)
    parts = 16
    for task in prange(panels * parts):
        panel, part = np.int64(task) // parts, np.int64(task) % parts
        transform_inputs(x, sizes, panel * NR, K * part // parts, K * (part + 1) // parts,
                          v, v_next, panel * PLACES * v_next)
    for block in prange((M + 2 * OB - 1) // (2 * OB)):
        _convolve_channels(v, weight, bias, y, sizes, np.int64(block) * 2 * OB)


@allocates
def _convolve_channels(v, weight, bias, y, sizes, first_m):
    """Compute 2 * OB output channels, from `first_m`, of all tiles."""
    K, M, tiles = sizes.K, sizes.M, sizes.tiles
    panels = (tiles + NR - 1) // NR
    rows = 2 * OB
    block = min(CHANNELS, K)
    u_next, v_next, m_next = apart(block, OB), apart(K, NR), apart(rows, NR)
    u, m, scratch = room(2 * PLACES * u_next), room(panels * PLACES * m_next), room(SCRATCH)
    for k in range(0, K, CHANNELS):
        channels = min(CHANNELS, K - k)
        for half in range(2):
            transform_weights(weight, sizes.stride_m, sizes.stride_k, sizes.flip, M,
                              first_m + half * OB, k, channels, u, half * PLACES * u_next,
                              u_next, scratch)
        for panel in range(panels):
            for xi in range(PLACES):
                for row in range(0, rows, MR):
                    _multiply(u, (row // OB * PLACES + xi) * u_next + row % OB,
                              v, (panel * PLACES + xi) * v_next + k * NR,
                              m, (panel * PLACES + xi) * m_next + row * NR,
                              channels, tiles - panel * NR <= LANES, k > 0)
    for panel in range(panels):
        _transform_outputs(m, m_next, bias, y, sizes, panel * NR, first_m, min(first_m + rows, M),
                           panel * PLACES * m_next)
