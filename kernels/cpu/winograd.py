"""Winograd's transforms for 4x4 outputs of a 3x3 convolution: section 5 of kernels/README.md.

A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015, arXiv:1509.09308,
Sec. 4.3.  A convolution multiplies two polynomials: evaluate both at enough points, multiply value
by value, and interpolate.  For 4 outputs of 3 taps (6 inputs) the points are 0, 1, -1, 2, -2 and
infinity::

    Y = Aᵀ [ (G g Gᵀ) * (Bᵀ d B) ] A          d: 6x6 pixels, g: 3x3 kernel, Y: 4x4 outputs

The product * is element by element: 36 multiplications in place of 16 * 9 = 144.  Summed over the
input channels it is 36 matrix products, one for each place xi of the 6x6 square ::

    M[xi] = U[xi] V[xi],     U[xi][o, c] from G g Gᵀ,  V[xi][c, t] from Bᵀ d B of tile t

The price is exactness: the numbers in Bᵀ and Aᵀ reach 5 and 8, sums cancel, and float32 rounding
errors grow about tenfold; see `tinydiff.use("precise")`.

The lanes of a vector are LANES neighbouring tiles, so all transforms below add whole vectors.  The
tiles are numbered along (picture, row of tiles, column of tiles).  Each transform is given room for
what passes through it, SCRATCH numbers.
"""
import numpy as np

from tinydiff.kernels.cpu.jit import inlined, serial
from tinydiff.kernels.cpu.simd import LANES, NR
from tinydiff.kernels.cpu.vectors import (
    gather_fours,
    join_fours,
    move,
    move_four,
    split_fours,
    transpose,
    vector_load,
    vector_store,
)

TILE = 4                                # outputs of a tile, in both directions
SIDE = 6                                # inputs of a tile: TILE + 3 - 1
PLACES = SIDE * SIDE
OB = 16                                 # rows of U that stand side by side: some tiles of sums
FOURS = PLACES * LANES                  # where, in a transform's scratch, its second part begins
SCRATCH = FOURS + max(8 * LANES, 9 * OB, LANES * OB)
GAP = LANES                             # numbers between the matrices of two places; see `apart`


@inlined
def apart(rows, columns):
    """Return how far the matrices of two places stand from each other, in numbers.

    Transforms write to all 36 places at a time.  Matrices are often a multiple of 4 KiB, and the
    cache has room for only a dozen lines that lie so far apart: hence the gap.
    """
    return rows * columns + GAP


@inlined
def bt(d0, d1, d2, d3, d4, d5):
    """Return Bᵀ d, the values of a polynomial at the six points."""
    two, four, five = np.float32(2), np.float32(4), np.float32(5)
    even, odd = d4 - four * d2, d3 - four * d1
    even2, odd2 = d4 - d2, two * (d3 - d1)
    return (four * d0 - five * d2 + d4, even + odd, even - odd, even2 + odd2, even2 - odd2,
            four * d1 - five * d3 + d5)


@inlined
def at(m0, m1, m2, m3, m4, m5):
    """Return Aᵀ m, the four outputs."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    sum1, difference1, sum2, difference2 = m1 + m2, m1 - m2, m3 + m4, m3 - m4
    return (m0 + sum1 + sum2, difference1 + two * difference2, sum1 + four * sum2,
            difference1 + eight * difference2 + m5)


@inlined
def a(y0, y1, y2, y3):
    """Return A y, the transpose of `at`: what four outputs' gradients say of the six values."""
    two, four, eight = np.float32(2), np.float32(4), np.float32(8)
    even, odd = y0 + y2, y1 + y3
    even2, odd2 = y0 + four * y2, two * y1 + eight * y3
    return y0, even + odd, even - odd, even2 + odd2, even2 - odd2, y3


@inlined
def g(g0, g1, g2):
    """Return G g, the values of the kernel's polynomial, divided as interpolation asks."""
    sixth, twelfth = np.float32(1 / 6), np.float32(1 / 12)
    even, odd = sixth * (g0 + g2), sixth * g1
    even2, odd2 = np.float32(1 / 24) * g0 + sixth * g2, twelfth * g1
    return (np.float32(0.25) * g0, np.float32(-1) * (even + odd), odd - even, even2 + odd2,
            even2 - odd2, g2)


@inlined
def gt(u0, u1, u2, u3, u4, u5):
    """Return Gᵀ u, the transpose of `g`."""
    sixth, twelfth = np.float32(1 / 6), np.float32(1 / 12)
    sum1, difference1, sum2, difference2 = u1 + u2, u2 - u1, u3 + u4, u3 - u4
    return (np.float32(0.25) * u0 - sixth * sum1 + np.float32(1 / 24) * sum2,
            sixth * difference1 + twelfth * difference2, sixth * (sum2 - sum1) + u5)


