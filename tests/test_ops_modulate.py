"""Modulation and gates: what all tokens of a picture share collects from all of them."""
import numpy as np
import pytest
from gradients import assert_adjoint, assert_grad

from tinydiff.ops import gate_backward, gate_forward, modulate_backward, modulate_forward

each_shape = pytest.mark.parametrize("shape", [(2, 3, 4), (1, 1, 1), (3, 1, 2)])


def draw(shape):
    rng = np.random.default_rng(0)
    B, _, D = shape
    x, scale, shift, gate = (rng.normal(size=s) for s in (shape, (B, D), (B, D), (B, D)))
    return x, scale, shift, gate, rng.normal(size=shape)


@each_shape
def test_modulation_is_its_definition_and_its_gradients_are_derivatives(shape):
    x, scale, shift, _, dy = draw(shape)
    y, cache = modulate_forward(x, scale, shift)
    for b, n, d in np.ndindex(shape):
        assert y[b, n, d] == pytest.approx(x[b, n, d] * (1 + scale[b, d]) + shift[b, d])
    dx, dscale, dshift = modulate_backward(dy, cache)
    assert_grad(lambda: modulate_forward(x, scale, shift)[0],
                dict(x=x, scale=scale, shift=shift), dy, x=dx, scale=dscale, shift=dshift)


@each_shape
def test_a_gate_is_its_definition_and_its_gradients_are_derivatives(shape):
    x, _, _, gate, dy = draw(shape)
    y, cache = gate_forward(x, gate)
    for b, n, d in np.ndindex(shape):
        assert y[b, n, d] == x[b, n, d] * gate[b, d]
    dx, dgate = gate_backward(dy, cache)
    assert_grad(lambda: gate_forward(x, gate)[0], dict(x=x, gate=gate), dy, x=dx, gate=dgate)
    assert_adjoint(lambda x: gate_forward(x, gate)[0], lambda dy: gate_backward(dy, cache)[0],
                   x, dy)


def test_nothing_asked_for_changes_nothing_and_a_shut_gate_lets_nothing_through():
    x, scale, shift, gate, _ = draw((2, 3, 4))
    np.testing.assert_array_equal(modulate_forward(x, 0 * scale, 0 * shift)[0], x)
    assert not gate_forward(x, 0 * gate)[0].any()
