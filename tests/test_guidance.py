"""Claims: weight 0 is unconditional, 1 is conditional, linear in between and beyond."""
import numpy as np
import pytest

from tinydiff.diffusion import CLEAN
from tinydiff.grids import levels
from tinydiff.guidance import (
    by_gradient,
    classifier_free,
    dynamic_threshold,
    rescaled,
    weight_within,
)
from tinydiff.oracle import GaussianMixture, guided_oracle
from tinydiff.samplers import SAMPLERS
from tinydiff.schedules import Schedule
from tinydiff.targets import to_x0_eps

RNG = np.random.default_rng(0)
NULL, TEXT = RNG.normal(size=(2, 2, 3, 4, 4))


def test_weight_zero_is_unconditional_and_one_is_conditional_exactly():
    np.testing.assert_array_equal(classifier_free(NULL, TEXT, 0.0), NULL)
    np.testing.assert_array_equal(classifier_free(NULL, TEXT, 1.0), TEXT)


@pytest.mark.parametrize("w", [-1.0, 0.25, 4.0, 7.5])
def test_the_weight_is_linear(w):
    np.testing.assert_allclose(classifier_free(NULL, TEXT, w), NULL + w * (TEXT - NULL), atol=1e-13)


def test_the_papers_weight_is_ours_less_one():
    w = 2.5
    paper = (1 + w) * TEXT - w * NULL                  # arXiv:2207.12598, Eq. 6
    np.testing.assert_allclose(classifier_free(NULL, TEXT, 1 + w), paper, atol=1e-13)


def test_guiding_the_noise_is_guiding_the_picture():
    """Guidance commutes with the conversions, which are affine in the prediction."""
    level, x_t = Schedule.make("linear").level(400), RNG.normal(size=NULL.shape)
    of_eps = to_x0_eps(classifier_free(NULL, TEXT, 3.0), x_t, level, "epsilon")[0]
    of_x0 = classifier_free(*(to_x0_eps(eps, x_t, level, "epsilon")[0] for eps in (NULL, TEXT)),
                            3.0)
    np.testing.assert_allclose(of_eps, of_x0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("w", [4, 4.0, np.float64(4.0)])
def test_guidance_keeps_the_dtype(dtype, w):
    assert classifier_free(NULL.astype(dtype), TEXT.astype(dtype), w).dtype == dtype


@pytest.mark.parametrize("w", [float("nan"), float("inf"), -float("inf")])
def test_a_weight_that_is_no_number_is_refused(w):
    with pytest.raises(ValueError, match="guidance weight") as error:
        classifier_free(NULL, TEXT, w)
    assert "\n" not in str(error.value)


# ---- rescale, interval, gradient, thresholding ----

MIXTURE = GaussianMixture([[-1.0, 0.2], [1.0, 0.5], [0.3, -1.0]], [0.05, 0.1, 0.08], labels="abb")
LEVEL = Schedule.make("linear").level(300)
X_T = np.random.default_rng(5).normal(size=(6, 2))


def test_rescale_restores_each_pictures_contrast():
    rng = np.random.default_rng(0)
    text, guided = rng.normal(size=(3, 4, 5)), 7 * rng.normal(size=(3, 4, 5))
    std = lambda x: x.std(axis=(1, 2))
    np.testing.assert_array_equal(rescaled(guided, text, 0), guided)
    np.testing.assert_allclose(std(rescaled(guided, text, 1)), std(text))
    np.testing.assert_allclose(std(rescaled(guided, text, 0.7)),
                               0.7 * std(text) + 0.3 * std(guided))
    for phi in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="guidance rescale"):
            rescaled(guided, text, phi)


