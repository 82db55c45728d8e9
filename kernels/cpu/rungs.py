"""The lower rungs of the ladder: what the kernels began as, kept to be measured against.

Products C = A B and 3x3 convolutions as the loops of their definitions, compiled with the same
options as the kernels; `tinydiff.bench.ladder` times them.  Nothing else calls them.
"""
import numpy as np

from tinydiff.kernels.cpu.jit import serial
from tinydiff.kernels.cpu.simd import MR, NR, tile_outer, tile_store, tile_zero


@serial
def product_plain(a, b, c):
    """Compute one sum after another; k runs down a column of b, a cache line for each number."""
    M, N = c.shape
    for m in range(M):
        for n in range(N):
            total = np.float32(0)
            for k in range(a.shape[1]):
                total += a[m, k] * b[k, n]
            c[m, n] = total


@serial
def product_rows(a, b, c):
    """Do the same with n innermost, along rows of b and c: code for vectors, but c is in memory."""
    M, N = c.shape
    for m in range(M):
        c[m] = 0
        for k in range(a.shape[1]):
            for n in range(N):
                c[m, n] += a[m, k] * b[k, n]


@serial
def product_tiles(a, b, c, M, N, K):
    """Hold MR x NR sums in registers; flat arrays, M and N whole tiles, b read where it stands."""
    for m in range(0, M, MR):
        for n in range(0, N, NR):
            tile = tile_zero()
            for k in range(K):
                tile = tile_outer(tile, a, m * K + k, K, b, k * N + n)
            tile_store(tile, c, m * N + n, N)


@serial
def convolve(x_padded, weight, y):
    """Fill y, (B, O, H, W), by the formula of `tinydiff.ops.conv`, with stride 1 and no bias."""
    B, O, H, W = y.shape
    _, C, KH, KW = weight.shape
    for b, o, p, q in np.ndindex(B, O, H, W):
        total = np.float32(0)
        for c in range(C):
            for i in range(KH):
                for j in range(KW):
                    total += x_padded[b, c, p + i, q + j] * weight[o, c, i, j]
        y[b, o, p, q] = total


@serial
def convolve_backward_x(dy, weight, dx_padded):
    """Send each number of dy back along the products that made its output; `dx_padded` is zero."""
    B, O, H, W = dy.shape
    _, C, KH, KW = weight.shape
    for b, o, p, q in np.ndindex(B, O, H, W):
        for c in range(C):
            for i in range(KH):
                for j in range(KW):
                    dx_padded[b, c, p + i, q + j] += dy[b, o, p, q] * weight[o, c, i, j]


@serial
def convolve_backward_weight(dy, x_padded, dweight):
    """Do the same for the other factor; `dweight` is zero."""
    B, O, H, W = dy.shape
    _, C, KH, KW = dweight.shape
    for b, o, p, q in np.ndindex(B, O, H, W):
        for c in range(C):
            for i in range(KH):
                for j in range(KW):
                    dweight[o, c, i, j] += dy[b, o, p, q] * x_padded[b, c, p + i, q + j]
