"""Every non-linearity: right gradient, right values, calm at the extremes."""
import math

import numpy as np
import pytest
from gradients import assert_grad

from tinydiff import ops

NAMES = ["relu", "silu", "quick_gelu", "mish", "gelu", "gelu_tanh", "geglu"]


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def normal_cdf(x):
    return math.erfc(-x / math.sqrt(2)) / 2


DEFINITIONS = {
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x * sigmoid(x),
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "gelu": lambda x: x * normal_cdf(x),
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh((x + 0.044715 * x**3) * math.sqrt(2 / math.pi))),
}


def pair(name):
    return getattr(ops, f"{name}_forward"), getattr(ops, f"{name}_backward")


@pytest.mark.parametrize("shape", [(6,), (1, 2), (3, 2, 4), (2, 1, 3, 2)])
@pytest.mark.parametrize("name", NAMES)
def test_gradients(name, shape):
    forward, backward = pair(name)
    rng = np.random.default_rng(0)
    x = 2 * rng.normal(size=shape)
    y, cache = forward(x)
    dy = rng.normal(size=y.shape)
    assert_grad(lambda: forward(x)[0], dict(x=x), dy, x=backward(dy, cache))


@pytest.mark.parametrize("name", DEFINITIONS)
def test_values_are_the_definition(name):
    x = np.linspace(-20, 20, 101)
    want = [DEFINITIONS[name](v) for v in x.tolist()]
    np.testing.assert_allclose(pair(name)[0](x)[0], want, atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_overflows_at_the_extremes(name, dtype):
    forward, backward = pair(name)
    x = np.array([-1e4, -88.0, -1.0, -0.0, 0.0, 1.0, 88.0, 1e4], dtype)
    y, cache = forward(x)
    dx = backward(np.ones_like(y), cache)
    assert np.isfinite(y).all() and np.isfinite(dx).all()
    if name != "geglu":
        np.testing.assert_allclose(y[[0, -1]], [0.0, 1e4], atol=1e-30)
        np.testing.assert_allclose(dx[[0, -1]], [0.0, 1.0], atol=1e-30)


def test_float32_gelu_is_as_exact_as_float32():
    x = np.linspace(-12, 12, 100001).astype(np.float32)
    y, (_, cdf) = ops.gelu_forward(x)
    exact, (_, exact_cdf) = ops.gelu_forward(x.astype(np.float64))
    eps = float(np.finfo(np.float32).eps)
    assert np.abs(cdf - exact_cdf).max() < 3 * eps
    assert np.abs(y - exact).max() < 4 * eps * np.sqrt(12)


def test_geglu_multiplies_the_first_half_by_the_gelu_of_the_second():
    y, _ = ops.geglu_forward(np.array([[2.0, 3.0, 0.5, -1.0]]))
    np.testing.assert_allclose(y, [[2 * 0.5 * normal_cdf(0.5), 3 * -1 * normal_cdf(-1.0)]])


def test_geglu_names_an_odd_length():
    with pytest.raises(ValueError, match="length 5 is odd"):
        ops.geglu_forward(np.ones((2, 5)))