@inlined
def six(array, i, step):
    """Load six vectors, `step` apart."""
    return (vector_load(array, i), vector_load(array, i + step), vector_load(array, i + 2 * step),
            vector_load(array, i + 3 * step), vector_load(array, i + 4 * step),
            vector_load(array, i + 5 * step))


@serial
def transform_weights(weight, stride_m, stride_k, flip, M, first_m, first_k, channels, u,
                      place, stride, scratch):
    """Write U, (channels, OB) for each place, of OB rows from `first_m`, columns from `first_k`.

    Place xi begins at ``u[place + xi * stride:]``.  Rows and columns of the product stand
    `stride_m` and `stride_k` apart in `weight`; with `flip` the 3x3 kernels are turned by half a
    turn, as the gradient in x asks.
    """
    half, taps = scratch, scratch[FOURS:]
    taps[:] = np.float32(0)
    rows = min(OB, M - first_m)
    last = 8 if flip else 0                                           # the turned kernel's first
    for c in range(channels):
        start = first_m * stride_m + (first_k + c) * stride_k
        _gather_taps(weight, start, stride_m, rows, taps)
        for lane in range(0, OB, LANES):
            for j in range(3):
                column = g(vector_load(taps, abs(last - j) * OB + lane),
                           vector_load(taps, abs(last - 3 - j) * OB + lane),
                           vector_load(taps, abs(last - 6 - j) * OB + lane))
                for i, value in enumerate(column):
                    vector_store(value, half, (i * 3 + j) * LANES)
            for i in range(SIDE):
                row = g(vector_load(half, (i * 3) * LANES), vector_load(half, (i * 3 + 1) * LANES),
                        vector_load(half, (i * 3 + 2) * LANES))
                for j, value in enumerate(row):
                    xi = i * SIDE + j
                    vector_store(value, u, place + xi * stride + c * OB + lane)


@serial
def _gather_taps(weight, start, stride, rows, taps):
    """Write tap k of kernel m, which begins at ``weight[start + m * stride]``, to taps[k, m]."""
    done = 0
    if rows == OB and start + (OB - 1) * stride + LANES <= weight.size:
        for m in range(0, OB, LANES):
            transpose(taps, m, OB, weight, start + m * stride, stride)
        done = min(9, LANES)
    for m in range(rows):
        for k in range(done, 9):
            taps[k * OB + m] = weight[start + m * stride + k]