def test_guidance_keeps_to_its_interval():
    schedule = Schedule.make("linear", zero_snr=True)
    for t in (1, 300, 900, 1000):
        level = schedule.level(t)
        sigma = level.noise / level.signal if level.signal else np.inf
        assert weight_within(3.0, level, (0.2, 5.0)) == (3.0 if 0.2 < sigma <= 5.0 else 1.0)
        assert weight_within(3.0, level) == 3.0
    for interval in ((1.0, 1.0), (-1.0, 2.0), (3.0, 2.0)):
        with pytest.raises(ValueError, match="guidance interval"):
            weight_within(3.0, LEVEL, interval)


def test_a_right_classifiers_gradient_makes_the_conditional_denoiser():
    """Bayes: the score of p(x_t | c) is that of p(x_t) plus the gradient of log p(c | x_t)."""
    share = MIXTURE.weights[1:].sum()
    log_posterior = lambda x: (np.log(share) + MIXTURE.of_class("b").log_density(x, LEVEL)
                               - MIXTURE.log_density(x, LEVEL))
    h = 1e-5
    gradient = np.stack([(log_posterior(X_T + h * e) - log_posterior(X_T - h * e)) / (2 * h)
                         for e in np.eye(2)], axis=1)
    guided = by_gradient(*MIXTURE(X_T, LEVEL), gradient, LEVEL)
    np.testing.assert_allclose(guided, MIXTURE.of_class("b")(X_T, LEVEL), atol=1e-6)


def test_gradient_guidance_keeps_the_two_halves_together():
    gradient = np.random.default_rng(6).normal(size=X_T.shape)
    x0_hat, eps_hat = by_gradient(*MIXTURE(X_T, LEVEL), gradient, LEVEL, scale=2.5)
    np.testing.assert_allclose(LEVEL.signal * x0_hat + LEVEL.noise * eps_hat, X_T, atol=1e-12)


def test_guidance_beyond_one_is_no_conditional_any_more():
    """Exact classifier-free guidance, on data whose conditional is known: what it distorts."""
    n, rng = 1500, np.random.default_rng(2)
    one = MIXTURE.of_class("a")
    start = rng.normal(size=(n, 2))
    grid = levels(Schedule.make("linear"), 50, "logsnr")
    ends = {w: [*SAMPLERS["dpmpp_2m"](guided_oracle(one, MIXTURE, w), start, grid)][-1].x_s
            for w in (1.0, 4.0)}
    mean, covariance = one.moments(CLEAN)
    np.testing.assert_allclose(ends[1.0].mean(axis=0), mean, atol=0.02)
    assert ends[1.0].var(axis=0) == pytest.approx(np.diag(covariance), rel=0.15)
    assert ends[4.0][:, 0].mean() < mean[0] - 0.05               # pushed away from the others
    assert ends[4.0].var(axis=0).sum() < 0.8 * ends[1.0].var(axis=0).sum()      # and less varied


def test_dynamic_threshold_keeps_what_fits_and_squeezes_the_rest():
    x = np.random.default_rng(3).normal(size=(3, 1, 16, 16)) * np.array([0.1, 1, 3])[:, None, None,
                                                                                     None]
    y = dynamic_threshold(x)
    np.testing.assert_array_equal(y[0], x[0])
    assert np.abs(y).max() <= 1
    inside = np.abs(x[2]) < 0.9 * np.quantile(np.abs(x[2]), 0.995)
    ratio = y[2][inside] / x[2][inside]
    assert np.ptp(ratio) < 1e-12 and ratio[0] < 0.2
    assert np.abs(dynamic_threshold(x, largest=1.0) - np.clip(x, -1, 1)).max() == 0
    for ratio, largest in ((0, 1), (1.1, 1), (0.9, 0.5)):
        with pytest.raises(ValueError, match="dynamic threshold"):
            dynamic_threshold(x, ratio, largest)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_all_guidance_keeps_the_dtype(dtype):
    x = np.random.default_rng(4).normal(size=(2, 3, 4, 4)).astype(dtype)
    assert rescaled(x, 2 * x, 0.7).dtype == dynamic_threshold(x).dtype == dtype
    assert {a.dtype for a in by_gradient(x, x, x, LEVEL, 2.0)} == {np.dtype(dtype)}
