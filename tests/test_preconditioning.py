"""Claims: EDM's network sees and makes numbers of variance 1 at every noise, and a network that
hits its target is a denoiser that returns the clean picture.
"""
import numpy as np
import pytest

from tinydiff.diffusion import q_sample
from tinydiff.preconditioning import Preconditioned, coefficients, network_target, weight
from tinydiff.schedules import EDM, Schedule

RNG = np.random.default_rng(0)
SIGMAS = (0.002, 0.1, 0.5, 3.0, 80.0)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_input_and_target_have_variance_one(sigma):
    x0, eps = 0.5 * RNG.normal(size=200_000), RNG.normal(size=200_000)
    c = coefficients(sigma)
    assert (c.into * (x0 + sigma * eps)).var() == pytest.approx(1, abs=0.02)
    assert network_target(x0, eps, sigma).var() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("sigma", SIGMAS)
def test_c_skip_leaves_the_network_the_least_to_do(sigma):
    c, h = coefficients(sigma), 1e-4
    left = lambda skip: ((1 - skip) * 0.5) ** 2 + (skip * sigma) ** 2       # c_out^2, App. B.6
    assert c.out == pytest.approx(left(c.skip) ** 0.5)
    assert left(c.skip) <= min(left(c.skip + h), left(c.skip - h))
    assert weight(sigma) == pytest.approx(1 / c.out**2)


@pytest.mark.parametrize("level", [*(EDM().level(s) for s in SIGMAS),
                                   Schedule.make("linear").level(400)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_network_that_hits_its_target_returns_the_picture(level, dtype):
    x0, eps = (RNG.normal(size=(2, 1, 3, 3)).astype(dtype) for _ in range(2))
    sigma = level.noise / level.signal
    seen = []

    def network(x, c_noise):
        seen.append(c_noise)
        return network_target(x0, eps, sigma)
    x0_hat, eps_hat = Preconditioned(network)(q_sample(x0, eps, level.signal, level.noise), level)
    assert x0_hat.dtype == eps_hat.dtype == dtype
    loose = 1e-9 if dtype == np.float64 else 1e-3
    np.testing.assert_allclose(x0_hat, x0, atol=loose * max(1, sigma))
    np.testing.assert_allclose(eps_hat, eps, atol=loose * max(1, 1 / sigma))
    assert seen == [pytest.approx(np.log(sigma) / 4)]
