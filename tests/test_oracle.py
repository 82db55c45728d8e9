"""Claims: the oracle's denoiser is the mean that numerical integration finds; score is the gradient
of the log density; conditionals are Bayes' rule; the flow carries the density along.
"""
from math import pi

import numpy as np
import pytest

from tinydiff.diffusion import CLEAN, Level
from tinydiff.oracle import FiniteData, GaussianMixture, guided_oracle
from tinydiff.schedules import EDM, Flow, Schedule

LEVELS = [Schedule.make("linear").level(t) for t in (1, 300, 1000)] + [
    EDM().level(3.0), Flow().level(400), Level(1000.0, 0.0, 1.0)]


def spread(K, D, seed=0):
    """A mixture with full covariances and unequal weights."""
    rng = np.random.default_rng(seed)
    A = rng.normal(size=(K, D, D)) / 2
    return GaussianMixture(rng.normal(size=(K, D)) * 2, A @ A.transpose(0, 2, 1),
                           rng.uniform(0.5, 2, K), [k % 2 for k in range(K)])


MIXTURE, LINE = spread(3, 2), spread(3, 1)
RNG = np.random.default_rng(1)


def normal_density(x, mean, variance):
    return np.exp(-(x - mean) ** 2 / (2 * variance)) / np.sqrt(2 * pi * variance)


@pytest.mark.parametrize("level", LEVELS)
def test_the_denoiser_is_the_posterior_mean_by_numerical_integration(level):
    x0 = np.linspace(-12, 12, 48001)
    prior = sum(w * normal_density(x0, m[0], C[0, 0])
                for w, m, C in zip(LINE.weights, LINE.means, LINE.covariances, strict=True))
    for x_t in (-3.0, -0.2, 1.5):
        joint = prior * normal_density(x_t, level.signal * x0, level.noise**2)
        mean = (joint * x0).sum() / joint.sum()
        x0_hat, eps_hat = LINE(np.array([[x_t]]), level)
        assert x0_hat[0, 0] == pytest.approx(mean, abs=1e-6)
        assert eps_hat[0, 0] == pytest.approx((x_t - level.signal * mean) / level.noise, abs=1e-4)
        density = joint.sum() * (x0[1] - x0[0])
        assert LINE.log_density(np.array([[x_t]]), level)[0] == pytest.approx(np.log(density),
                                                                              abs=1e-6)


@pytest.mark.parametrize("level", LEVELS)
def test_the_two_halves_make_up_x_t(level):
    x_t = RNG.normal(size=(7, 2)) * 2
    x0_hat, eps_hat = MIXTURE(x_t, level)
    np.testing.assert_allclose(level.signal * x0_hat + level.noise * eps_hat, x_t, atol=1e-10)


