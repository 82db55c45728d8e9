"""What attention's two directions share: one matrix product, and how a head becomes tiles.

Every array here is flat, and a matrix in it is a place and the distance between its rows.
"""
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from tinydiff.kernels.cpu.expf import exp
from tinydiff.kernels.cpu.jit import serial
from tinydiff.kernels.cpu.simd import (
    I64,
    LANES,
    MR,
    NR,
    address,
    fma,
    load,
    places,
    store,
    tile_outer,
    tile_plus,
    tile_store,
    tile_zero,
)
from tinydiff.kernels.cpu.vectors import transpose, vector_load, vector_store

Bc = 64                                 # keys of a block
TASKS = 64                              # at most: each makes its buffers once
PAD = max(LANES, MR)                    # rows and columns of a buffer: a multiple of both


@intrinsic
def tile_max(_, tile, other):
    """Return the larger of each two numbers."""
    def emit(context, builder, signature, args):
        tile, other = args
        for n in range(signature.return_type.count):
            x, y = builder.extract_value(tile, n), builder.extract_value(other, n)
            tile = builder.insert_value(tile, _larger(builder, x, y), n)
        return tile
    return tile(tile, other), emit


@intrinsic
def tile_max_rows(_, tile, c, i):
    """Write the largest of ``tile[:, n]`` and ``c[i + n]`` to ``c[i + n]``."""
    def emit(context, builder, signature, args):
        tile, c, i = args
        c = address(context, builder, signature.args[1], c, i)
        for v, peak in enumerate(_over_rows(builder, tile, signature.args[0], _larger)):
            place = builder.gep(c, [ir.Constant(I64, v * LANES)])
            store(builder, _larger(builder, peak, load(builder, place)), place)
        return context.get_dummy_value()
    return types.void(tile, c, i), emit


def _over_rows(builder, tile, kind, join):
    """Yield, for each vector of a row, what `join` makes of the tile's rows."""
    width = kind.count // MR
    for v in range(width):
        joined = builder.extract_value(tile, v)
        for m in range(1, MR):
            joined = join(builder, joined, builder.extract_value(tile, m * width + v))
        yield joined


def _sum(builder, x, y):
    return builder.fadd(x, y)


def _larger(builder, x, y):
    return builder.select(builder.fcmp_ordered(">", x, y), x, y)


@intrinsic
def tile_plus_products(_, tile, a, i, b, j, stride):
    """Return ``tile[m, n] + a[i + m * stride + n] * b[j + m * stride + n]``."""
    def emit(context, builder, signature, args):
        tile, a, i, b, j, stride = args
        a = address(context, builder, signature.args[1], a, i)
        b = address(context, builder, signature.args[3], b, j)
        for n, offset in places(builder, signature.return_type, stride):
            left, right = (load(builder, builder.gep(place, [offset])) for place in (a, b))
            total = fma(builder, left, right, builder.extract_value(tile, n))
            tile = builder.insert_value(tile, total, n)
        return tile
    return tile(tile, a, i, b, j, i), emit


@intrinsic
def tile_add_rows(_, tile, c, i):
    """Write the sum over m of ``tile[m, n]`` to ``c[i + n]``."""
    def emit(context, builder, signature, args):
        tile, c, i = args
        c = address(context, builder, signature.args[1], c, i)
        for v, total in enumerate(_over_rows(builder, tile, signature.args[0], _sum)):
            store(builder, total, builder.gep(c, [ir.Constant(I64, v * LANES)]))
        return context.get_dummy_value()
    return types.void(tile, c, i), emit


@serial
def padded(length):
    """Round up to the rows or columns that a buffer has, a multiple of LANES and MR."""
    return (length + PAD - 1) // PAD * PAD


