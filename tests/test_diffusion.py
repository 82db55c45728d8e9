"""Claims: q(x_t | x_0) is t single steps of the chain; the posterior is Bayes' rule; nothing
changes a batch's dtype.
"""
from itertools import combinations, pairwise
from math import sqrt

import numpy as np
import pytest

from tinydiff.diffusion import CLEAN, Level, Step, posterior, q_sample, q_step, transition
from tinydiff.schedules import Schedule

LINEAR = Schedule.make("linear")
SCHEDULES = [LINEAR, Schedule.make("scaled_linear", 1000, 0.00085, 0.012),
             Schedule.make("squaredcos_cap_v2")]


@pytest.mark.parametrize("t", [1, 17, 500, 1000])
def test_q_sample_has_the_mean_and_variance_of_its_level(t):
    n, level = 200_000, LINEAR.level(t)
    eps = np.random.default_rng(t).normal(size=n)
    x_t = q_sample(np.full(n, 0.7), eps, level.signal, level.noise)
    standard_error = level.noise / sqrt(n)
    assert abs(x_t.mean() - level.signal * 0.7) < 4 * standard_error
    assert x_t.var() == pytest.approx(level.noise**2, rel=4 * sqrt(2 / n))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_q_sample_is_t_single_steps_exactly(schedule):
    signal, variance = 1.0, 0.0
    for s, t in pairwise(map(schedule.level, range(schedule.T + 1))):
        ratio, spread = q_step(1.0, 0.0, s, t), q_step(0.0, 1.0, s, t)
        signal, variance = ratio * signal, ratio**2 * variance + spread**2
        assert signal == pytest.approx(t.signal, rel=1e-10)
        assert variance == pytest.approx(t.noise**2, rel=1e-10)


def test_samples_of_the_chain_are_samples_of_the_one_shot():
    n, schedule, rng = 100_000, Schedule.make("linear", 20, 0.001, 0.3), np.random.default_rng(0)
    x = np.full(n, -0.4)
    for s, t in pairwise(map(schedule.level, range(21))):
        x = q_step(x, rng.normal(size=n), s, t)
    assert abs(x.mean() + 0.4 * t.signal) < 4 * t.noise / sqrt(n)
    assert x.var() == pytest.approx(t.noise**2, rel=4 * sqrt(2 / n))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_one_step_of_the_chain_has_the_tables_beta(schedule):
    for t in (1, 2, 17, 999, 1000):
        beta_t = 1 - schedule.alpha_bar[t] / schedule.alpha_bar[t - 1]
        ratio, variance = transition(schedule.level(t - 1), schedule.level(t))
        assert ratio == pytest.approx(sqrt(1 - beta_t), rel=1e-9)
        assert variance == pytest.approx(beta_t, rel=1e-9)


def test_two_transitions_make_one():
    r, s, t = LINEAR.level(10), LINEAR.level(200.5), LINEAR.level(640)
    (ratio_rs, variance_rs), (ratio_st, variance_st) = transition(r, s), transition(s, t)
    assert transition(r, t) == pytest.approx(
        (ratio_rs * ratio_st, ratio_st**2 * variance_rs + variance_st), rel=1e-12)


@pytest.mark.parametrize("s, t", list(combinations([1, 2, 17, 300.25, 999, 1000], 2)))
def test_the_posterior_is_bayes_rule(s, t):
    """Condition the joint Gaussian of (x_s, x_t) given x0 by its covariances."""
    s, t = LINEAR.level(s), LINEAR.level(t)
    x0, x_t = 0.3, -1.1
    covariance = t.signal / s.signal * s.noise**2
    mean = s.signal * x0 + covariance / t.noise**2 * (x_t - t.signal * x0)
    variance = s.noise**2 - covariance**2 / t.noise**2
    assert posterior(x_t, x0, t, s) == pytest.approx((mean, variance), rel=1e-9)


@pytest.mark.parametrize("t", [2, 17, 500, 1000])
def test_the_posterior_is_the_papers_equation_7(t):
    alpha_bar = LINEAR.alpha_bar
    alpha_t, beta_t = alpha_bar[t] / alpha_bar[t - 1], 1 - alpha_bar[t] / alpha_bar[t - 1]
    x0, x_t = 0.3, -1.1
    mu_tilde = (sqrt(alpha_bar[t - 1]) * beta_t / (1 - alpha_bar[t]) * x0
                + sqrt(alpha_t) * (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * x_t)
    beta_tilde = (1 - alpha_bar[t - 1]) / (1 - alpha_bar[t]) * beta_t
    got = posterior(x_t, x0, LINEAR.level(t), LINEAR.level(t - 1))
    assert got == pytest.approx((mu_tilde, beta_tilde), rel=1e-9)


@pytest.mark.parametrize("t", [LINEAR.level(1), LINEAR.level(1000), Level(3.0, 0.0, 1.0)])
def test_the_posterior_of_clean_data_is_the_data_exactly(t):
    x0 = np.random.default_rng(0).normal(size=5)
    mean, variance = posterior(np.full(5, 9.9), x0, t, CLEAN)
    np.testing.assert_array_equal(mean, x0)
    assert variance == 0


def test_the_posterior_without_any_signal_forgets_x_t():
    s, x_t, x0 = LINEAR.level(500), np.array([2.0]), np.array([0.3])
    mean, variance = posterior(x_t, x0, Level(1000.0, 0.0, 1.0), s)
    assert mean == pytest.approx(s.signal * x0)
    assert variance == pytest.approx(s.noise**2)


def test_a_posterior_draw_from_a_true_x_t_is_a_true_x_s():
    """Marginalising q(x_s | x_t, x0) over q(x_t | x0) gives q(x_s | x0)."""
    s, t = LINEAR.level(123), LINEAR.level(871)
    mean_at = lambda x_t: posterior(x_t, 0.6, t, s)[0]
    slope, variance = mean_at(1.0) - mean_at(0.0), posterior(0.0, 0.6, t, s)[1]
    assert mean_at(t.signal * 0.6) == pytest.approx(s.signal * 0.6, rel=1e-12)
    assert slope**2 * t.noise**2 + variance == pytest.approx(s.noise**2, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_forward_process_keeps_the_dtype(dtype):
    x0, eps = np.ones((2, 3, 4, 4), dtype), np.ones((2, 3, 4, 4), dtype)
    s, t = LINEAR.level(3), LINEAR.level(700.5)
    many = LINEAR.batch([3, 700], x0)
    for x_t in (q_sample(x0, eps, t.signal, t.noise), q_sample(x0, eps, many.signal, many.noise),
                q_step(x0, eps, s, t), posterior(x0, eps, t, s)[0]):
        assert x_t.dtype == dtype and x_t.shape == x0.shape
    assert type(posterior(x0, eps, t, s)[1]) is float


def test_each_picture_of_a_batch_gets_its_own_level():
    rng = np.random.default_rng(0)
    x0, eps = rng.normal(size=(2, 3, 2, 4, 4))
    many = LINEAR.batch([1, 900, 30], x0)
    together = q_sample(x0, eps, many.signal, many.noise)
    for k, t in enumerate((1, 900, 30)):
        level = LINEAR.level(t)
        np.testing.assert_array_equal(together[k],
                                      q_sample(x0[k], eps[k], level.signal, level.noise))


def test_levels_and_steps_are_plain_tuples():
    t, signal, noise = LINEAR.level(5)
    assert (t, signal, noise) == LINEAR.level(5)
    assert Step._fields == ("t", "s", "x_t", "x0_hat", "eps_hat", "x_s")
