"""The exchange of two axes by blocks: the same numbers as the definition, at any size."""
import numpy as np
import pytest
from two_threads import on_one_and_two_threads

numba = pytest.importorskip("numba")

from tinydiff.kernels.cpu.simd import LANES  # noqa: E402
from tinydiff.kernels.cpu.transpose import ROWS, transpose_forward  # noqa: E402

SHAPES = [(1, 1, 1), (2, 3, 5), (3, LANES, 2 * LANES), (2, LANES + 1, LANES - 1),
          (1, 2 * ROWS + 3, 40), (5, 1, 70)]


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_every_number_changes_places(shape):
    x = normal(*shape)
    y, saved = transpose_forward(x)
    np.testing.assert_array_equal(y, x.transpose(0, 2, 1))
    assert y.flags.c_contiguous
    np.testing.assert_array_equal(saved.backward(y, saved.arrays), x)


def test_strided_arrays_and_any_number_of_threads():
    x = normal(3, 70, 200)[:, ::2, 1::3]
    one, two = on_one_and_two_threads(lambda: transpose_forward(x)[0])
    np.testing.assert_array_equal(one, x.transpose(0, 2, 1))
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("x", [normal(3, 4), normal(2, 3, 4).astype(np.float64), normal(0, 3, 4)],
                         ids=["two axes", "float64", "empty"])
def test_other_arrays_are_left_to_the_definition(x):
    assert transpose_forward(x) is NotImplemented
