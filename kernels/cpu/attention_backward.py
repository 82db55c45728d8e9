"""The derivative of attention in tiles, from what the forward pass kept per query: m and l.

The scores are computed again, and ``p = exp(S - m) / l`` are the probabilities.  Then, as in
`tinydiff.ops.attention`, with do for the incoming gradient::

    o = p v                  dv = p^T do,    dp = do v^T
    p = softmax(S)           dS = p * (dp - delta),    delta = sum(dp * p)
    S = scale q k^T + mask   dq = scale dS k,    dk = scale dS^T q

Held as in the forward pass, keys downwards and a group of NR queries to the right, these are five
products of tiles::

    S^T = K Q^T    dP^T = V do^T    dQ^T = K^T dS^T    dV += p^T do    dK += dS^T Q

T. Dao, "FlashAttention-2", 2023, arXiv:2307.08691, Algorithm 2, with two changes.  One task has a
whole head, so it adds to dK and dV in buffers of its own and shares nothing.  And it holds the
M x NR scores of a group at once, for the sake of delta: the paper takes it from the output, delta =
sum(do * o).  Where one key has nearly all the weight, dp and delta are nearly equal, and what is
left of their difference is the rounding of two different sums; here both hold the same dp.
"""
import numpy as np
from numba import prange

from tinydiff.kernels.cpu.arrays import flat
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
    tile_plus_products,
    write_rows,
)
from tinydiff.kernels.cpu.jit import allocates, parallel, serial
from tinydiff.kernels.cpu.rows import room
from tinydiff.kernels.cpu.simd import LANES, MR, NR, tile_zero
from tinydiff.kernels.cpu.vectors import vector_load, vector_store


def attention_backward(dy, arrays):
    """Pull `dy` back through `attention_forward`; return dq, dk, dv."""
    q, k, v, mask, m, l, scale, sizes = arrays
    dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)
    B, N = q.shape[:2]
    _pull_back(flat(dy, B * N * v.shape[2]), q.reshape(-1), k.reshape(-1), v.reshape(-1), mask, m,
               l, dq.reshape(-1), dk.reshape(-1), dv.reshape(-1), scale, sizes)
    return dq, dk, dv


@parallel
def _pull_back(dy, q, k, v, mask, m, l, dq, dk, dv, scale, sizes):
    """Fill dq, dk and dv, one head of one picture after the other."""
    heads = m.size // sizes[1]
    tasks = min(heads, TASKS)
    for task in prange(tasks):
        first, last = heads * np.int64(task) // tasks, heads * (np.int64(task) + 1) // tasks
        _pull_back_heads(dy, q, k, v, mask, m, l, dq, dk, dv, np.float32(scale), sizes, first, last)


@allocates
def _pull_back_heads(dy, q, k, v, mask, m, l, dq, dk, dv, scale, sizes, begin, end):
    """Pull back some heads."""
    M, d, e = sizes[2], sizes[3], sizes[4]
    wide_d, wide_e = (d + NR - 1) // NR * NR, (e + NR - 1) // NR * NR
    K, V = room(padded(M) * padded(d)), room(padded(M) * padded(e))   # (M, d), (M, e)
    dK, dV = room(padded(M) * wide_d), room(padded(M) * wide_e)       # the same
    Q, do = room(NR * wide_d), room(NR * wide_e)
    Q_T, do_T, dQ_T = room(padded(d) * NR), room(padded(e) * NR), room(padded(d) * NR)
    P, dS = room(padded(M) * NR), room(padded(M) * NR)                # (M, NR)
    peak, inv_l = np.zeros(NR, np.float32), np.zeros(NR, np.float32)
    delta, factor = room(NR), np.full(NR, scale, np.float32)
    for head in range(begin, end):
        dK[:] = 0
        dV[:] = 0
        _pull_back_head(dy, q, k, v, mask, m, l, dq, dk, dv, scale, sizes, head, K, V, dK, dV, Q,
                        do, Q_T, do_T, dQ_T, P, dS, peak, inv_l, delta, factor)


@serial
def _pull_back_head(dy, q, k, v, mask, m, l, dq, dk, dv, scale, sizes, head, K, V, dK, dV, Q, do,
                    Q_T, do_T, dQ_T, P, dS, peak, inv_l, delta, factor):
    """Pull back one head of one picture, NR queries at a time."""
    h, N, M, d, e = sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]
    picture, nth = divmod(head, h)
    key_at, value_at = (picture * M * h + nth) * d, (picture * M * h + nth) * e
    wide_d, wide_e = (d + NR - 1) // NR * NR, (e + NR - 1) // NR * NR
    copy_rows(k, key_at, h * d, M, d, K, padded(d))
    copy_rows(v, value_at, h * e, M, e, V, padded(e))

    for first in range(0, N, NR):
        count = min(NR, N - first)
        row = (picture * N + first) * h + nth                         # of q and dy
        copy_rows(q, row * d, h * d, count, d, Q, wide_d)
        copy_rows(dy, row * e, h * e, count, e, do, wide_e)
        gather_columns(q, row * d, h * d, count, d, Q_T, 0)
        gather_columns(dy, row * e, h * e, count, e, do_T, 0)
        rescale(Q_T, 0, d, factor)
        for n in range(count):
            peak[n] = m[head * N + first + n]
            inv_l[n] = np.float32(1) / l[head * N + first + n]

        multiply(K, 0, padded(d), 1, Q_T, 0, NR, d, P, 0, NR, M, True)
        multiply(V, 0, padded(e), 1, do_T, 0, NR, e, dS, 0, NR, M, True)
        if mask.size:
            add_mask(mask, picture * sizes[5] + nth * sizes[6] + first * sizes[7], sizes, P, M,
                     count)
        _pull_back_softmax(P, dS, M, peak, inv_l, delta, scale)
        for j in range(0, M, Bc):
            multiply(K, j * padded(d), 1, padded(d), dS, j * NR, NR, min(Bc, M - j),
                     dQ_T, 0, NR, d, j == 0)
        for c in range(0, e, NR):
            multiply(P, 0, NR, 1, do, c, wide_e, count, dV, c, wide_e, M, False)
        for c in range(0, d, NR):
            multiply(dS, 0, NR, 1, Q, c, wide_d, count, dK, c, wide_d, M, False)
        scatter_columns(dQ_T, 0, count, d, dq, row * d, h * d)

    write_rows(dK, wide_d, M, d, dk, key_at, h * d)
    write_rows(dV, wide_e, M, e, dv, value_at, h * e)


@serial
def _pull_back_softmax(P, dS, rows, m, inv_l, delta, scale):
    """Turn scores into probabilities, and dP into ``scale * dS``; `delta` is room for NR numbers.

    Tiles are MR keys high: what is missing in the last one are zeros.
    """
    exp_rows(P, rows, m)
    rescale(P, 0, rows, inv_l)
    close_rows(P, rows, 0)
    close_rows(dS, rows, 0)
    sums = tile_zero()
    for r in range(0, rows, MR):
        sums = tile_plus_products(sums, P, r * NR, dS, r * NR, NR)
    tile_add_rows(sums, delta, 0)
    for c in range(0, NR, LANES):
        mean = vector_load(delta, c)
        for i in range(c, c + rows * NR, NR):
            ds = vector_load(P, i) * (vector_load(dS, i) - mean)
            vector_store(scale * ds, dS, i)
