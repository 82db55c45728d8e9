"""Claims: weight 0 is unconditional, 1 is conditional, linear in between and beyond."""
import numpy as np
import pytest

from tinydiff.guidance import classifier_free
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
