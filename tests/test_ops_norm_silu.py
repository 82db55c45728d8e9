"""Normalisation, scale, shift and SiLU as one operation: right gradients, the same as its parts."""
import numpy as np
import pytest
from gradients import assert_grad

from tinydiff.ops import (
    group_norm_forward,
    group_norm_silu_backward,
    group_norm_silu_forward,
    silu_forward,
)

CASES = [((2, 6, 3, 5), 2), ((3, 4, 1, 1), 2), ((1, 4, 2, 2), 4), ((2, 6, 7), 1), ((2, 4), 2)]


def draw(shape):
    rng = np.random.default_rng(0)
    B, C = shape[:2]
    arrays = dict(x=rng.normal(size=shape), weight=rng.normal(size=C), bias=rng.normal(size=C))
    moved = dict(scale=rng.normal(size=(B, C)), shift=rng.normal(size=(B, C)))
    return arrays, moved, rng.normal(size=shape)


@pytest.mark.parametrize(("shape", "num_groups"), CASES)
def test_gradients(shape, num_groups):
    arrays, _, dy = draw(shape)
    f = lambda: group_norm_silu_forward(num_groups=num_groups, **arrays)[0]
    _, cache = group_norm_silu_forward(num_groups=num_groups, **arrays)
    dx, dweight, dbias, dscale, dshift = group_norm_silu_backward(dy, cache)
    assert dscale is None and dshift is None
    assert_grad(f, arrays, dy, x=dx, weight=dweight, bias=dbias)


@pytest.mark.parametrize(("shape", "num_groups"), CASES)
def test_gradients_with_scale_and_shift(shape, num_groups):
    arrays, moved, dy = draw(shape)
    arrays |= moved
    f = lambda: group_norm_silu_forward(num_groups=num_groups, eps=0.1, **arrays)[0]
    _, cache = group_norm_silu_forward(num_groups=num_groups, eps=0.1, **arrays)
    dx, dweight, dbias, dscale, dshift = group_norm_silu_backward(dy, cache)
    assert_grad(f, arrays, dy, x=dx, weight=dweight, bias=dbias, scale=dscale, shift=dshift)


def test_it_is_the_sequence_of_its_parts():
    arrays, moved, _ = draw((2, 6, 3, 5))
    h, _ = group_norm_forward(num_groups=3, eps=0.1, **arrays)
    y, _ = group_norm_silu_forward(num_groups=3, eps=0.1, **arrays)
    np.testing.assert_array_equal(y, silu_forward(h)[0])

    scale, shift = (a[:, :, None, None] for a in moved.values())
    y, _ = group_norm_silu_forward(num_groups=3, eps=0.1, **arrays, **moved)
    np.testing.assert_array_equal(y, silu_forward(h * (1 + scale) + shift)[0])


def test_frozen_weights_cost_no_gradient():
    arrays, moved, dy = draw((2, 4, 3, 4))
    _, cache = group_norm_silu_forward(num_groups=2, **arrays, **moved)
    dx, dweight, dbias, dscale, dshift = group_norm_silu_backward(dy, cache, needs_dweight=False)
    assert dweight is None and dbias is None
    full = group_norm_silu_backward(dy, cache)
    for got, want in [(dx, full[0]), (dscale, full[3]), (dshift, full[4])]:
        np.testing.assert_array_equal(got, want)
