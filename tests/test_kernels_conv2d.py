"""Convolution on register tiles: direct and by Winograd's shortcut, against the definition."""
import numpy as np
import pytest
from in_turn import InTurn, less_exact
from two_threads import on_one_and_two_threads

from tinydiff.kernels.accuracy import assert_as_accurate_as

numba = pytest.importorskip("numba")

import tinydiff  # noqa: E402
from tinydiff import ops  # noqa: E402
from tinydiff.backends.table import Saved  # noqa: E402
from tinydiff.kernels.cpu import (  # noqa: E402
    conv2d,
    conv2d_direct,
    conv2d_winograd,
    conv2d_winograd_dweight,
)
from tinydiff.kernels.cpu.conv2d import conv2d_forward  # noqa: E402

# Winograd's transforms multiply by up to 8 and cancel.  Rounding errors of this many times the
# definition's own are allowed; all shapes here but the smallest stay under 20.
WINOGRAD = 40


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def inputs(B, C, H, W, O, K, stride=1, padding=1):
    x, weight, bias = normal(B, C, H, W), normal(O, C, K, K, seed=1), normal(O, seed=2)
    y, _ = ops.conv2d_forward.reference(x, weight, bias, stride, padding)
    return x, weight, bias, normal(*y.shape, seed=3)


def definition(x, weight, bias, dy, stride, padding, dtype):
    args = [a.astype(dtype) for a in (x, weight, bias)]
    y, cache = ops.conv2d_forward.reference(*args, stride, padding)
    return y, *ops.conv2d_backward.reference(dy.astype(dtype), cache)


def assert_right(x, weight, bias, dy, stride=1, padding=1, factor=2.0):
    y, cache = conv2d_forward(x, weight, bias, stride, padding)
    got = y, *cache.backward(dy, cache.arrays)
    by_blas = definition(x, weight, bias, dy, stride, padding, np.float32)
    in_turn = definition(*(a.view(InTurn) for a in (x, weight, bias, dy)), stride, padding,
                         np.float32)
    double = definition(x, weight, bias, dy, stride, padding, np.float64)
    for ours, *theirs, right in zip(got, by_blas, in_turn, double, strict=True):
        assert_as_accurate_as(ours, less_exact(right, *theirs), right, factor)


@pytest.fixture
def precise():
    with tinydiff.use("precise"):
        yield


@pytest.mark.parametrize("B, C, H, W, O, K, stride, padding", [
    (1, 1, 1, 1, 1, 1, 1, 0), (1, 1, 1, 1, 1, 3, 1, 1), (2, 3, 7, 5, 4, 3, 1, 1),
    (3, 9, 33, 17, 10, 3, 1, 1), (2, 40, 70, 34, 6, 3, 1, 1), (9, 16, 4, 4, 24, 3, 1, 1),
    (2, 8, 6, 9, 5, 1, 1, 0), (2, 3, 6, 7, 5, 5, 1, 2), (1, 2, 6, 6, 3, 3, 1, 3),
    (2, 4, 8, 8, 9, 3, 2, 1), (3, 4, 9, 12, 7, 3, 2, ((0, 1), (0, 1))), (2, 3, 7, 8, 5, 5, 3, 2),
    (2, 2, 5, 5, 3, 1, 2, 0), (1, 2, 9, 9, 3, 2, 4, 0), (1, 700, 5, 40, 3, 3, 1, 1),
    (1, 3, 3, 300, 2, 3, 1, ((2, 0), (0, 2))),
])
def test_direct_is_the_definition(precise, B, C, H, W, O, K, stride, padding):
    assert_right(*inputs(B, C, H, W, O, K, stride, padding), stride, padding)


@pytest.mark.parametrize("B, C, H, W, O, K, stride, padding", [
    (1, 1, 1, 1, 1, 3, 1, 1), (2, 3, 7, 5, 4, 3, 1, 1), (3, 35, 9, 17, 10, 3, 1, 1),
    (2, 16, 8, 8, 17, 3, 2, 1), (3, 20, 9, 12, 7, 3, 2, ((0, 1), (0, 1))),
    (2, 3, 7, 8, 5, 5, 3, 2), (1, 40, 20, 20, 33, 3, 1, ((2, 0), (0, 2))),
    (1, 16, 4, 4, 5000, 3, 1, 1)])
def test_dweight_tap_by_tap_is_the_definition(precise, monkeypatch, B, C, H, W, O, K, stride,
                                              padding):
    monkeypatch.setattr(conv2d, "PAIRS", 1)
    monkeypatch.setattr(conv2d, "conv2d_dweight", None)
    assert_right(*inputs(B, C, H, W, O, K, stride, padding), stride, padding)


