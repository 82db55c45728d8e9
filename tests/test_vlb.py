"""Claims: each term of the bound is what its definition integrates to, with exact gradients; on
Gaussian data the bound is the code length it should be; the hybrid loss moves variances only.
"""
from itertools import pairwise
from math import erf, log, pi, sqrt

import numpy as np
import pytest
from gradients import assert_grad

from tinydiff.diffusion import CLEAN, posterior, q_sample, transition
from tinydiff.grids import levels
from tinydiff.likelihood import bound, drawn_steps
from tinydiff.schedules import Schedule
from tinydiff.vlb import (
    discretised_nll,
    hybrid,
    kl_normal,
    learned_log_variance,
    prior_term,
    step_term,
)

LINEAR = Schedule.make("linear")
RNG = np.random.default_rng(0)
X0 = (2 * RNG.integers(0, 256, (2, 3, 4, 4)) / 255 - 1).clip(-1, 1)
EPS = RNG.normal(size=X0.shape)


def test_kl_is_its_integral():
    x = np.linspace(-30, 30, 600_001)
    density = lambda m, v: np.exp(-(x - m) ** 2 / (2 * v)) / np.sqrt(2 * pi * v)
    p, q = density(0.3, 0.5), density(-0.4, 1.7)
    inside = p > 1e-300
    want = (p[inside] * np.log(p[inside] / q[inside])).sum() * (x[1] - x[0])
    assert kl_normal(0.3, log(0.5), -0.4, log(1.7))[0] == pytest.approx(want, abs=1e-9)
    assert kl_normal(0.3, log(0.5), 0.3, log(0.5)) == pytest.approx((0, 0, 0), abs=1e-15)


def test_kl_gradients():
    mean, log_variance, mean_hat, log_variance_hat = RNG.normal(size=(4, 5))
    dy = RNG.normal(size=5)
    _, dmean, dlog = kl_normal(mean, log_variance, mean_hat, log_variance_hat)
    f = lambda: kl_normal(mean, log_variance, mean_hat, log_variance_hat)[0]
    assert_grad(f, dict(m=mean_hat, v=log_variance_hat), dy, m=dy * dmean, v=dy * dlog)


@pytest.mark.parametrize("deviation", [0.001, 0.01, 0.3])
def test_a_pixels_bins_have_probability_one_in_all(deviation):
    pixels = np.linspace(-1, 1, 256)
    for mean in (-1.2, -0.31, 0.0, 1.0):
        nll = discretised_nll(pixels, np.full(256, mean), np.full(256, 2 * log(deviation)))[0]
        assert np.exp(-nll).sum() == pytest.approx(1, abs=1e-9)


def test_a_bin_is_the_gaussian_between_its_edges():
    phi = lambda z: (1 + erf(z / sqrt(2))) / 2
    pixel, mean, deviation = 2 * 100 / 255 - 1, -0.25, 0.02
    want = phi((pixel + 1 / 255 - mean) / deviation) - phi((pixel - 1 / 255 - mean) / deviation)
    nll, _, _ = discretised_nll(np.array([pixel]), np.array([mean]),
                                np.array([2 * log(deviation)]))
    assert nll[0] == pytest.approx(-log(want), rel=1e-9)


def test_a_hopeless_prediction_costs_finitely_much():
    nll, dmean, dlog = discretised_nll(np.array([1.0, -1.0, 0.0]), np.array([-1.0, 1.0, 1.0]),
                                       np.full(3, 2 * log(0.002)))
    assert np.isfinite(nll).all() and np.isfinite(dmean).all() and np.isfinite(dlog).all()
    assert (nll > 1e4).all() and dmean[0] < 0 < dmean[1] and dmean[2] > 0


def test_discretised_gradients():
    x0 = np.array([-1.0, -0.2156862745, 0.00392156863, 0.5, 1.0])
    mean, log_variance = x0 + 0.02 * RNG.normal(size=5), 2 * np.log(RNG.uniform(0.01, 0.1, 5))
    dy = RNG.normal(size=5)
    _, dmean, dlog = discretised_nll(x0, mean, log_variance)
    f = lambda: discretised_nll(x0, mean, log_variance)[0]
    assert_grad(f, dict(m=mean, v=log_variance), dy, m=dy * dmean, v=dy * dlog)