@serial
def plan_lines(first, tiles, side, C, H, W, top, left, th, tw, sources, targets, places):
    """Lay out what tiles `first` ... read: for each row of tiles, `side` lines (6 of x, 4 of dy).

    A line holds 4 tw + side - 4 numbers: what a row of tiles sees of one row of a picture.

    Fills `places` (NR): where each tile begins in the lines; and, for the lines that are not all
    zeros, `sources` and `targets`: where they come from in channel 0 and where they go.  Returns
    the number of those.
    """
    width = TILE * tw + side - TILE
    row = first // tw
    count = 0
    for nth in range((first + tiles - 1) // tw - row + 1):
        n, ty = (row + nth) // th, (row + nth) % th
        for r in range(side):
            h = TILE * ty + r - top
            if 0 <= h < H:
                sources[count] = (n * C * H + h) * W
                targets[count] = (nth * side + r) * width + left
                count += 1
    for t in range(NR):
        tile = first + min(t, tiles - 1)
        places[t] = (tile // tw - row) * side * width + tile % tw * TILE
    return count


@serial
def transform_input(x, start, W, sources, targets, count, places, tw, lines, scratch,
                    v, place, stride, width):
    """Write Bᵀ d B of `width` tiles: place xi to ``v[place + xi * stride:]``; see `plan_lines`.

    The picture's channel begins at ``x[start:]``.  `lines` holds zeros around what is copied here.
    """
    for k in range(count):
        move(lines, targets[k], x, start + sources[k], W)
    pitch = TILE * tw + 2
    together = tw % (LANES // 4) == 0                     # a vector's four tiles stand in one line
    half, L, q = scratch, LANES, LANES // 4
    for lane in range(0, width, LANES):
        for r in range(SIDE):
            down = r * pitch
            if together:
                p0, p1 = places[lane] + down, places[lane + q] + down
                p2, p3 = places[lane + 2 * q] + down, places[lane + 3 * q] + down
                d0, d1, d2, d3 = split_fours(lines, p0, p1, p2, p3)
                d4, d5, _, _ = split_fours(lines, p0 + 4, p1 + 4, p2 + 4, p3 + 4)
            else:
                d0, d1, d2, d3 = gather_fours(lines, places, lane, down)
                d4, d5, _, _ = gather_fours(lines, places, lane, down + 4)
            for j, value in enumerate(bt(d0, d1, d2, d3, d4, d5)):
                vector_store(value, half, (r * SIDE + j) * LANES)
        for j in range(SIDE):
            column = bt(*six(half, j * L, SIDE * L))
            for i, value in enumerate(column):
                vector_store(value, v, place + (i * SIDE + j) * stride + lane)


@serial
def plan_outputs(first, tiles, O, Ho, Wo, th, tw, places, rows):
    """Fill `places` (NR), where each tile begins in channel 0 of y, and `rows`, how many it has."""
    for t in range(NR):
        tile = first + min(t, tiles - 1)
        n, ty, tx = tile // tw // th, tile // tw % th, tile % tw
        places[t] = (n * O * Ho + TILE * ty) * Wo + TILE * tx
        rows[t] = min(TILE, Ho - TILE * ty) if t < tiles else 0


@serial
def transform_output(m, place, stride, bias, y, start, Wo, places, rows, tw, scratch):
    """Write Aᵀ m A + bias of NR tiles to the channel at ``y[start:]``; see `plan_outputs`."""
    together = tw % (LANES // 4) == 0 and Wo == TILE * tw
    half, fours = scratch, scratch[FOURS:]
    L, q = LANES, LANES // 4
    for lane in range(0, NR, LANES):
        if rows[lane] == 0:
            break
        for j in range(SIDE):
            p = place + j * stride + lane
            column = at(*six(m, p, SIDE * stride))
            for i, value in enumerate(column):
                vector_store(value, half, (i * SIDE + j) * LANES)
        for r in range(TILE):
            i = r * SIDE * LANES
            y0, y1, y2, y3 = at(*six(half, i, L))
            for k, value in enumerate(join_fours(y0, y1, y2, y3)):
                value = bias + value
                if together and r < rows[lane + k * q]:
                    vector_store(value, y, start + places[lane + k * q] + r * Wo)
                else:
                    vector_store(value, fours, k * LANES)
            if not together:
                for t in range(LANES):
                    if r < rows[lane + t]:
                        target = start + places[lane + t] + r * Wo
                        columns = min(TILE, Wo - places[lane + t] % Wo)
                        if columns == TILE:
                            move_four(y, target, fours, TILE * t)
                        else:
                            move(y, target, fours, TILE * t, columns)


@serial
def transform_gradient(dy, start, Wo, sources, targets, count, places, tw, lines, scratch,
                       m, place, stride):
    """Write A dY Aᵀ of NR tiles: place xi to ``m[place + xi * stride:]``, NR numbers."""
    for k in range(count):
        move(lines, targets[k], dy, start + sources[k], Wo)
    width, half, L = TILE * tw, scratch, LANES
    for lane in range(0, NR, LANES):
        for r in range(TILE):
            y0, y1, y2, y3 = gather_fours(lines, places, lane, r * width)
            for j, value in enumerate(a(y0, y1, y2, y3)):
                vector_store(value, half, (r * SIDE + j) * L)
        for j in range(SIDE):
            column = a(vector_load(half, j * L), vector_load(half, (SIDE + j) * L),
                       vector_load(half, (2 * SIDE + j) * L), vector_load(half, (3 * SIDE + j) * L))
            for i, value in enumerate(column):
                vector_store(value, m, place + (i * SIDE + j) * stride + lane)


@serial
def transform_back(du, row, stride, dweight, start, channels, scratch):
    """Write Gᵀ dU G to ``dweight[start:]``, (channels, 3, 3), from ``du[row + xi * stride:]``."""
    half, taps = scratch, scratch[FOURS:]
    L = LANES
    for c in range(0, channels, LANES):
        for j in range(SIDE):
            p = row + c + j * stride
            column = gt(*six(du, p, SIDE * stride))
            for i, value in enumerate(column):
                vector_store(value, half, (i * SIDE + j) * L)
        for r in range(3):
            i = r * SIDE * L
            values = gt(*six(half, i, L))
            for j, value in enumerate(values):
                vector_store(value, taps, (r * 3 + j) * L)
        for k in range(min(LANES, channels - c)):
            for tap in range(9):
                dweight[start + (c + k) * 9 + tap] = taps[tap * L + k]
