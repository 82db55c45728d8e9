"""Attention in tiles: the N x M matrix of scores never exists.  Section 7 of kernels/README.md.

The softmax of a row can be computed while its scores come in, block by block, if the sums so far
are kept relative to the largest score so far.  With m that score, l the sum of ``exp(s - m)`` and O
the sum of ``exp(s - m) v``, a further block of scores changes them to ::

    m' = max(m, max(s))     l' = alpha l + sum(exp(s - m'))     O' = alpha O + exp(s - m') v

where ``alpha = exp(m - m')``; after the last block, O / l is what softmax gives (Algorithm 1).  So
a block of Br queries passes over the keys in blocks of Bc, all it needs in the processor's cache.

Everything is held the other way up than in the paper, keys downwards and queries to the right::

    S^T = K Q^T          O^T += V^T P^T

Then the queries lie in a register's lanes: m, l and alpha are vectors, no sum runs across lanes,
and S^T leaves the first product in the form in which the second one reads it.  K and V are on the
side of which a tile reads one number at a time, in any order, and stay as they are; Q must be
transposed, and O back, but that is once per block and not once per score.

T. Dao et al., "FlashAttention", 2022, arXiv:2205.14135, Algorithm 1.

================  ====================================================
d, e              width of one head in q and k, and in v
``group``         NR queries: what the lanes of a tile hold
================  ====================================================
"""
import numpy as np
from numba import prange

from tinydiff.backends.table import Saved
from tinydiff.kernels.cpu.arrays import all_float32
from tinydiff.kernels.cpu.attention_backward import attention_backward
from tinydiff.kernels.cpu.attention_tiles import (
    TASKS,
    Bc,
    add_mask,
    close_rows,
    copy_rows,
    exp_rows,
    gather_columns,
    multiply,
    padded,
    rescale,
    scatter_columns,
    tile_add_rows,
    tile_max,
    tile_max_rows,
)
from tinydiff.kernels.cpu.expf import exp
from tinydiff.kernels.cpu.jit import allocates, parallel, serial
from tinydiff.kernels.cpu.rows import room
from tinydiff.kernels.cpu.simd import MR, NR, tile_load, tile_plus