@pytest.mark.parametrize("t, s", [(1, 0), (2, 1), (500, 480), (1000, 3)])
def test_step_term_gradients(t, s):
    t, s = LINEAR.level(t), LINEAR.level(s)
    x_t = q_sample(X0, EPS, t.signal, t.noise)
    x0_hat = X0 + 0.01 * RNG.normal(size=X0.shape)
    log_variance, _ = learned_log_variance(RNG.uniform(0, 1, X0.shape), t, s)
    term, dx0, dlog = step_term(X0, x_t, x0_hat, log_variance, t, s)
    dy = RNG.normal(size=term.shape)
    direction, h = RNG.normal(size=x0_hat.shape) * 1e-2, 1e-5
    for array, gradient in ((x0_hat, dx0), (log_variance, dlog)):
        values = []
        for sign in (1, -1):
            array += sign * h * direction
            values.append((dy * step_term(X0, x_t, x0_hat, log_variance, t, s)[0]).sum())
            array -= sign * h * direction
        slope = (values[0] - values[1]) / (2 * h)
        assert slope == pytest.approx((dy * gradient * direction).sum(), rel=1e-6)


def test_learned_variances_reach_from_beta_tilde_to_beta():
    for t, s in ((2, 1), (500, 499), (1000, 700)):
        t, s = LINEAR.level(t), LINEAR.level(s)
        _, beta_tilde = posterior(0.0, 0.0, t, s)
        _, beta = transition(s, t)
        assert learned_log_variance(0.0, t, s)[0] == pytest.approx(log(beta_tilde))
        assert learned_log_variance(1.0, t, s)[0] == pytest.approx(log(beta))


def test_hybrid_is_l_simple_and_a_little_of_the_bound():
    t, s = LINEAR.level(300), LINEAR.level(299)
    x_t = q_sample(X0, EPS, t.signal, t.noise)
    eps_hat, share = EPS + 0.1 * RNG.normal(size=EPS.shape), RNG.uniform(0, 1, EPS.shape)
    value, deps, dshare = hybrid(eps_hat, share, EPS, X0, x_t, t, s)
    simple, without, _ = hybrid(eps_hat, share, EPS, X0, x_t, t, s, weight=0.0)
    np.testing.assert_array_equal(deps, without)       # the bound's gradient is stopped there
    assert simple == pytest.approx(((eps_hat - EPS) ** 2).mean()) and value > simple
    direction, h = RNG.normal(size=share.shape), 1e-5
    up, down = (hybrid(eps_hat, share + sign * h * direction, EPS, X0, x_t, t, s)[0]
                for sign in (1, -1))
    assert (up - down) / (2 * h) == pytest.approx((dshare * direction).sum(), rel=1e-6)


def test_the_prior_term_vanishes_as_the_signal_does():
    assert prior_term(X0, Schedule.make("linear", zero_snr=True).level(1000)).max() == 0
    whole = prior_term(X0, LINEAR.level(1000))
    assert 0 < whole.mean() < 1e-4


# ---- all of it, on data whose entropy is known ----


def gaussian(x_t, t, mu=0.1, deviation=0.25):
    """The exact denoiser of x0 ~ N(mu, deviation^2)."""
    power = (t.signal * deviation) ** 2 + t.noise**2
    return (mu + t.signal * deviation**2 / power * (x_t - t.signal * mu),
            t.noise / power * (x_t - t.signal * mu))


def quantised(n):
    """Gaussian pixels rounded to the 256 values, and their entropy in bits."""
    pixel = lambda x: ((x + 1) * 127.5).round().clip(0, 255) / 127.5 - 1
    x0 = pixel(0.1 + 0.25 * np.random.default_rng(3).normal(size=(4, n)))
    density = -np.log2(np.exp(-(x0 - 0.1) ** 2 / 0.125) / (0.25 * sqrt(2 * pi)) / 127.5)
    return x0, density.mean(axis=1)