@pytest.mark.parametrize("B, C, H, W, O, K, stride, padding", [
    (1, 1, 1, 1, 1, 1, 1, 0), (2, 16, 4, 4, 8, 3, 1, 1), (1, 16, 4, 4, 9, 3, 1, 1),
    (3, 40, 7, 5, 20, 3, 1, 1), (2, 9, 3, 70, 17, 3, 1, 1), (5, 30, 6, 6, 16, 3, 2, 1),
    (3, 4, 9, 12, 7, 3, 2, ((0, 1), (0, 1))), (2, 20, 5, 9, 5, 5, 1, ((2, 0), (0, 2))),
    (7, 8, 3, 3, 30, 3, 1, 1), (2, 3, 7, 8, 5, 5, 3, 2), (20, 120, 5, 5, 17, 3, 1, 1)])
def test_columns_give_the_same_bits(precise, monkeypatch, B, C, H, W, O, K, stride, padding):
    x, weight, bias, dy = inputs(B, C, H, W, O, K, stride, padding)

    def run(by_columns):
        monkeypatch.setattr(conv2d_direct, "_worth_columns", lambda *a: by_columns)
        forget_plans()
        y, cache = conv2d_forward(x, weight, bias, stride, padding)
        return y, cache.backward(dy, cache.arrays, needs_dweight=False)[0]

    same = [(a == b).all() for a, b in zip(run(True), run(False), strict=True)]
    forget_plans()
    assert all(same)


def forget_plans():
    conv2d_direct.plan_forward.cache_clear()
    conv2d_direct.plans_backward.cache_clear()


def test_columns_are_for_few_pixels(precise, monkeypatch):
    taken = []
    monkeypatch.setattr(conv2d_direct.conv2d_columns, "correlate", lambda *a: taken.append(a))
    conv2d_forward(normal(2, 8, 4, 4), normal(64, 8, 3, 3))
    assert len(taken) == 1
    conv2d_forward(normal(2, 8, 64, 64), normal(8, 8, 3, 3))
    assert len(taken) == 1


@pytest.fixture
def shortcut(monkeypatch):
    """Take Winograd's shortcut however few pixels there are."""
    monkeypatch.setattr(conv2d, "TILES", 0)


SHORTCUT = [(1, 8, 1, 1, 8, 1), (2, 8, 4, 4, 8, 1), (1, 9, 7, 5, 11, 1), (20, 16, 8, 8, 24, 1),
            (3, 8, 16, 16, 33, 1), (2, 40, 33, 30, 12, 1), (1, 64, 64, 64, 16, 1),
            (2, 8, 9, 8, 8, 0), (2, 10, 6, 11, 8, 2), (1, 24, 12, 12, 24, ((0, 1), (2, 1)))]


@pytest.mark.parametrize("B, C, H, W, O, padding", SHORTCUT)
def test_winograd_is_the_definition(shortcut, B, C, H, W, O, padding):
    x, weight, bias, dy = inputs(B, C, H, W, O, 3, 1, padding)
    _, cache = conv2d_forward(x, weight, bias, 1, padding)
    assert cache.arrays[-1], "not by the shortcut"
    assert_right(x, weight, bias, dy, 1, padding, factor=WINOGRAD)


@pytest.mark.parametrize("B, C, H, W, O, padding", SHORTCUT)
def test_winograd_one_way_and_the_other_give_the_same_bits(monkeypatch, shortcut, B, C, H, W, O,
                                                           padding):
    x, weight, bias, _ = inputs(B, C, H, W, O, 3, 1, padding)
    by_tiles, _ = conv2d_forward(x, weight, bias, 1, padding)
    monkeypatch.setattr(conv2d_winograd, "WEIGHTS", 0)
    monkeypatch.setattr(conv2d_winograd, "PANELS", 1 << 30)
    monkeypatch.setattr(conv2d_winograd, "_by_tiles", None)
    by_channels, _ = conv2d_forward(x, weight, bias, 1, padding)
    assert (by_tiles == by_channels).all()


def test_winograd_with_many_channels():
    assert_right(*inputs(1, 300, 12, 12, 264, 3), factor=WINOGRAD)


@pytest.mark.parametrize("B, C, H, W, O, padding", SHORTCUT[:-1])
def test_winograd_gradient_of_the_weight(B, C, H, W, O, padding):
    x, weight, bias, dy = inputs(B, C, H, W, O, 3, 1, padding)
    got = conv2d_winograd_dweight.backward_weight(dy, x, padding, padding)
    single = definition(x, weight, bias, dy, 1, padding, np.float32)
    double = definition(x, weight, bias, dy, 1, padding, np.float64)
    for ours, theirs, right in zip(got, single[2:], double[2:], strict=True):
        assert_as_accurate_as(ours, theirs, right, factor=WINOGRAD)


def test_precise_means_twice_the_definition_and_fast_means_more(precise):
    x, weight, bias, dy = inputs(2, 64, 16, 16, 64, 3)
    assert_right(x, weight, bias, dy)
    with tinydiff.use("fast"), pytest.raises(AssertionError, match="the reference's own"):
        assert_right(x, weight, bias, dy)


