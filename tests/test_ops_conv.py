"""Convolution equals its definition, and its two backward passes are its transpose, exactly."""
import itertools

import numpy as np
import pytest
from gradients import assert_adjoint, assert_grad

from tinydiff.ops import conv, conv2d_backward, conv2d_definition, conv2d_forward

SHAPES = [(3, 2, 7, 6), (2, 3, 1, 1), (1, 1, 5, 9)]
KERNELS = [(3, 3), (1, 1), (5, 3), (2, 4)]
PADDINGS = [0, 1, 2, ((0, 1), (0, 1)), ((3, 0), (1, 2))]


def fits(shape, kernel, padding):
    (top, bottom), (left, right) = conv._pairs(padding)
    return kernel[0] <= shape[2] + top + bottom and kernel[1] <= shape[3] + left + right


CASES = [case for case in itertools.product(SHAPES, KERNELS, (1, 2, 3), PADDINGS)
         if fits(case[0], case[1], case[3])]


def draw(shape, kernel, O, dtype=np.float64):
    rng = np.random.default_rng(0)
    x, weight, bias = (rng.normal(size=size).astype(dtype)
                       for size in (shape, (O, shape[1], *kernel), (O,)))
    return x, weight, bias, rng


@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CASES)
def test_forward_is_the_definition(shape, kernel, stride, padding):
    x, weight, bias, _ = draw(shape, kernel, 4)
    for b in (bias, None):
        y, _ = conv2d_forward(x, weight, b, stride, padding)
        np.testing.assert_allclose(y, conv2d_definition(x, weight, b, stride, padding), atol=1e-13)


@pytest.mark.parametrize(("O", "pull_back"), [(2, "_gather"), (13, "_scatter")])
@pytest.mark.parametrize(("shape", "kernel", "stride", "padding"), CASES)
def test_backward_is_the_transpose(shape, kernel, stride, padding, O, pull_back):
    x, weight, bias, rng = draw(shape, kernel, O)
    y, cache = conv2d_forward(x, weight, None, stride, padding)
    dy = rng.normal(size=y.shape)
    assert_adjoint(lambda x: conv2d_forward(x, weight, None, stride, padding)[0],
                   lambda dy: conv2d_backward(dy, cache)[0], x, dy)
    assert_adjoint(lambda w: conv2d_forward(x, w, None, stride, padding)[0],
                   lambda dy: conv2d_backward(dy, cache)[1], weight, dy)
    assert conv2d_backward(dy, cache)[2] is None
    _, cache = conv2d_forward(x, weight, bias, stride, padding)
    np.testing.assert_allclose(conv2d_backward(dy, cache)[2], dy.sum(axis=(0, 2, 3)), atol=1e-12)


@pytest.mark.parametrize(("O", "stride", "padding"), [
    (2, 1, 1), (2, 2, ((0, 1), (0, 1))), (9, 1, 0), (3, 1, ((0, 2), (2, 1)))])
def test_gradients(O, stride, padding):
    x, weight, bias, rng = draw((2, 3, 5, 4), (3, 3), O)
    y, cache = conv2d_forward(x, weight, bias, stride, padding)
    dy = rng.normal(size=y.shape)
    dx, dweight, dbias = conv2d_backward(dy, cache)
    f = lambda: conv2d_forward(x, weight, bias, stride, padding)[0]
    assert_grad(f, dict(x=x, weight=weight, bias=bias), dy, x=dx, weight=dweight, bias=dbias)


@pytest.mark.parametrize("columns", [1, 7, 20, 100, 10000])
@pytest.mark.parametrize(("O", "kernel", "stride"), [
    (2, (3, 3), 1), (13, (3, 3), 1), (2, (3, 3), 2), (2, (1, 1), 1)])
def test_blocks_of_any_size_give_the_same(monkeypatch, columns, O, kernel, stride):
    x, weight, bias, rng = draw((5, 3, 7, 6), kernel, O)
    y, cache = conv2d_forward(x, weight, bias, stride)
    dy = rng.normal(size=y.shape)
    want = conv2d_backward(dy, cache)
    monkeypatch.setattr(conv, "COLUMNS", columns)
    np.testing.assert_allclose(conv2d_forward(x, weight, bias, stride)[0], y, atol=1e-13)
    for got, w in zip(conv2d_backward(dy, cache), want, strict=True):
        np.testing.assert_allclose(got, w, atol=1e-12)


