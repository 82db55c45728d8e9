"""A draw from a Gaussian has the Gaussian's moments, and a derivative in both of them."""
import numpy as np
from gradients import assert_grad

from tinydiff.ops import (
    clamp_backward,
    clamp_forward,
    reparameterise_backward,
    reparameterise_forward,
)

RNG = np.random.default_rng(0)


def test_clamp_moves_what_is_outside_and_nothing_else():
    x = np.array([-40.0, -30.0, -29.9, 0.0, 20.0, 20.1])
    y, cache = clamp_forward(x, -30.0, 20.0)
    np.testing.assert_array_equal(y, [-30, -30, -29.9, 0, 20, 20])
    np.testing.assert_array_equal(clamp_backward(np.arange(1.0, 7), cache), [0, 2, 3, 4, 5, 0])


def test_clamp_gradient():
    x = 2 * RNG.normal(size=(3, 4))
    dy = RNG.normal(size=x.shape)
    y, cache = clamp_forward(x, -1.0, 1.5)
    assert (y != x).any() and (y == x).any()
    assert_grad(lambda: clamp_forward(x, -1.0, 1.5)[0], {"x": x}, dy, x=clamp_backward(dy, cache))


def test_a_draw_has_the_mean_and_the_variance_that_were_asked_for():
    n = 200_000
    mean, logvar = np.array([3.0, -1.0]), np.log([0.25, 9.0])
    z, _ = reparameterise_forward(mean, logvar, RNG.normal(size=(n, 2)))
    std = np.sqrt([0.25, 9.0])
    assert (abs(z.mean(axis=0) - mean) < 5 * std / np.sqrt(n)).all()
    assert (abs(z.std(axis=0) / std - 1) < 5 / np.sqrt(2 * n)).all()


def test_without_noise_a_draw_is_the_mean():
    mean, logvar = RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3))
    z, _ = reparameterise_forward(mean, logvar, np.zeros((2, 3)))
    np.testing.assert_array_equal(z, mean)


def test_reparameterise_gradients():
    mean, logvar, eps, dz = (RNG.normal(size=(2, 3, 4)) for _ in range(4))
    _, cache = reparameterise_forward(mean, logvar, eps)
    dmean, dlogvar = reparameterise_backward(dz, cache)
    assert_grad(lambda: reparameterise_forward(mean, logvar, eps)[0],
                {"mean": mean, "logvar": logvar}, dz, mean=dmean, logvar=dlogvar)