@pytest.mark.parametrize("B, C, H, W, O", [
    (1, 1, 1, 1, 1), (3, 5, 4, 4, 7), (2, 72, 4, 4, 72), (2, 40, 9, 33, 17), (1, 150, 8, 8, 20),
    (9, 16, 12, 12, 8), (700, 2, 2, 3, 3)])
def test_one_by_one_is_the_definition(B, C, H, W, O):
    assert_right(*inputs(B, C, H, W, O, 1, 1, 0), 1, ((0, 0), (0, 0)))


@pytest.mark.parametrize("mode", ["fast", "precise"])
@pytest.mark.parametrize("kernel, padding", [(1, 0), (3, 1)])
def test_bits_depend_neither_on_threads_nor_on_the_batch(mode, kernel, padding):
    x, weight, bias, dy = inputs(40, 16, 12, 16, 24, kernel, 1, padding)

    def run(pictures=slice(None)):
        with tinydiff.use(mode):
            y, cache = conv2d_forward(x[pictures], weight, bias, 1, padding)
        return [y, *cache.backward(dy[pictures], cache.arrays)]

    one, two = on_one_and_two_threads(run)
    assert all((a == b).all() for a, b in zip(one, two, strict=True))
    alone = run(slice(13, 14))
    assert (alone[0] == one[0][13:14]).all() and (alone[1] == one[1][13:14]).all()


def test_strided_arrays_and_no_bias():
    x = normal(2, 9, 9, 10).transpose(0, 3, 1, 2)[:, :, ::2]
    weight = normal(3, 3, 10, 8, seed=1).transpose(3, 2, 0, 1)
    dy = normal(2, 9, 5, 8).swapaxes(1, 3)
    y, cache = conv2d_forward(x, weight)
    dx, dweight, dbias = cache.backward(dy, cache.arrays)
    zeros = np.zeros(8, np.float32)
    single = definition(x, weight, zeros, dy, 1, 1, np.float32)
    double = definition(x, weight, zeros, dy, 1, 1, np.float64)
    for ours, theirs, right in zip((y, dx, dweight), single, double, strict=False):
        assert_as_accurate_as(ours, theirs, right, factor=WINOGRAD)
    assert dbias is None


def test_only_what_is_needed_is_computed():
    x, weight, bias, dy = inputs(2, 8, 8, 8, 8, 3)
    _, cache = conv2d_forward(x, weight, bias)
    assert isinstance(cache, Saved)
    assert cache.backward(dy, cache.arrays, needs_dx=False)[0] is None
    assert cache.backward(dy, cache.arrays, needs_dweight=False)[1:] == (None, None)


def test_nan_and_infinity_reach_the_output():
    x, weight, bias, _ = inputs(1, 8, 8, 8, 8, 3)
    x[0, 3, 2, 2] = np.nan
    y, _ = conv2d_forward(x, weight, bias)
    assert np.isnan(y[:, :, 1:4, 1:4]).all()


@pytest.mark.parametrize("change", ["float64", "channels", "kernel too large", "empty", "stride 0"])
def test_other_arguments_are_left_to_the_definition(change):
    x, weight, stride = normal(2, 4, 6, 6), normal(5, 4, 3, 3, seed=1), 1
    if change == "float64":
        x, weight = x.astype(np.float64), weight.astype(np.float64)
    elif change == "channels":
        x = x[:, :3]
    elif change == "kernel too large":
        x = x[:, :, :, :0]
    elif change == "empty":
        x = x[:0]
    else:
        stride = 0
    assert conv2d_forward(x, weight, None, stride) is NotImplemented


def test_the_shortcut_is_for_pixels_that_repay_it():
    def shortcut(B, channels, size):
        weight = np.zeros((channels, channels, 3, 3), np.float32)
        return conv2d._shortcut(np.zeros((B, channels, size, size), np.float32), weight, 1,
                                ((1, 1),) * 2)

    assert not shortcut(2, 64, 8) and shortcut(3, 64, 8)              # 8 tiles, and 12
    assert not shortcut(8, 64, 4) and shortcut(9, 64, 3)              # of which some are parts
    assert not shortcut(64, 1280, 8) and shortcut(1, 1280, 16)


def test_fast_a_picture_is_the_same_to_rounding_in_any_batch():
    """Alone it has too few tiles for the shortcut; in the mode "precise" the bits are the same."""
    x, weight, bias, _ = inputs(6, 16, 8, 8, 24, 3)
    batch, cache = conv2d_forward(x, weight, bias)
    alone, other = conv2d_forward(x[2:3], weight, bias)
    assert cache.arrays[-1] and not other.arrays[-1]
    np.testing.assert_allclose(batch[2:3], alone, rtol=0, atol=1e-4)
    with tinydiff.use("precise"):
        assert (conv2d_forward(x, weight, bias)[0][2:3] == conv2d_forward(
            x[2:3], weight, bias)[0]).all()