@pytest.mark.parametrize("pull_back", [conv._gather, conv._scatter])
def test_the_two_ways_back_agree_and_skip_what_is_not_needed(pull_back):
    x, weight, _, rng = draw((3, 4, 6, 5), (3, 5), 6)
    padding = (1, 0), (2, 3)
    dy = rng.normal(size=conv2d_forward(x, weight, None, 1, padding)[0].shape)
    want = conv._scatter(dy, x, weight, 1, padding, True, True)
    for needs_dx, needs_dweight in itertools.product((True, False), repeat=2):
        dx, dweight = pull_back(dy, x, weight, 1, padding, needs_dx, needs_dweight)
        assert (dx is not None, dweight is not None) == (needs_dx, needs_dweight)
        if needs_dx:
            np.testing.assert_allclose(dx, want[0], atol=1e-12)
        if needs_dweight:
            np.testing.assert_allclose(dweight, want[1], atol=1e-12)


def test_frozen_weights_cost_no_gradient():
    x, weight, bias, rng = draw((2, 3, 5, 5), (3, 3), 4)
    y, cache = conv2d_forward(x, weight, bias)
    dy = rng.normal(size=y.shape)
    dx, dweight, dbias = conv2d_backward(dy, cache, needs_dweight=False)
    assert dx is not None and dweight is None and dbias is None
    assert conv2d_backward(dy, cache, needs_dx=False, needs_dweight=False) == (None, None, None)
    dx, dweight, dbias = conv2d_backward(dy, cache, needs_dx=False)
    assert dx is None and dweight is not None and dbias is not None


def test_the_wide_way_back_is_taken_only_where_it_can_be(monkeypatch):
    calls = []
    for name, real in (("_gather", conv._gather), ("_scatter", conv._scatter)):
        def spy(*args, name=name, real=real):
            calls.append(name)
            return real(*args)
        monkeypatch.setattr(conv, name, spy)
    for O, stride, padding in [(3, 1, 1), (3, 2, 1), (3, 1, 3), (7, 1, 1)]:
        x, weight, bias, _ = draw((1, 3, 6, 6), (3, 3), O)
        y, cache = conv2d_forward(x, weight, bias, stride, padding)
        conv2d_backward(y, cache)
    assert calls == ["_gather", "_scatter", "_scatter", "_scatter"]


def test_shifting_the_picture_shifts_the_result():
    x, weight, bias, _ = draw((1, 2, 12, 12), (3, 3), 3)
    x[:, :, :3], x[:, :, -3:], x[..., :3], x[..., -3:] = 0, 0, 0, 0
    y, _ = conv2d_forward(x, weight, bias)
    y_shifted, _ = conv2d_forward(np.roll(x, (1, -2), axis=(2, 3)), weight, bias)
    np.testing.assert_allclose(y_shifted, np.roll(y, (1, -2), axis=(2, 3)), atol=1e-13)


def test_a_cache_may_be_used_twice():
    x, weight, bias, rng = draw((2, 3, 5, 5), (3, 3), 4)
    y, cache = conv2d_forward(x, weight, bias)
    dy = rng.normal(size=y.shape)
    for first, second in zip(conv2d_backward(dy, cache), conv2d_backward(dy, cache), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("arguments", "message"), [
    (dict(shape=(1, 4, 5, 5)), "x has 4 channels, the kernels have 3"),
    (dict(shape=(1, 3, 2, 5), padding=0), "a 3x3 kernel does not fit a padded picture of 2x5"),
    (dict(stride=0), "stride=0 is less than 1"),
    (dict(padding=-1), "padding=-1 is negative"),
    (dict(padding=((0, 1), (0, -2))), r"padding=\(\(0, 1\), \(0, -2\)\) is negative"),
])
def test_errors_name_the_numbers(arguments, message):
    x = np.ones(arguments.get("shape", (1, 3, 5, 5)))
    with pytest.raises(ValueError, match=message):
        conv2d_forward(x, np.ones((2, 3, 3, 3)), None, arguments.get("stride", 1),
                       arguments.get("padding", 1))
