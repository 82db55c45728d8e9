"""Versions 1 and 2 of the convolution kernels in Numba: slower, but a debugger stops inside.

The twins of conv2d.cu, conv2d_dx.cu and conv2d_dweight.cu, line for line.  With
NUMBA_ENABLE_CUDASIM=1 in the environment, set before Numba is first imported, they run in Numba's
simulator: each CUDA thread is a thread of Python, and no device is needed.  To stop in one of
them, write two lines into a kernel, or let `tinydiff.kernels.stepping` do it::

    if p == 1 and q == 2:
        breakpoint()

The variables have the formula's letters: y[n, o, p, q] is made from x[n, c, u, v].
"""
import numpy as np
from numba import cuda, float32

from tinydiff.kernels.launch import ceil_div

# ---- y ----


@cuda.jit
def conv2d_v1_naive(x, weight, bias, y, stride, top, left):
    """v1. One thread per output. Every factor comes from global memory."""
    q, p, plane = cuda.grid(3)
    B, C, H, W = x.shape
    O, _, KH, KW = weight.shape
    if q >= y.shape[3] or p >= y.shape[2] or plane >= B * O:
        return
    n, o = plane // O, plane % O

    total = bias[o]
    for c in range(C):
        of_c = float32(0.0)
        for i in range(KH):
            for j in range(KW):
                u, v = stride * p + i - top, stride * q + j - left
                if 0 <= u < H and 0 <= v < W:
                    of_c += x[n, c, u, v] * weight[o, c, i, j]
        total += of_c
    y[n, o, p, q] = total


@cuda.jit
def conv2d_v2_tiled(x, weight, bias, y, stride, top, left):
    """v2. As v1, but the block first copies its patch of x, with the halo, to shared memory."""
    patch = cuda.shared.array(0, float32)                       # (rows, columns)
    tile, tx, ty = cuda.blockDim.x, cuda.threadIdx.x, cuda.threadIdx.y
    q, p, plane = cuda.grid(3)
    _, C, H, W = x.shape
    O, _, KH, KW = weight.shape
    n, o = plane // O, plane % O
    rows, columns = stride * (tile - 1) + KH, stride * (tile - 1) + KW
    first_u = stride * cuda.blockIdx.y * tile - top             # row    of x at patch[0, .]
    first_v = stride * cuda.blockIdx.x * tile - left            # column of x at patch[., 0]

    total = bias[o]
    for c in range(C):
        for r in range(ty, rows, tile):
            for s in range(tx, columns, tile):
                u, v = first_u + r, first_v + s
                inside = 0 <= u < H and 0 <= v < W
                patch[r * columns + s] = x[n, c, u, v] if inside else 0.0
        cuda.syncthreads()                                      # the patch is complete

        of_c = float32(0.0)
        for i in range(KH):
            for j in range(KW):
                seen = patch[(stride * ty + i) * columns + stride * tx + j]
                of_c += seen * weight[o, c, i, j]
        total += of_c
        cuda.syncthreads()                                      # nobody still reads it
    if q < y.shape[3] and p < y.shape[2]:                       # now: all must reach the barriers
        y[n, o, p, q] = total


# ---- dx ----


@cuda.jit
def conv2d_dx_v1_naive(dy, weight, dx, stride, top, left):
    """v1. One thread per entry of dx."""
    v, u, plane = cuda.grid(3)
    B, C, H, W = dx.shape
    O, _, KH, KW = weight.shape
    if v >= W or u >= H or plane >= B * C:
        return
    n, c = plane // C, plane % C

    total = float32(0.0)
    for o in range(O):
        of_o = float32(0.0)
        for i in range(KH):
            for j in range(KW):
                p, q = (u + top - i) // stride, (v + left - j) // stride
                whole = stride * p == u + top - i and stride * q == v + left - j
                if whole and 0 <= p < dy.shape[2] and 0 <= q < dy.shape[3]:
                    of_o += dy[n, o, p, q] * weight[o, c, i, j]
        total += of_o
    dx[n, c, u, v] = total


@cuda.jit
def conv2d_dx_v2_tiled(dy, weight, dx, stride, top, left):
    """v2. As v1, but the block first copies the windows that see its entries to shared memory."""
    patch = cuda.shared.array(0, float32)                       # (rows, columns)
    tile, tx, ty = cuda.blockDim.x, cuda.threadIdx.x, cuda.threadIdx.y
    v, u, plane = cuda.grid(3)
    _, C, H, W = dx.shape
    O, _, KH, KW = weight.shape
    n, c = plane // C, plane % C
    rows, columns = (tile + KH - 2) // stride + 2, (tile + KW - 2) // stride + 2
    first_p = (cuda.blockIdx.y * tile + top - (KH - 1)) // stride
    first_q = (cuda.blockIdx.x * tile + left - (KW - 1)) // stride

    total = float32(0.0)
    for o in range(O):
        for r in range(ty, rows, tile):
            for s in range(tx, columns, tile):
                p, q = first_p + r, first_q + s
                inside = 0 <= p < dy.shape[2] and 0 <= q < dy.shape[3]
                patch[r * columns + s] = dy[n, o, p, q] if inside else 0.0
        cuda.syncthreads()                                      # the patch is complete

        of_o = float32(0.0)
        for i in range(KH):
            for j in range(KW):
                p, q = (u + top - i) // stride, (v + left - j) // stride
                if stride * p == u + top - i and stride * q == v + left - j:
                    of_o += patch[(p - first_p) * columns + q - first_q] * weight[o, c, i, j]
        total += of_o
        cuda.syncthreads()                                      # nobody still reads it
    if v < W and u < H:                                         # now: all must reach the barriers
        dx[n, c, u, v] = total


# ---- dweight ----


