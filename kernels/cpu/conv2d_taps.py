"""The gradient of a convolution in its weight, tap by tap: section 4 of kernels/README.md.

With the channels of x innermost, what tap (i, j) reads is a matrix, positions by channels, whose
rows stand one after the other in memory; only where it begins differs from tap to tap.  So ::

    dweight[:, :, i, j] = sum over pictures of dy x,       dy: (O, positions), x: (positions, C)

and nothing is copied for it but once, to bring the channels to the inside.  Pictures are padded and
split into phases in the layout of `conv2d_direct`, rows Wq apart; where rows have gaps dy gets
zeros.
"""
import numpy as np
from numba import prange

from tinydiff.kernels.cpu.conv2d_direct import output_size
from tinydiff.kernels.cpu.gemm import add_products
from tinydiff.kernels.cpu.jit import allocates, parallel, serial
from tinydiff.kernels.cpu.phases import pad_phases
from tinydiff.kernels.cpu.rows import clear, copy
from tinydiff.kernels.cpu.simd import LANES
from tinydiff.kernels.cpu.vectors import transpose

PIECE = 1 << 12                         # kernels that a task puts together


def backward_weight(dy, x, w_shape, stride, padding):
    """Return dweight and dbias, from contiguous float32 arrays."""
    (top, _), (left, _) = padding
    B, C, H, W = x.shape
    O, _, KH, KW = w_shape
    Ho, Wo = output_size(x.shape, w_shape, stride, padding)
    Hq, Wq = Ho + (KH - 1) // stride, Wo + (KW - 1) // stride
    last = np.empty((B, stride, stride, Hq * Wq, C), np.float32)      # channels last
    _channels_last(x.reshape(-1), last.reshape(-1), B, C, H, W, stride, top, left, Hq, Wq)
    K = (Ho - 1) * Wq + Wo                                            # positions
    rows = np.empty((B, O, K), np.float32)
    _open_gaps(dy.reshape(-1), rows.reshape(-1), B * O, Ho, Wo, Wq)

    taps = np.empty((KH, KW, O, C), np.float32)
    for i, j in np.ndindex(KH, KW):
        phase, place = i % stride * stride + j % stride, i // stride * Wq + j // stride
        first = (phase * Hq * Wq + place) * C
        _, dbias = add_products(
            rows.reshape(-1), K, 1, last.reshape(-1)[first:], C, 1, O, C, K, count=B,
            a_next=O * K, b_next=stride * stride * Hq * Wq * C, out=taps[i, j])
    dweight = np.empty(w_shape, np.float32)
    _taps_last(taps.reshape(-1), dweight.reshape(-1), KH * KW)
    return dweight, dbias


@parallel
def _channels_last(x, last, B, C, H, W, stride, top, left, Hq, Wq):
    blocks = (C + LANES - 1) // LANES
    for task in prange(B * blocks):
        n, block = divmod(np.int64(task), blocks)
        _turn(x, last, n, block * LANES, C, H, W, stride, top, left, Hq, Wq)


@allocates
def _turn(x, last, n, c, C, H, W, stride, top, left, Hq, Wq):
    """Write LANES channels of picture n, from channel c, next to each other."""
    size = stride * stride * Hq * Wq
    count = min(LANES, C - c)
    planes = np.empty(count * size, np.float32)
    pad_phases(x, (n * C + c) * H * W, planes, 0, 1, count, H, W, stride, top, left, Hq, Wq)
    whole = size // LANES * LANES if count == LANES else 0
    for p in range(0, whole, LANES):
        transpose(last, (n * size + p) * C + c, C, planes, p, size)
    for p in range(whole, size):
        for lane in range(count):
            last[(n * size + p) * C + c + lane] = planes[lane * size + p]


@parallel
def _open_gaps(dy, rows, count, Ho, Wo, Wq):
    for n in prange(count):
        _open(dy, rows, np.int64(n), Ho, Wo, Wq)


@serial
def _open(dy, rows, n, Ho, Wo, Wq):
    """Copy one channel of one picture, with zeros between its rows."""
    target = rows[n * ((Ho - 1) * Wq + Wo):]
    for a in range(Ho):
        copy(target[a * Wq:], dy[(n * Ho + a) * Wo:], Wo)
        if a < Ho - 1:
            clear(target[a * Wq + Wo:], Wq - Wo)


@parallel
def _taps_last(taps, dweight, T):
    size = taps.size // T
    for task in prange((size + PIECE - 1) // PIECE):
        _place(taps, dweight, T, size, np.int64(task) * PIECE)


@serial
def _place(taps, dweight, T, size, first):
    """Write kernels `first` ... tap after tap."""
    for i in range(first, min(first + PIECE, size)):
        for t in range(T):
            dweight[i * T + t] = taps[t * size + i]
