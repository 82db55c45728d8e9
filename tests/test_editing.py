"""Claims: with known pixels the exact answer is the mixture's conditional; replacement misses it,
RePaint at least finds its mode; img2img walks the share it is asked to; slerp stays on the sphere.
"""
import numpy as np
import pytest

from tinydiff.diffusion import CLEAN
from tinydiff.editing import inpaint_sample, part_way, slerp
from tinydiff.grids import levels
from tinydiff.oracle import FiniteData, GaussianMixture
from tinydiff.samplers import SAMPLERS
from tinydiff.schedules import Schedule

LINEAR = Schedule.make("linear")
RNG = np.random.default_rng(0)
# Two entries that go together: known the first, the second is nearly so.
DATA = GaussianMixture([[-0.8, -0.8], [0.8, 0.8]], [[[0.05, 0.03], [0.03, 0.05]]] * 2)
MASK, KNOWN = np.array([1.0, 0.0]), np.array([0.6, 0.0])


def filled(repeat, n=2000, steps=60):
    rng = np.random.default_rng(repeat)
    noise = lambda k: rng.normal(size=(n, 2))
    *_, last = inpaint_sample(DATA, noise(-1), levels(LINEAR, steps), KNOWN, MASK, noise=noise,
                              repeat=repeat)
    return last.x_s


def test_known_entries_are_kept_exactly_and_the_rest_is_drawn():
    x = filled(1, n=50)
    np.testing.assert_array_equal(x[:, 0], 0.6)
    assert x[:, 1].std() > 0.05


def test_repaint_agrees_with_what_is_known_where_replacement_does_not():
    """With one draw a step the drawn entry hardly hears of the known one (arXiv:2201.09865)."""
    exact = DATA.given(np.array([True, False]), np.array([0.6]))
    mean, covariance = exact.moments(CLEAN)
    wrong_mode = lambda x: (x[:, 1] < 0).mean()
    replaced, repainted = filled(1), filled(5)
    assert wrong_mode(exact.sample(4000, np.random.default_rng(9))) < 0.001
    assert wrong_mode(replaced) > 0.02                 # what replacement distorts
    assert wrong_mode(repainted) < 0.002
    assert repainted[:, 1].mean() == pytest.approx(mean[1], abs=0.04)
    # Neither is exact: here RePaint draws too little variety.
    assert 0.6 < repainted[:, 1].std() / np.sqrt(covariance[1, 1]) < 0.95


def test_the_exact_conditional_oracle_needs_no_repainting():
    n, rng = 2000, np.random.default_rng(3)
    exact = DATA.given(np.array([True, False]), np.array([0.6]))
    *_, last = SAMPLERS["dpmpp_2m"](exact, rng.normal(size=(n, 2)), levels(LINEAR, 50, "logsnr"))
    mean, covariance = exact.moments(CLEAN)
    np.testing.assert_allclose(last.x_s[:, 0], 0.6, atol=1e-9)
    assert last.x_s[:, 1].mean() == pytest.approx(mean[1], abs=4 * np.sqrt(covariance[1, 1] / n))
    assert last.x_s[:, 1].std() == pytest.approx(np.sqrt(covariance[1, 1]), rel=0.1)


def test_a_finite_data_set_is_inpainted_with_its_own_pictures():
    pictures = RNG.uniform(-1, 1, (5, 1, 3, 3))
    mask = np.zeros((1, 3, 3))
    mask[:, :2] = 1
    rng = np.random.default_rng(0)
    noise = lambda k: rng.normal(size=(4, 1, 3, 3))
    *_, last = inpaint_sample(FiniteData(pictures), noise(-1), levels(LINEAR, 100),
                              pictures[[0, 1, 2, 3]], mask, noise=noise, repeat=5)
    np.testing.assert_allclose(last.x_s, pictures[:4], atol=0.05)


def test_img2img_walks_the_share_it_is_asked_to():
    walk, x0, eps = levels(LINEAR, 20), RNG.normal(size=(2, 3)), RNG.normal(size=(2, 3))
    for strength, steps in ((1.0, 20), (0.5, 10), (0.24, 5), (0.01, 1)):
        x_t, rest = part_way(x0, walk, strength, eps)
        assert len(rest) - 1 == steps and rest[-1] == CLEAN
        np.testing.assert_allclose(x_t, rest[0].signal * x0 + rest[0].noise * eps)


def test_slerp_keeps_the_length_of_noise_and_meets_both_ends():
    a, b = RNG.normal(size=(2, 4, 16, 16))
    np.testing.assert_allclose(slerp(a, b, 0), a)
    np.testing.assert_allclose(slerp(a, b, 1), b)
    lengths = [np.linalg.norm(slerp(a, b, share)) for share in np.linspace(0, 1, 11)]
    assert np.ptp(lengths) < 0.1 * lengths[0]
    np.testing.assert_allclose(slerp(a, a, 0.3), a)    # no angle, no division by it
    assert np.isfinite(slerp(a, -a, 0.3)).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_editing_keeps_the_dtype(dtype):
    a, b = RNG.normal(size=(2, 2, 1, 4, 4)).astype(dtype)
    grid, mask = levels(LINEAR, 3), np.ones((4, 4))
    half = lambda x_t, t: (0.5 * x_t, (x_t - t.signal * 0.5 * x_t) / t.noise)
    assert slerp(a, b, 0.3).dtype == part_way(a, grid, 0.5, b)[0].dtype == dtype
    for step in inpaint_sample(half, a, grid, b, mask, noise=lambda k: b, repeat=2):
        assert step.x_s.dtype == dtype


@pytest.mark.parametrize("options, message", [
    ({"repeat": 0}, "repeat=0"), ({"repeat": 1.5}, "repeat=1.5"),
    ({"mask": np.ones(3)}, r"shape \(3,\), which does not fit \(4, 2\)"),
    ({"mask": np.array([0.5, 1.0])}, "must be 1 where")])
def test_bad_input_is_one_line(options, message):
    options = {"mask": MASK, **options}
    with pytest.raises(ValueError, match=message) as error:
        next(inpaint_sample(DATA, np.zeros((4, 2)), levels(LINEAR, 3), KNOWN,
                            noise=lambda k: 0.0, **options))
    assert "\n" not in str(error.value)
    for strength in (0, 1.1, float("nan")):
        with pytest.raises(ValueError, match="strength"):
            part_way(KNOWN, levels(LINEAR, 3), strength, KNOWN)
