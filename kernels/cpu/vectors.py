"""Single vector registers as Numba values, with + - and *, and ways to move numbers about.

For loops that a compiler would not turn into vector code by itself: Winograd's transforms read
every fourth number, and write what they made in an order of their own.
"""
import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_builtin
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, models, register_model
from numba.types import int64 as i64

from tinydiff.kernels.cpu.simd import (
    F32,
    I32,
    I64,
    LANES,
    VECTOR_IR,
    address,
    broadcast,
    load,
    store,
)


class VectorNumbaType(types.Type):
    """The Numba type of one vector register of LANES float32 numbers."""

    def __init__(self):
        super().__init__(name=f"Vector{LANES}")


VECTOR = VectorNumbaType()


@register_model(VectorNumbaType)
class VectorModel(models.PrimitiveModel):
    """A vector is LLVM's own."""

    def __init__(self, manager, vector):
        super().__init__(manager, vector, VECTOR_IR)


def _operator(function, instruction):
    """Give vectors one of + - *, between two of them or with a float32 number on the left."""
    @infer_global(function)
    class Template(AbstractTemplate):
        def generic(self, args, keywords):
            if len(args) == 2 and args[1] is VECTOR and args[0] in (VECTOR, types.float32):
                return signature(VECTOR, *args)

    @lower_builtin(function, VECTOR, VECTOR)
    def vector_vector(context, builder, sig, args):
        return getattr(builder, instruction)(*args, flags=("contract",))

    @lower_builtin(function, types.float32, VECTOR)
    def number_vector(context, builder, sig, args):
        number, vector = args
        return getattr(builder, instruction)(broadcast(builder, number), vector,
                                             flags=("contract",))


for _function, _instruction in ((operator.add, "fadd"), (operator.sub, "fsub"),
                                (operator.mul, "fmul")):
    _operator(_function, _instruction)


@intrinsic
def vector_load(_, a, i):
    """Return a[i : i + LANES]."""
    def emit(context, builder, signature, args):
        return load(builder, address(context, builder, signature.args[0], *args))
    return VECTOR(a, i64), emit


@intrinsic
def vector_store(_, vector, a, i):
    """Write a[i : i + LANES]."""
    def emit(context, builder, signature, args):
        vector, a, i = args
        store(builder, vector, address(context, builder, signature.args[1], a, i))
        return context.get_dummy_value()
    return types.void(vector, a, i64), emit


@intrinsic
def move(_, target, i, source, j, n):
    """Copy n numbers: ``target[i : i + n] = source[j : j + n]``, which do not overlap."""
    def emit(context, builder, signature, args):
        target, i, source, j, n = args
        cgutils.raw_memcpy(builder, address(context, builder, signature.args[0], target, i),
                           address(context, builder, signature.args[2], source, j), n, 4)
        return context.get_dummy_value()
    return types.void(target, i64, source, i64, i64), emit


@intrinsic
def move_four(_, target, i, source, j):
    """Copy four numbers: ``target[i : i + 4] = source[j : j + 4]``."""
    def emit(context, builder, signature, args):
        target, i, source, j = args
        four = ir.VectorType(F32, 4).as_pointer()
        source = address(context, builder, signature.args[2], source, j)
        target = address(context, builder, signature.args[0], target, i)
        value = builder.load(builder.bitcast(source, four))
        value.align = 4
        builder.store(value, builder.bitcast(target, four)).align = 4
        return context.get_dummy_value()
    return types.void(target, i64, source, i64), emit


def _shuffle(builder, vectors, places):
    """Pick lanes `places` of the concatenated vectors, a power of two of them."""
    while len(vectors) > 1:
        length = vectors[0].type.count
        joined = ir.Constant(ir.VectorType(I32, 2 * length), list(range(2 * length)))
        vectors = [builder.shuffle_vector(a, b, joined)
                   for a, b in zip(vectors[::2], vectors[1::2], strict=True)]
    undefined = ir.Constant(vectors[0].type, ir.Undefined)
    return builder.shuffle_vector(vectors[0], undefined,
                                  ir.Constant(ir.VectorType(I32, len(places)), places))


@intrinsic
def split_fours(_, a, i0, i1, i2, i3):
    """Read 4 x LANES numbers, LANES from each place; return every fourth, from 0, 1, 2 and 3."""
    def emit(context, builder, signature, args):
        a, *places = args
        vectors = [load(builder, address(context, builder, signature.args[0], a, i))
                   for i in places]
        parts = [_shuffle(builder, vectors, list(range(k, 4 * LANES, 4))) for k in range(4)]
        return context.make_tuple(builder, signature.return_type, parts)
    return types.UniTuple(VECTOR, 4)(a, i64, i64, i64, i64), emit


@intrinsic
def gather_fours(_, a, places, t, offset):
    """Do the same for LANES fours, each at its own place: ``places[t : t + LANES] + offset``."""
    def emit(context, builder, signature, args):
        a, places, t, offset = args
        a = address(context, builder, signature.args[0], a, offset)
        places = address(context, builder, signature.args[1], places, t)
        four = ir.VectorType(F32, 4).as_pointer()
        fours = []
        for k in range(LANES):
            place = builder.load(builder.gep(places, [ir.Constant(I64, k)]))
            fours.append(builder.load(builder.bitcast(builder.gep(a, [place]), four)))
            fours[-1].align = 4
        parts = [_shuffle(builder, fours, list(range(k, 4 * LANES, 4))) for k in range(4)]
        return context.make_tuple(builder, signature.return_type, parts)
    return types.UniTuple(VECTOR, 4)(a, places, i64, i64), emit


@intrinsic
def join_fours(_, v0, v1, v2, v3):
    """Undo `split_fours`: return the four vectors v0[0], v1[0], v2[0], v3[0], v0[1], ..."""
    def emit(context, builder, signature, args):
        parts = [_shuffle(builder, list(args),
                          [k % 4 * LANES + k // 4 for k in range(n * LANES, (n + 1) * LANES)])
                 for n in range(4)]
        return context.make_tuple(builder, signature.return_type, parts)
    return types.UniTuple(VECTOR, 4)(v0, v1, v2, v3), emit


@intrinsic
def transpose(_, target, i, target_stride, source, j, source_stride):
    """Copy a block: ``target[i + n * target_stride + m] = source[j + m * source_stride + n]``.

    m and n run over LANES.  Interleaving row k with row k + LANES / 2, for all k, moves the first
    bit of each number's place to the end; after log2(LANES) rounds rows and columns have changed
    places.
    """
    def emit(context, builder, signature, args):
        target, i, target_stride, source, j, source_stride = args
        source = address(context, builder, signature.args[3], source, j)
        target = address(context, builder, signature.args[0], target, i)

        def row(start, stride, k):
            return builder.gep(start, [builder.mul(stride, ir.Constant(stride.type, k))])

        rows = [load(builder, row(source, source_stride, k)) for k in range(LANES)]
        for _ in range(LANES.bit_length() - 1):
            pairs = zip(rows[:LANES // 2], rows[LANES // 2:], strict=True)
            rows = [_shuffle(builder, [a, b], [k // 2 + k % 2 * LANES
                                               for k in range(start, start + LANES)])
                    for a, b in pairs for start in (0, LANES)]
        for k, vector in enumerate(rows):
            store(builder, vector, row(target, target_stride, k))
        return context.get_dummy_value()
    return types.void(target, i64, i64, source, i64, i64), emit
