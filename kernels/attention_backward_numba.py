"""The backward pass of attention in Numba: the twins of attention_backward.cu, versions 1 and 2.

How to stop in a kernel, and where it differs from its .cu file: see attention_numba.py.
"""
import math

import numpy as np
from numba import cuda, float32

from tinydiff.kernels.attention_numba import (
    ONE,
    PART,
    ZERO,
    apart,
    attention_v1_rows,
    grid,
)
from tinydiff.kernels.launch import ceil_div

# ---- version 1: a thread for each number ----


@cuda.jit
def attention_v1_dscores(p, v, o, do, ds):
    """v1. ``ds[n, m] = p[n, m] do[n] . (v[m] - o[n])``, one thread per score."""
    m, n, plane = cuda.grid(3)
    B, N, heads, E = o.shape
    if m >= v.shape[1] or n >= N or plane >= B * heads:
        return
    b, head = plane // heads, plane % heads

    dp = ZERO
    for c in range(E):
        dp += do[b, n, head, c] * (v[b, m, head, c] - o[b, n, head, c])
    ds[b, head, n, m] = p[b, head, n, m] * dp


@cuda.jit
def attention_v1_columns(p, x, y, factor):
    """v1. ``y[m] = factor * sum_n p[n, m] x[n]``, one thread per number: dk, and dv."""
    c, m, plane = cuda.grid(3)
    B, M, heads, width = y.shape
    if c >= width or m >= M or plane >= B * heads:
        return
    b, head = plane // heads, plane % heads

    total = ZERO
    for n0 in range(0, x.shape[1], PART):
        part = ZERO
        for n in range(n0, min(n0 + PART, x.shape[1])):
            part += p[b, head, n, m] * x[b, n, head, c]
        total += part
    y[b, m, head, c] = factor * total


# ---- version 2: tiles, and the scores once more ----


@cuda.jit
def attention_v2_delta(o, do, delta):
    """v2. ``delta[n] = do[n] . o[n]``, one thread per query and head."""
    n, plane = cuda.grid(2)
    B, N, heads, E = o.shape
    if n >= N or plane >= B * heads:
        return
    b, head = plane // heads, plane % heads

    total = ZERO
    for c in range(E):
        total += do[b, n, head, c] * o[b, n, head, c]
    delta[b, head, n] = total


@cuda.jit
def attention_v2_dq(q, k, v, mask, do, lse, delta, dq, scale):
    """v2. A block keeps some queries, and passes by all keys."""
    shared = cuda.shared.array(0, float32)
    tile, tx, ty = cuda.blockDim.x, cuda.threadIdx.x, cuda.threadIdx.y
    N, D, M, E = q.shape[1], q.shape[3], v.shape[1], v.shape[3]
    Q, rest = shared[:tile * D], shared[tile * D:]              # (tile, D)
    dO, rest = rest[:tile * E], rest[tile * E:]                 # (tile, E)
    K, rest = rest[:tile * D], rest[tile * D:]                  # (tile, D)
    V, rest = rest[:tile * E], rest[tile * E:]                  # (tile, E)
    dQ, dS = rest[:tile * D], rest[tile * D:]                   # (tile, D), (tile, tile)
    b, head = cuda.blockIdx.z, cuda.blockIdx.y
    n = cuda.blockIdx.x * tile + ty

    for c in range(tx, D, tile):
        Q[ty * D + c] = scale * q[b, n, head, c] if n < N else ZERO
        dQ[ty * D + c] = ZERO                                   # only this thread uses it
    for c in range(tx, E, tile):
        dO[ty * E + c] = do[b, n, head, c] if n < N else ZERO
    for m0 in range(0, M, tile):
        for c in range(tx, D, tile):
            K[ty * D + c] = k[b, m0 + ty, head, c] if m0 + ty < M else ZERO
        for c in range(tx, E, tile):
            V[ty * E + c] = v[b, m0 + ty, head, c] if m0 + ty < M else ZERO
        cuda.syncthreads()                                      # K, V, at first Q, dO, are complete

        s, dp, m = ZERO, ZERO, m0 + tx
        for c in range(D):
            s += Q[ty * D + c] * K[tx * D + c]
        for c in range(E):
            dp += dO[ty * E + c] * V[tx * E + c]
        ds = ZERO
        if n < N and m < M:
            p = math.exp(s + mask[b, head, n, m] - lse[b, head, n])
            ds = p * (dp - delta[b, head, n])
        dS[ty * tile + tx] = ds
        cuda.syncthreads()                                      # dS is complete

        for c in range(tx, D, tile):
            part = ZERO
            for j in range(tile):
                part += dS[ty * tile + j] * K[j * D + c]
            dQ[ty * D + c] += part
        cuda.syncthreads()                                      # nobody still reads K, V, dS

    if n < N:                                                   # now: all must reach the barriers
        for c in range(tx, D, tile):
            dq[b, n, head, c] = scale * dQ[ty * D + c]


