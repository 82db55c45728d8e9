"""Vector registers as Numba values: the few instructions that a fast loop is made of.

A processor multiplies and adds 4, 8 or 16 float32 numbers at once, if they lie in a vector
register.  A compiler finds such code for simple loops by itself, but not for the innermost loop of
a matrix product, which must hold a whole tile of sums in registers.  So this file names them.  A
`Tile` is MR x NV vectors of LANES numbers, a block of MR x NR sums::

    tile[m, :] += a[m] * b[:]            m = 0 .. MR-1,   b is NR = NV * LANES numbers

One step loads MR + NV times for MR * NV vector multiply-adds, so arithmetic is what it waits for.
See section 2 of kernels/README.md for what this bought.
"""
import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model
from numba.types import int64 as i64

_FEATURES = llvm.get_host_cpu_features()
# Numbers in a register; rows of a tile, and registers side by side in each.  Each holds sums,
# and there are 32 with AVX-512 and on ARM, else 16.
LANES, MR, NV = ((16, 8, 2) if _FEATURES.get("avx512f") else
                 (8, 4, 2) if _FEATURES.get("avx2") else
                 (4, 8, 2) if _FEATURES.get("neon") else (4, 4, 2))
WV = NV + 1                             # registers side by side in a wide tile
STEPS = 128                             # products in one chain of additions; see `tile_outer`
NR, WR = NV * LANES, WV * LANES         # columns of a tile, of a wide one

F32, I32, I64 = ir.FloatType(), ir.IntType(32), ir.IntType(64)
VECTOR_IR = ir.VectorType(F32, LANES)


class TileType(types.Type):
    """The Numba type of `count` vector registers."""

    def __init__(self, count):
        self.count = count
        super().__init__(name=f"Tile{count}x{LANES}")


@register_model(TileType)
class TileModel(models.PrimitiveModel):
    """A tile is an array of vectors, which LLVM takes apart into registers."""

    def __init__(self, manager, tile):
        super().__init__(manager, tile, ir.ArrayType(VECTOR_IR, tile.count))


TILE = TileType(MR * NV)
NARROW = TileType(MR)                   # one register wide: for what is left at the right
WIDE = TileType(MR * WV)                # where a loop holds nothing else


def address(context, builder, array_type, array, index):
    """Return the address of element `index` of a flat array."""
    data = cgutils.create_struct_proxy(array_type)(context, builder, array).data
    return builder.gep(data, [index])


def load(builder, place, offset=0):
    """Load a vector from `offset` numbers after an address; no alignment is asked for."""
    place = builder.gep(place, [ir.Constant(I64, offset)])
    vector = builder.load(builder.bitcast(place, VECTOR_IR.as_pointer()))
    vector.align = 4
    return vector


def store(builder, vector, place):
    """Store a vector at an address; no alignment is asked for."""
    builder.store(vector, builder.bitcast(place, VECTOR_IR.as_pointer())).align = 4


def broadcast(builder, number):
    """Copy one number to all lanes."""
    undefined = ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, number, ir.Constant(I32, 0))
    zeros = ir.Constant(ir.VectorType(I32, LANES), [0] * LANES)
    return builder.shuffle_vector(first, undefined, zeros)


def fma(builder, a, b, c):
    """Return ``a * b + c``, rounded once."""
    function = builder.module.declare_intrinsic(f"llvm.fma.v{LANES}f32", (),
                                                ir.FunctionType(VECTOR_IR, [VECTOR_IR] * 3))
    return builder.call(function, [a, b, c])


@intrinsic
def tile_zero(_):
    """Return a tile of zeros."""
    def emit(context, builder, signature, args):
        return ir.Constant(ir.ArrayType(VECTOR_IR, MR * NV), None)
    return TILE(), emit


@intrinsic
def narrow_zero(_):
    """Return a tile of zeros that is MR x LANES; the functions below take any."""
    def emit(context, builder, signature, args):
        return ir.Constant(ir.ArrayType(VECTOR_IR, MR), None)
    return NARROW(), emit


@intrinsic
def wide_zero(_):
    """Return a tile of zeros that is MR x WR."""
    def emit(context, builder, signature, args):
        return ir.Constant(ir.ArrayType(VECTOR_IR, MR * WV), None)
    return WIDE(), emit


def places(builder, tile, stride):
    """Give, for each vector of a tile, its number and its distance from the tile's place."""
    width = tile.count // MR
    for m in range(MR):
        row = builder.mul(stride, ir.Constant(stride.type, m))
        for v in range(width):
            yield m * width + v, builder.add(row, ir.Constant(stride.type, v * LANES))


@intrinsic
def tile_outer(_, tile, a, i, stride, b, j):
    """Return ``tile[m, n] + a[i + m * stride] * b[j + n]`` for flat arrays `a` and `b`.

    Rounding errors of a chain of additions grow with its length, so no kernel makes one of more
    than STEPS: it adds up several such (`tile_plus`), as BLAS does.
    """
    def emit(context, builder, signature, args):
        tile, a, i, stride, b, j = args
        a = address(context, builder, signature.args[1], a, i)
        b = address(context, builder, signature.args[4], b, j)
        width = signature.return_type.count // MR
        columns = [load(builder, b, v * LANES) for v in range(width)]
        for m in range(MR):
            place = builder.mul(stride, ir.Constant(stride.type, m))
            row = broadcast(builder, builder.load(builder.gep(a, [place])))
            for v in range(width):
                n = m * width + v
                total = fma(builder, row, columns[v], builder.extract_value(tile, n))
                tile = builder.insert_value(tile, total, n)
        return tile
    return tile(tile, a, i64, i64, b, i64), emit


