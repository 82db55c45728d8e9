"""Claims: the likelihood along the flow is the oracle's exact log density, within 1e-3 bits per
dimension, on every family; Hutchinson's estimate has the exact trace as its mean.
"""
import numpy as np
import pytest

from tinydiff.diffusion import CLEAN, Level
from tinydiff.likelihood import bits, exact
from tinydiff.oracle import GaussianMixture
from tinydiff.schedules import EDM, Flow, Schedule

LINEAR = Schedule.make("linear")
DATA = GaussianMixture([[-0.6, 0.2, 0.1], [0.5, 0.5, -0.4]],
                       [np.diag([0.05, 0.1, 0.02]), [[0.1, 0.02, 0], [0.02, 0.05, 0], [0, 0, 0.2]]],
                       [0.4, 0.6])
X = DATA.sample(5, np.random.default_rng(0))


@pytest.mark.parametrize("schedule, start", [
    (LINEAR, 5), (Schedule.make("squaredcos_cap_v2", zero_snr=True), 20), (EDM(0.01, 400.0), 0.05),
    (Flow(), 20)])                                     # at sigma = 80 the data's mean still shows
def test_likelihood_is_the_oracles_density(schedule, start):
    t = schedule.level(start)
    x_t = DATA.flow(X, CLEAN, t)
    found = exact(DATA, x_t, t, schedule, rtol=1e-7)
    apart = (found - DATA.log_density(x_t, t)) / (3 * np.log(2))
    assert np.abs(apart).max() < 1e-3


def test_the_true_prior_leaves_the_integration_error_alone():
    t = LINEAR.level(5)
    x_t = DATA.flow(X, CLEAN, t)
    found = exact(DATA, x_t, t, LINEAR, prior=DATA.log_density, rtol=1e-9)
    np.testing.assert_allclose(found, DATA.log_density(x_t, t), atol=1e-5)


def test_hutchinsons_estimate_is_right_on_average():
    t, rng = LINEAR.level(200), np.random.default_rng(1)
    x_t = DATA.flow(X, CLEAN, t)
    many = np.repeat(x_t, 60, axis=0)
    found = exact(DATA, many, t, LINEAR, trace="hutchinson",
                  probe=rng.choice([-1.0, 1.0], many.shape), prior=DATA.log_density,
                  rtol=1e-4).reshape(5, 60)
    spread = found.std(axis=1, ddof=1) / np.sqrt(60)
    assert (np.abs(found.mean(axis=1) - DATA.log_density(x_t, t)) < 4 * spread + 1e-3).all()
    assert (spread > 0).any()


def test_pictures_of_any_shape_are_vectors():
    t = LINEAR.level(300)
    x_t = DATA.flow(X, CLEAN, t)
    shaped = exact(DATA, x_t.reshape(5, 3, 1, 1), t, LINEAR, rtol=1e-4)
    np.testing.assert_allclose(shaped, exact(DATA, x_t, t, LINEAR, rtol=1e-4), atol=1e-9)


def test_bits_of_a_uniform_density_are_the_bits_of_a_pixel():
    assert bits(np.array([-10 * np.log(2.0)]), 10)[0] == pytest.approx(8)
    assert bits(np.array([-10 * np.log(2.0)]), 10, bins=2)[0] == pytest.approx(1)


@pytest.mark.parametrize("options, message", [
    ({"trace": "guess"}, "unknown trace 'guess'"), ({"trace": "hutchinson"}, "needs a probe"),
    ({"t": CLEAN}, "pass a level above")])
def test_bad_input_is_one_line(options, message):
    options = {"t": Level(200.0, 0.8, 0.6), **options}
    with pytest.raises(ValueError, match=message) as error:
        exact(DATA, X, schedule=LINEAR, **options)
    assert "\n" not in str(error.value)
