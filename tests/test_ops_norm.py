"""Normalisation: right gradients, and blind to what it is meant to be blind to."""
import numpy as np
import pytest
from gradients import assert_grad

from tinydiff.ops import (
    group_norm_backward,
    group_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
    unit_backward,
    unit_forward,
)


def draw(shape, features):
    rng = np.random.default_rng(0)
    return rng.normal(size=shape), rng.normal(size=features), rng.normal(size=features), rng


GROUP_CASES = [((2, 6, 3, 5), 2), ((3, 4, 1, 1), 2), ((1, 4, 2, 2), 4), ((2, 6, 7), 1),
               ((2, 4), 2), ((2, 3, 2, 2, 2), 3)]


@pytest.mark.parametrize(("shape", "num_groups"), GROUP_CASES)
def test_group_norm_gradients(shape, num_groups):
    x, weight, bias, rng = draw(shape, shape[1])
    y, cache = group_norm_forward(x, weight, bias, num_groups)
    dy = rng.normal(size=y.shape)
    dx, dweight, dbias = group_norm_backward(dy, cache)
    f = lambda: group_norm_forward(x, weight, bias, num_groups)[0]
    assert_grad(f, dict(x=x, weight=weight, bias=bias), dy, x=dx, weight=dweight, bias=dbias)


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4), (1, 2), (2, 1, 3, 6)])
def test_layer_norm_gradients(shape):
    x, weight, bias, rng = draw(shape, shape[-1])
    y, cache = layer_norm_forward(x, weight, bias, eps=1e-3)
    dy = rng.normal(size=y.shape)
    dx, dweight, dbias = layer_norm_backward(dy, cache)
    f = lambda: layer_norm_forward(x, weight, bias, eps=1e-3)[0]
    assert_grad(f, dict(x=x, weight=weight, bias=bias), dy, x=dx, weight=dweight, bias=dbias)


def test_group_norm_is_its_definition():
    x, weight, bias, _ = draw((2, 6, 3, 5), 6)
    y, _ = group_norm_forward(x, weight, bias, 3, eps=0.1)
    for b, c in np.ndindex(2, 6):
        group = x[b, c // 2 * 2:c // 2 * 2 + 2]
        want = weight[c] * (x[b, c] - group.mean()) / np.sqrt(group.var() + 0.1) + bias[c]
        np.testing.assert_allclose(y[b, c], want, atol=1e-13)


def test_layer_norm_is_its_definition():
    x, weight, bias, _ = draw((2, 3, 6), 6)
    y, _ = layer_norm_forward(x, weight, bias, eps=0.1)
    centred = x - x.mean(axis=-1, keepdims=True)
    want = weight * centred / np.sqrt(x.var(axis=-1, keepdims=True) + 0.1) + bias
    np.testing.assert_allclose(y, want, atol=1e-13)


def test_group_norm_ignores_scale_and_shift_per_group():
    x, weight, bias, rng = draw((2, 6, 4, 4), 6)
    scale, shift = rng.uniform(1, 5, size=(2, 3, 1)), rng.normal(size=(2, 3, 1))
    moved = (x.reshape(2, 3, -1) * scale + shift).reshape(x.shape)
    y, _ = group_norm_forward(x, weight, bias, 3, eps=0.0)
    y_moved, _ = group_norm_forward(moved, weight, bias, 3, eps=0.0)
    np.testing.assert_allclose(y_moved, y, atol=1e-12)


def test_a_constant_cotangent_pulls_back_to_zero_through_a_normalisation():
    x, _, bias, _ = draw((2, 6, 4, 4), 6)
    y, cache = group_norm_forward(x, np.ones(6), bias, 2)
    assert np.abs(group_norm_backward(np.ones_like(y), cache)[0]).max() < 1e-13
    y, cache = layer_norm_forward(x, np.ones(4), np.zeros(4))
    assert np.abs(layer_norm_backward(np.ones_like(y), cache)[0]).max() < 1e-13


@pytest.mark.parametrize("size", [8, 256])
def test_float32_is_accurate_with_a_mean_far_from_zero(size):
    x, weight, bias, rng = draw((1, 4, size, size), 4)
    x32 = (x + 100).astype(np.float32)
    w32, b32, dy = weight.astype(np.float32), bias.astype(np.float32), rng.normal(size=x.shape)
    y32, cache32 = group_norm_forward(x32, w32, b32, 2)
    y64, cache64 = group_norm_forward(x32.astype(float), w32.astype(float), b32.astype(float), 2)
    assert np.abs(y32 - y64).max() < 3e-5          # the mean, 100, is itself rounded to 4e-6
    dy = dy.astype(np.float32)
    grads32 = group_norm_backward(dy, cache32)
    for got, want in zip(grads32, group_norm_backward(dy.astype(float), cache64), strict=True):
        assert np.abs(got - want).max() < 3e-5 * np.abs(want).max()


def test_a_constant_picture_gives_the_bias_and_no_nan():
    x, weight, bias, rng = draw((2, 4, 3, 3), 4)
    y, cache = group_norm_forward(np.full_like(x, 7.0), weight, bias, 2)
    np.testing.assert_allclose(y, np.broadcast_to(bias[:, None, None], y.shape))
    assert np.isfinite(group_norm_backward(rng.normal(size=y.shape), cache)[0]).all()


def test_pictures_do_not_see_each_other():
    x, weight, bias, _ = draw((3, 4, 3, 3), 4)
    y, _ = group_norm_forward(x, weight, bias, 2)
    x[1] = 1e3
    y_other, _ = group_norm_forward(x, weight, bias, 2)
    np.testing.assert_array_equal(y[[0, 2]], y_other[[0, 2]])
    assert not np.allclose(y[1], y_other[1])


def test_frozen_weights_cost_no_gradient():
    x, weight, bias, rng = draw((2, 4, 3, 4), 4)
    dy = rng.normal(size=x.shape)
    for forward, backward in [
            (lambda: group_norm_forward(x, weight, bias, 2), group_norm_backward),
            (lambda: layer_norm_forward(x, weight, bias), layer_norm_backward)]:
        _, cache = forward()
        dx, dweight, dbias = backward(dy, cache, needs_dweight=False)
        assert dweight is None and dbias is None
        np.testing.assert_array_equal(dx, backward(dy, cache)[0])


def test_the_error_names_the_numbers():
    with pytest.raises(ValueError, match="num_groups=3 does not divide C=8"):
        group_norm_forward(np.ones((1, 8, 2, 2)), np.ones(8), np.ones(8), 3)


@pytest.mark.parametrize("shape", [(4, 3), (1, 1), (2, 3, 5)])
def test_unit_vectors_have_length_one_and_right_gradients(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    y, cache = unit_forward(x)
    np.testing.assert_allclose((y**2).sum(axis=-1), 1, rtol=1e-14)
    np.testing.assert_allclose(y, unit_forward(7 * x)[0], rtol=1e-14)
    dy = rng.normal(size=shape)
    dx = unit_backward(dy, cache)
    assert abs((dx * x).sum(axis=-1)).max() < 1e-13                   # length makes no difference
    if shape[-1] > 1:                                                 # else the derivative is zero
        assert_grad(lambda: unit_forward(x)[0], dict(x=x), dy, x=dx)
