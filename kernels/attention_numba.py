"""Versions 1 and 2 of the attention kernels in Numba: slower, but a debugger stops inside.

The twins of attention.cu; those of attention_backward.cu are in attention_backward_numba.py.  With
NUMBA_ENABLE_CUDASIM=1 in the environment, set before Numba is first imported, they run in Numba's
simulator: each CUDA thread is a thread of Python, and no device is needed.  To stop in one of them,
write two lines into a kernel, or let `tinydiff.kernels.stepping` do it::

    if n == 2 and m == 1:
        breakpoint()

Version 2 differs from its .cu file in two points.  A thread has one score of a tile, not sixteen,
so that there is one of everything to look at.  And the simulator has no shuffles: what the threads
of a row tell each other goes through shared memory, between barriers.

Arrays have their heads apart: q is (B, N, heads, D), k (B, M, heads, D), v (B, M, heads, E); mask
is (B, heads, N, M).
"""
import math

import numpy as np
from numba import cuda, float32

from tinydiff.kernels.launch import ceil_div

LOWEST = float32(np.finfo(np.float32).min)
ZERO, ONE, NOTHING = float32(0), float32(1), float32(-np.inf)
PART = 64                               # a sum has no more terms in a row

# ---- version 1: a thread for each number ----


@cuda.jit
def attention_v1_scores(q, k, mask, s, scale):
    """v1. One thread per score."""
    m, n, plane = cuda.grid(3)
    B, N, heads, D = q.shape
    if m >= k.shape[1] or n >= N or plane >= B * heads:
        return
    b, head = plane // heads, plane % heads

    dot = ZERO
    for c in range(D):
        dot += scale * q[b, n, head, c] * k[b, m, head, c]
    s[b, head, n, m] = dot + mask[b, head, n, m]