@serial
def multiply(a, i, row, step, b, j, width, K, c, at, stride, rows, fresh):
    """Multiply matrices, ``c[r, n] = sum_k a[r, k] b[k, n]``, or add that to c unless `fresh`.

    ``a[r, k]`` stands at ``i + r * row + k * step``, ``b[k, n]`` at ``j + k * width + n`` and
    ``c[r, n]`` at ``at + r * stride + n``; n counts to NR, and `rows` is rounded up to MR.  The sum
    over k starts from zero and joins c as a whole: a long sum in pieces is rounded less.
    """
    for r in range(0, rows, MR):
        tile = tile_zero()
        for k in range(K):
            tile = tile_outer(tile, a, i + r * row + k * step, row, b, j + k * width)
        if not fresh:
            tile = tile_plus(tile, c, at + r * stride, stride)
        tile_store(tile, c, at + r * stride, stride)


@serial
def rescale(x, at, rows, factor):
    """Multiply `rows` rows of NR numbers by the row `factor`."""
    for c in range(0, NR, LANES):
        vector = vector_load(factor, c)
        for i in range(at + c, at + c + rows * NR, NR):
            vector_store(vector * vector_load(x, i), x, i)


@serial
def close_rows(S, rows, number):
    """Set what is missing of the last tile of MR rows."""
    S[rows * NR:(rows + MR - 1) // MR * MR * NR] = number


@serial
def exp_rows(S, rows, peak):
    """Turn S into ``exp(S - peak)``, for `rows` rows of NR numbers and one row `peak`."""
    for c in range(0, NR, LANES):
        top = vector_load(peak, c)
        for i in range(c, c + rows * NR, NR):
            vector_store(vector_load(S, i) - top, S, i)
    scores = S[:rows * NR]
    for i in range(scores.size):                          # one long loop: vector code
        scores[i] = exp(scores[i])


@serial
def copy_rows(x, i, stride, rows, width, y, y_row):
    """Copy `rows` rows of `width` numbers; what follows in a row of y is anything.

    The copy goes LANES numbers at a time, past the end of a row where more of x follows.
    """
    for r in range(rows):
        for c in range(0, width, LANES):
            source, target = i + r * stride + c, r * y_row + c
            if source + LANES <= x.size:
                vector_store(vector_load(x, source), y, target)
            else:
                for n in range(x.size - source):
                    y[target + n] = x[source + n]


@serial
def write_rows(x, x_row, rows, width, y, i, stride):
    """Undo `copy_rows`: ``y[i + r * stride + c] = x[r * x_row + c]``, and no more."""
    for r in range(rows):
        for c in range(0, width, LANES):
            source, target = r * x_row + c, i + r * stride + c
            if c + LANES <= width:
                vector_store(vector_load(x, source), y, target)
            else:
                for n in range(width - c):
                    y[target + n] = x[source + n]


@serial
def gather_columns(x, i, stride, rows, width, y, at):
    """Write rows as the columns of y, ``y[at + c * NR + r] = x[i + r * stride + c]``.

    Columns and rows of y beyond are anything.
    """
    for r in range(0, rows, LANES):
        for c in range(0, width, LANES):
            source, target = i + r * stride + c, at + c * NR + r
            if source + (LANES - 1) * stride + LANES <= x.size:
                transpose(y, target, NR, x, source, stride)
            else:
                for m in range(min(LANES, rows - r)):
                    for n in range(min(LANES, width - c)):
                        y[target + n * NR + m] = x[source + m * stride + n]


@serial
def scatter_columns(x, at, rows, width, y, i, stride):
    """Undo `gather_columns`: ``y[i + r * stride + c] = x[at + c * NR + r]``, and no more."""
    for r in range(0, rows, LANES):
        for c in range(0, width, LANES):
            source, target = at + c * NR + r, i + r * stride + c
            if r + LANES <= rows and c + LANES <= width:
                transpose(y, target, stride, x, source, NR)
            else:
                for m in range(min(LANES, rows - r)):
                    for n in range(min(LANES, width - c)):
                        y[target + m * stride + n] = x[source + n * NR + m]


@serial
def add_mask(mask, at, sizes, S, rows, columns):
    """Add the mask to a block of scores, keys downwards."""
    for r in range(rows):
        for n in range(columns):
            S[r * NR + n] += mask[at + r * sizes[8] + n * sizes[7]]