@intrinsic
def tile_store(_, tile, c, i, stride):
    """Write ``c[i + m * stride + n] = tile[m, n]``, all of them."""
    def emit(context, builder, signature, args):
        tile, c, i, stride = args
        c = address(context, builder, signature.args[1], c, i)
        for n, offset in places(builder, signature.args[0], stride):
            store(builder, builder.extract_value(tile, n), builder.gep(c, [offset]))
        return context.get_dummy_value()
    return types.void(tile, c, i64, i64), emit


@intrinsic
def tile_ask(_, tile, c, i, stride):
    """Ask for the lines of the cache that `tile_plus` and `tile_store` will want, ahead of them."""
    def emit(context, builder, signature, args):
        _, c, i, stride = args
        c = address(context, builder, signature.args[1], c, i)
        byte = ir.IntType(8).as_pointer()
        prefetch = builder.module.declare_intrinsic(
            "llvm.prefetch", [byte], ir.FunctionType(ir.VoidType(), [byte, I32, I32, I32]))
        to_write, near, data = ir.Constant(I32, 1), ir.Constant(I32, 3), ir.Constant(I32, 1)
        for _, offset in places(builder, signature.args[0], stride):
            place = builder.bitcast(builder.gep(c, [offset]), byte)
            builder.call(prefetch, [place, to_write, near, data])
        return context.get_dummy_value()
    return types.void(tile, c, i64, i64), emit


@intrinsic
def tile_load(_, c, i, stride):
    """Read a tile of MR x NR: ``tile[m, n] = c[i + m * stride + n]``."""
    def emit(context, builder, signature, args):
        c, i, stride = args
        c = address(context, builder, signature.args[0], c, i)
        tile = ir.Constant(ir.ArrayType(VECTOR_IR, MR * NV), None)
        for n, offset in places(builder, TILE, stride):
            tile = builder.insert_value(tile, load(builder, builder.gep(c, [offset])), n)
        return tile
    return TILE(c, i64, i64), emit


@intrinsic
def tile_plus(_, tile, c, i, stride):
    """Return ``tile[m, n] + c[i + m * stride + n]``."""
    def emit(context, builder, signature, args):
        tile, c, i, stride = args
        c = address(context, builder, signature.args[1], c, i)
        for n, offset in places(builder, signature.return_type, stride):
            total = builder.fadd(builder.extract_value(tile, n),
                                 load(builder, builder.gep(c, [offset])))
            tile = builder.insert_value(tile, total, n)
        return tile
    return tile(tile, c, i64, i64), emit


# ---- sums along a row: the tile of a product with a transposed matrix ----

DM = DN = 4                             # rows of the two factors that one tile of sums joins
DOTS = TileType(DM * DN)


@intrinsic
def dots_zero(_):
    """Return DM x DN vectors of zeros."""
    def emit(context, builder, signature, args):
        return ir.Constant(ir.ArrayType(VECTOR_IR, DM * DN), None)
    return DOTS(), emit


@intrinsic
def dots_step(_, dots, a, i, stride, b, j0, j1, j2, j3):
    """Add ``a[i + m * stride + l] * b[j_n + l]`` to vector (m, n), for all lanes l."""
    def emit(context, builder, signature, args):
        dots, a, i, stride, b, *starts = args
        a = address(context, builder, signature.args[1], a, i)
        b = address(context, builder, signature.args[4], b, ir.Constant(I64, 0))
        right = [load(builder, builder.gep(b, [j])) for j in starts]
        for m in range(DM):
            row = builder.mul(stride, ir.Constant(stride.type, m))
            left = load(builder, builder.gep(a, [row]))
            for n in range(DN):
                k = m * DN + n
                total = fma(builder, left, right[n], builder.extract_value(dots, k))
                dots = builder.insert_value(dots, total, k)
        return dots
    return DOTS(dots, a, i64, i64, b, i64, i64, i64, i64), emit


@intrinsic
def dots_store(_, dots, c, i):
    """Write ``c[i + m * DN + n]``, the sum over the lanes of vector (m, n)."""
    def emit(context, builder, signature, args):
        dots, c, i = args
        c = address(context, builder, signature.args[1], c, i)
        sums = _sums(builder, [builder.extract_value(dots, k) for k in range(DM * DN)])
        for k, vector in enumerate(sums):
            store(builder, vector, builder.gep(c, [ir.Constant(I64, k * LANES)]))
        return context.get_dummy_value()
    return types.void(dots, c, i64), emit


def _sums(builder, vectors):
    """Add up the lanes of each vector; vectors of LANES results each.

    Two vectors fold into one: the first halves of both, side by side, plus the second halves.  Then
    two such into one, and so on: 15 additions for 16 vectors, in place of 4 for each.
    """
    length = LANES                                                    # lanes that hold one sum
    while length > 1:
        folded = []
        for a, b in zip(vectors[::2], vectors[1::2], strict=True):
            starts = range(0, 2 * LANES, length)                      # in a, then in b
            first, second = (
                builder.shuffle_vector(a, b, ir.Constant(
                    ir.VectorType(I32, LANES),
                    [start + half + k for start in starts for k in range(length // 2)]))
                for half in (0, length // 2))
            folded.append(builder.fadd(first, second))
        vectors, length = folded, length // 2
    return vectors