@pytest.mark.parametrize("level", LEVELS)
def test_the_score_is_the_gradient_of_the_log_density_and_minus_eps_over_noise(level):
    x_t, h = RNG.normal(size=(5, 2)), 1e-5
    score = MIXTURE.score(x_t, level)
    for i in range(2):
        nudge = h * np.eye(2)[i]
        slope = (MIXTURE.log_density(x_t + nudge, level)
                 - MIXTURE.log_density(x_t - nudge, level)) / (2 * h)
        np.testing.assert_allclose(score[:, i], slope, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(-MIXTURE(x_t, level)[1] / level.noise, score, rtol=1e-9, atol=1e-9)


def test_samples_have_the_stated_moments():
    n = 200_000
    x0 = MIXTURE.sample(n, np.random.default_rng(0))
    mean, covariance = MIXTURE.moments(CLEAN)
    assert np.abs(x0.mean(axis=0) - mean).max() < 4 * np.sqrt(covariance.max() / n)
    np.testing.assert_allclose(np.cov(x0.T), covariance, atol=0.1)
    level = LEVELS[1]
    mean, noisy = MIXTURE.moments(level)
    np.testing.assert_allclose(noisy, level.signal**2 * covariance + level.noise**2 * np.eye(2))


def test_known_entries_condition_by_bayes_rule():
    """The density of the rest, given x_1 = y, is the joint's slice, normalised."""
    y, others = 0.4, np.linspace(-15, 15, 30001)
    plane = np.stack([np.full_like(others, y), others], axis=1)
    joint = np.exp(MIXTURE.log_density(plane, CLEAN))
    step = others[1] - others[0]
    given = MIXTURE.given(np.array([True, False]), np.array([y]))
    mean, covariance = given.moments(CLEAN)
    expected = (joint * others).sum() / joint.sum()
    assert mean == pytest.approx([y, expected], abs=1e-6)
    assert covariance[1, 1] == pytest.approx(
        (joint * (others - expected) ** 2).sum() / joint.sum(), abs=1e-5)
    assert np.abs(covariance[0]).max() < 1e-12
    assert joint.sum() * step == pytest.approx(                        # the marginal of y
        np.exp(GaussianMixture(MIXTURE.means[:, :1], MIXTURE.covariances[:, :1, :1],
                               MIXTURE.weights).log_density(np.array([[y]]), CLEAN)[0]), rel=1e-6)


def test_classes_share_out_the_density():
    x_t, level = RNG.normal(size=(6, 2)), LEVELS[1]
    share = {label: MIXTURE.weights[[own == label for own in MIXTURE.labels]].sum()
             for label in (0, 1)}
    total = sum(share[label] * np.exp(MIXTURE.of_class(label).log_density(x_t, level))
                for label in (0, 1))
    np.testing.assert_allclose(np.log(total), MIXTURE.log_density(x_t, level), rtol=1e-10)


@pytest.mark.parametrize("mixture", [MIXTURE, GaussianMixture([[1.0, -2.0]], [[[2, 1], [1, 1]]])])
@pytest.mark.parametrize("t, s", [(LEVELS[2], LEVELS[0]), (LEVELS[0], LEVELS[1]),
                                  (LEVELS[1], CLEAN)])
def test_the_flow_follows_the_density(mixture, t, s):
    """Along the flow the density changes by the flow's own Jacobian: p_s(x_s) |dx_s/dx_t| = p_t."""
    x_t, h = RNG.normal(size=(4, 2)), 1e-4
    nudges = np.concatenate([np.zeros((1, 2)), h * np.eye(2), -h * np.eye(2)])     # (5, 2)
    moved = mixture.flow((x_t + nudges[:, None]).reshape(20, 2), t, s).reshape(5, 4, 2)
    x_s, jacobian = moved[0], np.stack((moved[1:3] - moved[3:]) / (2 * h), axis=2)
    log_det = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(mixture.log_density(x_s, s) + log_det,
                               mixture.log_density(x_t, t), atol=1e-5)
    np.testing.assert_allclose(mixture.flow(x_s, s, t), x_t, atol=1e-9)


def test_one_gaussian_has_the_closed_flow_of_its_own_integral():
    gaussian = GaussianMixture([[1.0, -2.0]], [[[2, 1], [1, 1]]])
    twins = GaussianMixture([[1.0, -2.0]] * 2, [[[2, 1], [1, 1]]] * 2)      # is integrated
    x_t = RNG.normal(size=(5, 2))
    np.testing.assert_allclose(gaussian.flow(x_t, LEVELS[2], LEVELS[0]),
                               twins.flow(x_t, LEVELS[2], LEVELS[0]), atol=1e-10)


# ---- a finite data set ----


PICTURES = RNG.uniform(-1, 1, (6, 1, 2, 2))


@pytest.mark.parametrize("level", LEVELS)
def test_a_finite_data_set_is_the_mixture_without_variance(level):
    x_t = RNG.normal(size=(3, 1, 2, 2))
    data = FiniteData(PICTURES)
    limit = GaussianMixture(PICTURES.reshape(6, 4), 0.0)
    np.testing.assert_allclose(data(x_t, level)[0], limit(x_t, level)[0], atol=1e-9)
    np.testing.assert_allclose(data(x_t, level)[1], limit(x_t, level)[1], atol=1e-6)


def test_little_noise_shows_the_picture_itself():
    level = Schedule.make("linear").level(1)
    x_t = level.signal * PICTURES + level.noise * 0.1
    np.testing.assert_allclose(FiniteData(PICTURES)(x_t, level)[0], PICTURES, atol=1e-9)


def test_known_pixels_leave_the_pictures_that_agree():
    pictures = np.concatenate([PICTURES, PICTURES[:1] * [[[1.0, -1.0], [1.0, 1.0]]]])
    known = np.array([[[True, False], [True, True]]])
    data = FiniteData(pictures, labels=[0, 0, 0, 0, 0, 0, 1])
    agree = data.given(known, pictures[0])
    np.testing.assert_array_equal(agree.pictures, pictures[[0, 6]])
    assert agree.of_class(1).pictures.shape[0] == 1
    with pytest.raises(ValueError, match="no picture of the data set agrees"):
        data.given(known, pictures[0] + 1)


# ---- guidance, dtype, bad input ----


def test_guidance_of_weight_zero_and_one_are_the_two_oracles():
    x_t, level = RNG.normal(size=(6, 2)), LEVELS[1]
    one, all_of_it = MIXTURE.of_class(1), MIXTURE
    for w, which in ((0.0, all_of_it), (1.0, one)):
        np.testing.assert_allclose(guided_oracle(one, all_of_it, w)(x_t, level), which(x_t, level))
    both = [np.stack(oracle(x_t, level)) for oracle in (all_of_it, one)]
    np.testing.assert_allclose(guided_oracle(one, all_of_it, 3.0)(x_t, level),
                               3 * both[1] - 2 * both[0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_oracles_keep_the_dtype(dtype):
    x_t = RNG.normal(size=(3, 1, 2, 2)).astype(dtype)
    for oracle in (FiniteData(PICTURES), spread(2, 4)):
        for level in (LEVELS[1], CLEAN):
            assert [half.dtype for half in oracle(x_t, level)] == [dtype, dtype]


@pytest.mark.parametrize("make, message", [
    (lambda: GaussianMixture([1.0, 2.0], 1.0), r"means have shape \(2,\)"),
    (lambda: GaussianMixture([[1.0]], np.ones((2, 1, 1))), "covariances have shape"),
    (lambda: GaussianMixture([[1.0], [2.0]], 1.0, [1.0, 0.0]), "2 positive numbers"),
    (lambda: GaussianMixture([[1.0, 1.0]], [[[1, 2], [2, 1]]]), "negative eigenvalue"),
    (lambda: GaussianMixture([[1.0]], 1.0, labels=[0, 1]), "2 labels for 1"),
    (lambda: MIXTURE.of_class("cat"), "'cat'"),
    (lambda: MIXTURE.given(np.array([True]), np.array([1.0])), "known has shape"),
    (lambda: MIXTURE(np.zeros((2, 3)), LEVELS[0]), "D = 2 entries"),
    (lambda: FiniteData(np.zeros((0, 2))), "without pictures"),
    (lambda: FiniteData(PICTURES).of_class(9), "label 9"),
])
def test_bad_input_is_one_line(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)