@cuda.jit
def attention_v1_softmax(s):
    """v1. One thread per row of s, which becomes p."""
    row = cuda.grid(1)
    B, heads, N, M = s.shape
    if row >= B * heads * N:
        return
    p = s[row // N // heads, row // N % heads, row % N]

    largest, total = LOWEST, ZERO
    for m in range(M):
        largest = max(largest, p[m])
    for m0 in range(0, M, PART):
        part = ZERO
        for m in range(m0, min(m0 + PART, M)):
            p[m] = math.exp(p[m] - largest)
            part += p[m]
        total += part
    inverse = ONE / total if total > ZERO else ZERO             # 0: may read nothing
    for m in range(M):
        p[m] *= inverse


@cuda.jit
def attention_v1_rows(p, x, y, factor):
    """v1. ``y[n] = factor * sum_m p[n, m] x[m]``, one thread per number: o, and dq."""
    c, n, plane = cuda.grid(3)
    B, N, heads, width = y.shape
    if c >= width or n >= N or plane >= B * heads:
        return
    b, head = plane // heads, plane % heads

    total = ZERO
    for m0 in range(0, x.shape[1], PART):
        part = ZERO
        for m in range(m0, min(m0 + PART, x.shape[1])):
            part += p[b, head, n, m] * x[b, m, head, c]
        total += part
    y[b, n, head, c] = factor * total


# ---- version 2: tiles, and a softmax while the scores come in ----


@cuda.jit
def attention_v2_tiled(q, k, v, mask, o, lse, scale):
    """v2. A block takes some queries past all keys; thread (tx, ty) has one score of a tile."""
    shared = cuda.shared.array(0, float32)
    tile, tx, ty = cuda.blockDim.x, cuda.threadIdx.x, cuda.threadIdx.y
    N, D, M, E = q.shape[1], q.shape[3], v.shape[1], v.shape[3]
    Q, rest = shared[:tile * D], shared[tile * D:]              # (tile, D)
    K, rest = rest[:tile * D], rest[tile * D:]                  # (tile, D)
    V, rest = rest[:tile * E], rest[tile * E:]                  # (tile, E)
    O, rest = rest[:tile * E], rest[tile * E:]                  # (tile, E)
    S, P = rest[:tile * tile], rest[tile * tile:]               # (tile, tile)
    b, head = cuda.blockIdx.z, cuda.blockIdx.y
    n = cuda.blockIdx.x * tile + ty

    for c in range(tx, D, tile):
        Q[ty * D + c] = scale * q[b, n, head, c] if n < N else ZERO
    for c in range(tx, E, tile):
        O[ty * E + c] = ZERO                                    # only this thread uses it
    largest, total = LOWEST, ZERO                               # m and l of the paper
    for m0 in range(0, M, tile):
        for c in range(tx, D, tile):
            K[ty * D + c] = k[b, m0 + ty, head, c] if m0 + ty < M else ZERO
        for c in range(tx, E, tile):
            V[ty * E + c] = v[b, m0 + ty, head, c] if m0 + ty < M else ZERO
        cuda.syncthreads()                                      # K, V, at first Q, are complete

        s, m = ZERO, m0 + tx
        for c in range(D):
            s += Q[ty * D + c] * K[tx * D + c]
        if m >= M:
            s = NOTHING
        elif n < N:
            s += mask[b, head, n, m]
        S[ty * tile + tx] = s
        cuda.syncthreads()                                      # the scores are there

        before = largest
        for j in range(tile):
            largest = max(largest, S[ty * tile + j])
        alpha = math.exp(before - largest)
        P[ty * tile + tx] = math.exp(s - largest)
        cuda.syncthreads()                                      # P is complete

        part = ZERO
        for j in range(tile):
            part += P[ty * tile + j]
        total = alpha * total + part
        for c in range(tx, E, tile):
            part = ZERO
            for j in range(tile):
                part += P[ty * tile + j] * V[j * E + c]
            O[ty * E + c] = alpha * O[ty * E + c] + part
        cuda.syncthreads()                                      # nobody still reads K, V, P

    if n < N:                                                   # now: all must reach the barriers
        inverse = ONE / total if total > ZERO else ZERO         # 0: may read nothing
        for c in range(tx, E, tile):
            o[b, n, head, c] = inverse * O[ty * E + c]
        if tx == 0:
            lse[b, head, n] = largest + math.log(total) if total > ZERO else math.inf


# ---- launches ----

VERSIONS = 1, 2


def forward(q, k, v, num_heads, mask=None, scale=None, version=2, tile=4):
    """Run the forward kernels of `version` in blocks of `tile` x `tile` threads.

    Returns
    -------
    o : (B, N, heads * E) ndarray
    statistics : ndarray
        The probabilities of version 1, (B, heads, N, M); lse of version 2, (B, heads, N).
    """
    q, k, v, mask, scale = apart(q, k, v, num_heads, mask, scale)
    (B, N, heads, D), (_, M, _, E) = q.shape, v.shape
    o = np.full((B, N, heads, E), np.nan, np.float32)
    block = (tile, tile)
    if version == 1:
        s = np.full((B, heads, N, M), np.nan, np.float32)
        attention_v1_scores[grid(M, N, B * heads, tile), block](q, k, mask, s, scale)
        attention_v1_softmax[ceil_div(B * heads * N, tile), tile](s)
        attention_v1_rows[grid(E, N, B * heads, tile), block](s, v, o, ONE)
        statistics = s
    else:
        statistics = np.full((B, heads, N), np.nan, np.float32)
        shared = 4 * tile * (2 * D + 2 * E + 2 * tile)
        attention_v2_tiled[(ceil_div(N, tile), heads, B), block, 0, shared](
            q, k, v, mask, o, statistics, scale)
    return o.reshape(B, N, heads * E), statistics


def grid(columns, rows, planes, tile):
    """Return the grid of one thread per number."""
    return ceil_div(columns, tile), ceil_div(rows, tile), planes


def apart(q, k, v, heads, mask, scale):
    """Return q, k and v with their heads apart, the whole mask, and the scale in float32."""
    (B, N, D), M = q.shape, k.shape[1]
    full = np.zeros((B, heads, N, M), np.float32)
    if mask is not None:
        full += mask
    scale = float32((D // heads) ** -0.5 if scale is None else scale)
    return *(x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v)), full, scale
