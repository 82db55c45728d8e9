"""The matrix product and the linear layer on register tiles, against float64 and the definition."""
import numpy as np
import pytest
from two_threads import on_one_and_two_threads

from tinydiff.kernels.accuracy import assert_as_accurate_as

numba = pytest.importorskip("numba")

from tinydiff import ops  # noqa: E402
from tinydiff.kernels.cpu.gemm import COLUMNS, NO_BIAS, ROWS, multiply  # noqa: E402
from tinydiff.kernels.cpu.linear import linear_forward  # noqa: E402
from tinydiff.kernels.cpu.rows import LINE, room  # noqa: E402
from tinydiff.kernels.cpu.simd import MR, NR, STEPS  # noqa: E402

SIZES = [(1, 1, 1), (MR, NR, 3), (MR - 1, NR + 1, STEPS + 1),
         (2 * MR + 3, 2 * NR - 5, 2 * STEPS + 7),
         (ROWS + 9, 40, 20), (33, COLUMNS + 33, 65), (200, 300, 1), (5, 7, 1000)]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("M, N, K", SIZES)
@pytest.mark.parametrize("turn_a", [False, True], ids=["A", "A^T"])
@pytest.mark.parametrize("turn_b", [False, True], ids=["B", "B^T"])
def test_product_of_every_layout(M, N, K, turn_a, turn_b):
    a, b = normal(M, K), normal(K, N, seed=1)
    c = np.full((M, N), np.nan, np.float32)
    multiply((a.T if turn_a else a).ravel(), *((1, M) if turn_a else (K, 1)),
             (b.T if turn_b else b).ravel(), *((1, K) if turn_b else (N, 1)),
             NO_BIAS, c.reshape(-1), M, N, K)
    assert_as_accurate_as(c, a @ b, a.astype(np.float64) @ b)


@pytest.mark.parametrize("shape, features", [((1, 1), 1), ((3, 5, 7), 9), ((2, 64), 128),
                                             ((4, 33, 70), 45), ((1, 300), 8), ((600, 24), 48)])
@pytest.mark.parametrize("has_bias", [False, True])
def test_linear_is_the_definition(shape, features, has_bias):
    x, weight = normal(*shape), normal(features, shape[-1], seed=1)
    bias = normal(features, seed=2) if has_bias else None
    dy = normal(*shape[:-1], features, seed=3)

    def run(forward, backward, dtype):
        args = [None if a is None else a.astype(dtype) for a in (x, weight, bias)]
        y, cache = forward(*args)
        return y, *backward(dy.astype(dtype), cache)

    got = run(ops.linear_forward, ops.linear_backward, np.float32)
    definition = ops.linear_forward.reference, ops.linear_backward.reference
    for ours, single, double in zip(got, run(*definition, np.float32), run(*definition, np.float64),
                                    strict=True):
        if double is None:
            assert ours is None
        else:
            assert_as_accurate_as(ours, single, double)


def test_linear_takes_strided_arrays():
    x, weight = normal(40, 6, 5)[::2].swapaxes(1, 2), normal(7, 12, seed=1)[:, ::2]
    dy = normal(20, 7, 5, seed=2).swapaxes(1, 2)
    y, cache = linear_forward(x, weight)
    dx, dweight, _ = cache.backward(dy, cache.arrays)
    assert_as_accurate_as(y, x @ weight.T, x.astype(np.float64) @ weight.T)
    assert_as_accurate_as(dx, dy @ weight, dy.astype(np.float64) @ weight)
    wide = np.einsum("bno,bni->oi", dy.astype(np.float64), x)
    assert_as_accurate_as(dweight, np.einsum("bno,bni->oi", dy, x), wide)


def test_room_begins_with_a_line_of_the_cache():
    rooms = [room(n) for n in (1, 5, 1000, 70000) for _ in range(3)]
    assert all(r.ctypes.data % LINE == 0 and r.dtype == np.float32 for r in rooms)
    assert [r.size for r in rooms[::3]] == [1, 5, 1000, 70000]


def test_linear_skips_what_nobody_needs():
    _, cache = linear_forward(normal(3, 4), normal(5, 4, seed=1), normal(5, seed=2))
    dy = normal(3, 5)
    assert cache.backward(dy, cache.arrays, needs_dx=False)[0] is None
    assert cache.backward(dy, cache.arrays, needs_dweight=False)[1:] == (None, None)


@pytest.mark.parametrize("x", [normal(3, 4).astype(np.float64), normal(3, 5), normal(0, 4)],
                         ids=["float64", "wrong width", "empty"])
def test_linear_leaves_other_arguments_to_the_definition(x):
    assert linear_forward(x, normal(5, 4)) is NotImplemented


def test_bits_depend_neither_on_threads_nor_on_the_batch():
    x, weight = normal(700, 300), normal(70, 300, seed=1)
    dy = normal(700, 70, seed=2)

    def run(rows=slice(None)):
        y, cache = linear_forward(x[rows], weight)
        return [y, *cache.backward(dy[rows], cache.arrays)[:2]]

    one, two = on_one_and_two_threads(run)
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    y, dx, _ = run(slice(13, 14))
    assert (y == one[0][13:14]).all() and (dx == one[1][13:14]).all()