GROUPS = max(1, 128 // NR)
Br = GROUPS * NR                        # queries of a task, which share each copied block of keys
LOWEST = np.finfo(np.float32).min
ONE = np.float32(1)
NO_MASK = np.empty(0, np.float32)


def attention_forward(q, k, v, num_heads, mask=None, scale=None):
    """Let each query read a weighted mean of values, see `tinydiff.ops.attention_forward`.

    The cache holds q, k and v, and per query the two numbers m and l.
    """
    if not all_float32(q, k, v) or not _shapes_fit(q, k, v, num_heads):
        return NotImplemented
    B, N, D = q.shape
    M, E = v.shape[1:]
    mask, mask_strides = _flat_mask(mask, (B, num_heads, N, M))
    if mask is None:
        return NotImplemented

    scale = float(scale) if scale is not None else (D // num_heads) ** -0.5
    sizes = np.array([num_heads, N, M, D // num_heads, E // num_heads, *mask_strides])
    q, k, v = (np.ascontiguousarray(x) for x in (q, k, v))
    o = np.empty((B, N, E), np.float32)
    m = np.empty(B * num_heads * N, np.float32)
    l = np.empty(B * num_heads * N, np.float32)
    _attend(q.reshape(-1), k.reshape(-1), v.reshape(-1), mask, o.reshape(-1), m, l, scale, sizes)
    return o, Saved(attention_backward, (q, k, v, mask, m, l, scale, sizes))


def _shapes_fit(q, k, v, h):
    """Say whether these are (B, N, D), (B, M, D), (B, M, E), none empty, all in h heads."""
    return (q.ndim == k.ndim == v.ndim == 3 and q.size and v.size and q.shape[0] == k.shape[0]
            and q.shape[2] == k.shape[2] and k.shape[:2] == v.shape[:2]
            and q.shape[2] % h == 0 and v.shape[2] % h == 0)


def _flat_mask(mask, shape):
    """Return the mask's numbers and how far apart they are along (B, h, N, M): 0 where they repeat.

    None in place of the numbers if the mask does not fit.
    """
    if mask is None:
        return NO_MASK, (0, 0, 0, 0)
    if type(mask) is not np.ndarray or mask.dtype.kind != "f" or mask.ndim > 4:
        return None, None
    mask = mask[(None,) * (4 - mask.ndim)]
    if any(have not in (1, want) for have, want in zip(mask.shape, shape, strict=True)):
        return None, None
    mask = np.ascontiguousarray(mask, np.float32)
    strides = (0 if length == 1 else stride // 4
               for length, stride in zip(mask.shape, mask.strides, strict=True))
    return mask.reshape(-1), tuple(strides)


@parallel
def _attend(q, k, v, mask, o, m, l, scale, sizes):
    """Fill o, m and l, Br queries of one head of one picture after the other."""
    units = m.size // sizes[1] * ((sizes[1] + Br - 1) // Br)
    tasks = min(units, TASKS)
    for task in prange(tasks):
        first, last = units * np.int64(task) // tasks, units * (np.int64(task) + 1) // tasks
        _attend_some(q, k, v, mask, o, m, l, np.float32(scale), sizes, first, last)


@allocates
def _attend_some(q, k, v, mask, o, m_all, l_all, scale, sizes, begin, end):
    """Attend for some units of Br queries: Algorithm 1 for each."""
    N, d, e = sizes[1], sizes[3], sizes[4]
    blocks = (N + Br - 1) // Br
    queries = room(GROUPS * padded(d) * NR)                           # (groups, d, NR)
    O = room(GROUPS * padded(e) * NR)                                 # (groups, e, NR)
    m, l, factor, peak, total = room(Br), room(Br), room(NR), room(NR), room(NR)
    keys, values = room(Bc * padded(d)), room(Bc * padded(e))         # (Bc, d), (Bc, e)
    S = room(Bc * NR)                                                 # (Bc, NR), then P
    for unit in range(begin, end):
        head, block = divmod(unit, blocks)
        O[:] = 0
        m[:] = LOWEST
        l[:] = 0
        factor[:] = scale
        _attend_block(q, k, v, mask, o, m_all, l_all, sizes, head, block * Br, queries, O, m, l,
                      factor, peak, total, keys, values, S)


@serial
def _attend_block(q, k, v, mask, o, m_all, l_all, sizes, head, first, queries, O, m, l, factor,
                  peak, total, keys, values, S):
    """Attend for queries `first` to ``first + Br - 1`` of one head; `factor` holds the scale."""
    h, N, M, d, e = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    count = min(Br, N - first)
    groups = (count + NR - 1) // NR
    picture, nth = divmod(head, h)
    row = picture * N + first                                         # of q and o
    mask_at = picture * sizes[5] + nth * sizes[6] + first * sizes[7]

    for g in range(groups):
        n = g * NR
        gather_columns(q, ((row + n) * h + nth) * d, h * d, min(NR, count - n), d,
                       queries, n * padded(d))
        rescale(queries, n * padded(d), d, factor)

    for j in range(0, M, Bc):
        rows = min(Bc, M - j)
        copy_rows(k, ((picture * M + j) * h + nth) * d, h * d, rows, d, keys, padded(d))
        copy_rows(v, ((picture * M + j) * h + nth) * e, h * e, rows, e, values, padded(e))
        for g in range(groups):
            n = g * NR
            multiply(keys, 0, padded(d), 1, queries, n * padded(d), NR, d, S, 0, NR, rows, True)
            if mask.size:
                add_mask(mask, mask_at + n * sizes[7] + j * sizes[8], sizes, S, rows,
                         min(NR, count - n))
            _softmax(S, rows, m[n:n + NR], l[n:n + NR], peak, total, factor)
            rescale(O, n * padded(e), e, factor)
            multiply(values, 0, 1, padded(e), S, 0, NR, rows, O, n * padded(e), NR, e, False)

    for g in range(groups):
        n = g * NR
        for c in range(NR):
            l[n + c] = max(l[n + c], ONE)                             # 0: reads nothing, and O = 0
            factor[c] = ONE / l[n + c]
        rescale(O, n * padded(e), e, factor)
        scatter_columns(O, n * padded(e), min(NR, count - n), e,
                        o, ((row + n) * h + nth) * e, h * e)
    for n in range(count):
        m_all[head * N + first + n] = m[n]
        l_all[head * N + first + n] = l[n]


@serial
def _softmax(S, rows, m, l, peak, total, alpha):
    """Turn a block of scores into ``exp(S - m)``, for a new m; update m and l, return alpha.

    Tiles are MR keys high: what is missing in the last one are keys that nobody may read.
    """
    close_rows(S, rows, -np.inf)
    for n in range(NR):
        peak[n] = m[n]
    largest = tile_load(S, 0, NR)
    for r in range(MR, rows, MR):
        largest = tile_max(largest, tile_load(S, r * NR, NR))
    tile_max_rows(largest, peak, 0)

    for n in range(NR):
        alpha[n] = exp(m[n] - peak[n])
        m[n] = peak[n]
    exp_rows(S, rows, peak)
    close_rows(S, rows, 0)
    sums = tile_load(S, 0, NR)
    for r in range(MR, rows, MR):
        sums = tile_plus(sums, S, r * NR, NR)
    tile_add_rows(sums, total, 0)
    for n in range(NR):
        l[n] = alpha[n] * l[n] + total[n]