@cuda.jit
def conv2d_dweight_v1_naive(dy, x, dweight, stride, top, left):
    """v1. One thread per weight; m counts the columns (c, i, j)."""
    m, o = cuda.grid(2)
    O, C, KH, KW = dweight.shape
    B, _, H, W = x.shape
    if m >= C * KH * KW or o >= O:
        return
    c, i, j = m // KW // KH, m // KW % KH, m % KW

    total = float32(0.0)
    for n in range(B):
        for p in range(dy.shape[2]):
            of_p = float32(0.0)                                 # one row of the picture
            for q in range(dy.shape[3]):
                u, v = stride * p + i - top, stride * q + j - left
                if 0 <= u < H and 0 <= v < W:
                    of_p += dy[n, o, p, q] * x[n, c, u, v]
            total += of_p
    dweight[o, c, i, j] = total


@cuda.jit
def conv2d_dweight_v2_tiled(dy, x, dweight, stride, top, left):
    """v2. A block makes tile x tile weights, from tile pixels k = (n, p, q) at a time."""
    shared = cuda.shared.array(0, float32)                      # dy's tile, x's: [o | m][pixel]
    tile, tx, ty = cuda.blockDim.x, cuda.threadIdx.x, cuda.threadIdx.y
    row, xs = tile + 1, tile * (tile + 1)                       # + 1: columns in different banks
    m, o = cuda.grid(2)
    O, C, KH, KW = dweight.shape
    B, _, H, W = x.shape
    _, _, Ho, Wo = dy.shape
    M, K = C * KH * KW, B * Ho * Wo
    staged = cuda.blockIdx.x * tile + ty                        # the column that this thread stages
    c, i, j = staged // KW // KH, staged // KW % KH, staged % KW

    total = float32(0.0)
    for k0 in range(0, K, tile):
        k = k0 + tx                                             # the pixel that it stages, of both
        n, p, q = k // Wo // Ho, k // Wo % Ho, k % Wo
        u, v = stride * p + i - top, stride * q + j - left
        inside = k < K and staged < M and 0 <= u < H and 0 <= v < W
        shared[ty * row + tx] = dy[n, o, p, q] if k < K and o < O else 0.0
        shared[xs + ty * row + tx] = x[n, c, u, v] if inside else 0.0
        cuda.syncthreads()                                      # both tiles are complete

        of_tile = float32(0.0)
        for k in range(tile):
            of_tile += shared[ty * row + k] * shared[xs + tx * row + k]
        total += of_tile
        cuda.syncthreads()                                      # nobody still reads them
    if m < M and o < O:                                         # now: all must reach the barriers
        dweight[o, m // KW // KH, m // KW % KH, m % KW] = total


# ---- launches ----

VERSIONS = {1: (conv2d_v1_naive, conv2d_dx_v1_naive, conv2d_dweight_v1_naive),
            2: (conv2d_v2_tiled, conv2d_dx_v2_tiled, conv2d_dweight_v2_tiled)}


def forward(x, weight, bias=None, stride=1, padding=1, version=2, tile=4):
    """Return y, as `tinydiff.ops.conv2d_forward` does.

    Parameters
    ----------
    x : (B, C, H, W) ndarray
    weight : (O, C, KH, KW) ndarray
    bias : (O,) ndarray, optional
    stride : int, default 1
    padding : int, default 1
        Pixels of zeros on all four sides.
    version : {1, 2}, default 2
    tile : int, default 4
        Threads per block side; 16 is better on a device, 4 in the simulator.

    Returns
    -------
    y : (B, O, Ho, Wo) ndarray
    """
    (B, _, H, W), (O, _, KH, KW) = x.shape, weight.shape
    Ho, Wo = ((size + 2 * padding - K) // stride + 1 for size, K in ((H, KH), (W, KW)))
    y = np.full((B, O, Ho, Wo), np.nan, np.float32)
    bias = np.zeros(O, np.float32) if bias is None else bias
    block = (tile, tile, 1)                                     # one thread per output
    grid = (ceil_div(Wo, tile), ceil_div(Ho, tile), B * O)      # one block per tile per plane
    side = stride * (tile - 1)
    kernel, _, _ = VERSIONS[version]
    shared = 4 * (side + KH) * (side + KW)
    kernel[grid, block, 0, shared](x, weight, bias, y, stride, padding, padding)
    return y


def backward(dy, x, weight, stride=1, padding=1, version=2, tile=4):
    """Return dx and dweight, as `tinydiff.ops.conv2d_backward` does.

    Parameters
    ----------
    dy : (B, O, Ho, Wo) ndarray
    x, weight, stride, padding, version, tile
        As for `forward`.

    Returns
    -------
    dx : (B, C, H, W) ndarray
    dweight : (O, C, KH, KW) ndarray
    """
    (B, C, H, W), (O, _, KH, KW) = x.shape, weight.shape
    dx, dweight = np.full_like(x, np.nan), np.full_like(weight, np.nan)
    _, to_dx, to_dweight = VERSIONS[version]

    block = (tile, tile, 1)                                     # one thread per entry of dx
    grid = (ceil_div(W, tile), ceil_div(H, tile), B * C)        # one block per tile per plane
    patch = ((tile + KH - 2) // stride + 2) * ((tile + KW - 2) // stride + 2)
    to_dx[grid, block, 0, 4 * patch](dy, weight, dx, stride, padding, padding)

    block = (tile, tile)                                        # one thread per weight
    grid = (ceil_div(C * KH * KW, tile), ceil_div(O, tile))     # one block per tile x tile weights
    to_dweight[grid, block, 0, 4 * 2 * tile * (tile + 1)](dy, x, dweight, stride, padding, padding)
    return dx, dweight