@cuda.jit
def attention_v2_dk_dv(q, k, v, mask, do, lse, delta, dk, dv, scale):
    """v2. A block keeps some keys, and passes by all queries: rows are keys, columns queries."""
    shared = cuda.shared.array(0, float32)
    tile, tx, ty = cuda.blockDim.x, cuda.threadIdx.x, cuda.threadIdx.y
    N, D, M, E = q.shape[1], q.shape[3], v.shape[1], v.shape[3]
    K, rest = shared[:tile * D], shared[tile * D:]              # (tile, D)
    V, rest = rest[:tile * E], rest[tile * E:]                  # (tile, E)
    Q, rest = rest[:tile * D], rest[tile * D:]                  # (tile, D)
    dO, rest = rest[:tile * E], rest[tile * E:]                 # (tile, E)
    dK, rest = rest[:tile * D], rest[tile * D:]                 # (tile, D)
    dV, rest = rest[:tile * E], rest[tile * E:]                 # (tile, E)
    P, dS = rest[:tile * tile], rest[tile * tile:]              # (tile, tile)
    b, head = cuda.blockIdx.z, cuda.blockIdx.y
    m = cuda.blockIdx.x * tile + ty

    for c in range(tx, D, tile):
        K[ty * D + c] = k[b, m, head, c] if m < M else ZERO
        dK[ty * D + c] = ZERO                                   # only this thread uses it
    for c in range(tx, E, tile):
        V[ty * E + c] = v[b, m, head, c] if m < M else ZERO
        dV[ty * E + c] = ZERO
    for n0 in range(0, N, tile):
        for c in range(tx, D, tile):
            Q[ty * D + c] = scale * q[b, n0 + ty, head, c] if n0 + ty < N else ZERO
        for c in range(tx, E, tile):
            dO[ty * E + c] = do[b, n0 + ty, head, c] if n0 + ty < N else ZERO
        cuda.syncthreads()                                      # Q, dO, at first K, V, are complete

        s, dp, n = ZERO, ZERO, n0 + tx
        for c in range(D):
            s += K[ty * D + c] * Q[tx * D + c]
        for c in range(E):
            dp += V[ty * E + c] * dO[tx * E + c]
        p, ds = ZERO, ZERO
        if n < N and m < M:
            p = math.exp(s + mask[b, head, n, m] - lse[b, head, n])
            ds = p * (dp - delta[b, head, n])
        P[ty * tile + tx], dS[ty * tile + tx] = p, ds
        cuda.syncthreads()                                      # P and dS are complete

        for c in range(tx, E, tile):
            part = ZERO
            for j in range(tile):
                part += P[ty * tile + j] * dO[j * E + c]
            dV[ty * E + c] += part
        for c in range(tx, D, tile):
            part = ZERO
            for j in range(tile):
                part += dS[ty * tile + j] * Q[j * D + c]
            dK[ty * D + c] += part
        cuda.syncthreads()                                      # nobody still reads Q, dO, P, dS

    if m < M:                                                   # now: all must reach the barriers
        for c in range(tx, D, tile):
            dk[b, m, head, c] = dK[ty * D + c]                  # Q had the factor scale
        for c in range(tx, E, tile):
            dv[b, m, head, c] = dV[ty * E + c]


# ---- launches ----


def backward(do, q, k, v, o, statistics, num_heads, mask=None, scale=None, version=2, tile=4):
    """Run the backward kernels of `version`: dq, dk and dv, of the shapes of q, k and v."""
    shapes = q.shape, k.shape, v.shape
    q, k, v, mask, scale = apart(q, k, v, num_heads, mask, scale)
    (B, N, heads, D), (_, M, _, E) = q.shape, v.shape
    o, do = o.reshape(B, N, heads, E), do.reshape(B, N, heads, E)
    dq, dk, dv = (np.full_like(x, np.nan) for x in (q, k, v))
    block = (tile, tile)
    if version == 1:
        ds = np.full_like(statistics, np.nan)
        attention_v1_dscores[grid(M, N, B * heads, tile), block](statistics, v, o, do, ds)
        attention_v1_rows[grid(D, N, B * heads, tile), block](ds, k, dq, scale)
        attention_v1_columns[grid(D, M, B * heads, tile), block](ds, q, dk, scale)
        attention_v1_columns[grid(E, M, B * heads, tile), block](statistics, do, dv, ONE)
    else:
        delta = np.full_like(statistics, np.nan)
        attention_v2_delta[(ceil_div(N, tile), B * heads), (tile, 1)](o, do, delta)
        given = q, k, v, mask, do, statistics, delta
        attention_v2_dq[(ceil_div(N, tile), heads, B), block, 0,
                        4 * tile * (3 * D + 2 * E + tile)](*given, dq, scale)
        attention_v2_dk_dv[(ceil_div(M, tile), heads, B), block, 0,
                           4 * tile * (3 * D + 3 * E + 2 * tile)](*given, dk, dv, scale)
    return tuple(x.reshape(shape) for x, shape in zip((dq, dk, dv), shapes, strict=True))