def test_the_bound_of_the_exact_denoiser_is_near_the_entropy_and_never_below():
    x0, entropy = quantised(4000)
    draws = np.random.default_rng(4)
    grid = [LINEAR.level(t) for t in range(1000, -1, -1)]
    found = bound(gaussian, x0, grid, lambda k: draws.normal(size=x0.shape), "large")
    assert (found.total > entropy - 0.05).all()        # of a sample, not of the distribution
    assert found.total.mean() == pytest.approx(entropy.mean(), abs=0.1)
    assert found.steps.shape == (999, 4) and (found.steps.mean(axis=1) > -1e-9).all()
    np.testing.assert_allclose(found.total, found.prior + found.steps.sum(axis=0) + found.decoder)


def test_drawn_steps_stand_for_all_of_them():
    """On average exactly, whatever the profile; nearly always, if it is right."""
    x0, _ = quantised(500)
    grid, draws = levels(LINEAR, 40), np.random.default_rng(4).normal(size=(40, *x0.shape))
    whole = bound(gaussian, x0, grid, lambda k: draws[k])
    by = lambda profile, u: bound(gaussian, x0, grid, lambda k: draws[k],
                                  chosen=drawn_steps(profile, 5, u)).total
    even = [by(np.ones(39), u) for u in (np.arange(500) + 0.5) / 500]
    np.testing.assert_allclose(np.mean(even, axis=0), whole.total, rtol=2e-3)
    right = [by(whole.steps.mean(axis=1), u) for u in (np.arange(100) + 0.5) / 100]
    np.testing.assert_allclose(np.mean(right, axis=0), whole.total, rtol=2e-3)
    assert np.std(right, axis=0).max() < 0.2 * np.std(even, axis=0).max()


def test_a_worse_denoiser_a_shorter_chain_or_too_small_a_variance_costs_more_bits():
    x0, _ = quantised(1000)
    costs = []
    for denoise, steps, variance in (
            (gaussian, 1000, "large"), (gaussian, 20, "large"),
            (lambda x, t: gaussian(x, t, mu=0.4), 1000, "large"), (gaussian, 1000, "small")):
        draws = np.random.default_rng(4)
        costs.append(bound(denoise, x0, levels(LINEAR, steps),
                           lambda k, draws=draws: draws.normal(size=x0.shape), variance
                           ).total.mean())
    assert costs[0] == min(costs) and costs[0] < costs[1] - 0.1


def test_a_learned_variance_that_says_small_is_the_small_one():
    x0, _ = quantised(200)
    learnt = lambda x_t, t: (*gaussian(x_t, t), np.zeros_like(x_t))
    grid = levels(LINEAR, 30)
    small, learned = (bound(denoise, x0, grid, lambda k: EPS.ravel()[:1], variance).total
                      for denoise, variance in ((gaussian, "small"), (learnt, "learned")))
    np.testing.assert_allclose(small, learned)


def test_bad_input_is_one_line():
    grid = levels(LINEAR, 3)
    with pytest.raises(ValueError, match="small, large, learned"):
        bound(gaussian, X0, grid, lambda k: EPS, "huge")
    with pytest.raises(ValueError, match="must return a third"):
        bound(gaussian, X0, grid, lambda k: EPS, "learned")
    with pytest.raises(ValueError, match="must end there"):
        bound(gaussian, X0, grid[:-1], lambda k: EPS)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_terms_keep_the_dtype(dtype):
    x0, eps = X0.astype(dtype), EPS.astype(dtype)
    for t, s in pairwise([LINEAR.level(40), LINEAR.level(1), CLEAN]):
        x_t = q_sample(x0, eps, t.signal, t.noise)
        log_variance, _ = learned_log_variance(eps, t, s)
        assert {a.dtype for a in step_term(x0, x_t, x0, log_variance, t, s)} == {np.dtype(dtype)}
        assert {a.dtype for a in hybrid(eps, eps, eps, x0, x_t, t, s)[1:]} == {np.dtype(dtype)}
