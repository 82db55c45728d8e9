"""Claims: every kind of target determines (x0, eps); the conversions invert each other at every
level, stay finite at both ends, and keep the dtype.
"""
import numpy as np
import pytest

from tinydiff.diffusion import CLEAN, Level, q_sample
from tinydiff.schedules import Schedule
from tinydiff.targets import KINDS, target, to_x0_eps

LINEAR = Schedule.make("linear")
ONLY_NOISE = Level(1000.0, 0.0, 1.0)
RNG = np.random.default_rng(0)
X0, EPS = RNG.uniform(-1, 1, (2, 3, 4, 4)), RNG.normal(size=(2, 3, 4, 4))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("t", [0.5, 1, 2, 17, 500, 999.9, 1000])
def test_the_true_target_gives_back_the_truth(kind, t):
    level = LINEAR.level(t)
    x_t = q_sample(X0, EPS, level.signal, level.noise)
    x0_hat, eps_hat = to_x0_eps(target(kind, X0, EPS, level), x_t, level, kind)
    np.testing.assert_allclose(x0_hat, X0, atol=1e-11)
    np.testing.assert_allclose(eps_hat, EPS, atol=1e-11)


@pytest.mark.parametrize("schedule", [LINEAR, Schedule.make("squaredcos_cap_v2")])
def test_eps_to_x0_to_v_to_eps_is_the_identity_at_every_t(schedule):
    for t in range(1, schedule.T + 1):
        level = schedule.level(t)
        x_t, eps = X0[0], EPS[0]                       # any x_t will do: this is algebra
        x0, _ = to_x0_eps(eps, x_t, level, "epsilon")
        v = target("v_prediction", x0, to_x0_eps(x0, x_t, level, "sample")[1], level)
        _, back = to_x0_eps(v, x_t, level, "v_prediction")
        np.testing.assert_allclose(back, eps, atol=1e-10 / level.signal)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("level", [LINEAR.level(300), LINEAR.level(1000), Level(1.0, 1.0, 3.0),
                                   Level(0.7, 0.3, 0.7)])
def test_the_two_halves_always_make_up_x_t(kind, level):
    """Whatever the network says, and for levels of every family: VP, EDM, flow."""
    prediction, x_t = EPS, X0
    x0_hat, eps_hat = to_x0_eps(prediction, x_t, level, kind)
    np.testing.assert_allclose(level.signal * x0_hat + level.noise * eps_hat, x_t, atol=1e-13)


@pytest.mark.parametrize("kind, level", [
    ("epsilon", CLEAN), ("sample", CLEAN), ("v_prediction", CLEAN),
    ("sample", ONLY_NOISE), ("v_prediction", ONLY_NOISE),
    ("flow_prediction", CLEAN), ("flow_prediction", ONLY_NOISE),
])
def test_both_ends_are_finite(kind, level):
    x_t = q_sample(X0, EPS, level.signal, level.noise)
    x0_hat, eps_hat = to_x0_eps(target(kind, X0, EPS, level), x_t, level, kind)
    np.testing.assert_allclose(x0_hat, X0, rtol=0, atol=1e-15)
    eps = 0 if (kind, level) == ("sample", CLEAN) else EPS
    np.testing.assert_allclose(eps_hat, eps, rtol=0, atol=1e-15)


def test_v_at_the_ends_is_noise_and_minus_the_picture():
    np.testing.assert_array_equal(target("v_prediction", X0, EPS, CLEAN), EPS)
    np.testing.assert_array_equal(target("v_prediction", X0, EPS, ONLY_NOISE), -X0)


def test_epsilon_without_signal_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'epsilon' at t=1000\.0: no signal") as error:
        to_x0_eps(EPS, X0, ONLY_NOISE, "epsilon")
    assert "\n" not in str(error.value)
    many = Schedule([1.0, 0.5, 0.0]).batch([1, 2], X0)
    with pytest.raises(ValueError, match="no signal"):
        to_x0_eps(EPS, X0, many, "epsilon")


def test_the_score_is_refused_where_it_is_infinite_or_says_nothing():
    with pytest.raises(ValueError, match=r"'score' at t=0\.0: infinite without"):
        target("score", X0, EPS, CLEAN)
    with pytest.raises(ValueError, match=r"'score' at t=1000\.0: no signal"):
        to_x0_eps(EPS, X0, ONLY_NOISE, "score")


def test_the_velocity_is_the_slope_of_the_straight_path():
    x_at = lambda sigma: (1 - sigma) * X0 + sigma * EPS
    np.testing.assert_allclose(target("flow_prediction", X0, EPS, LINEAR.level(3)),
                               (x_at(0.6) - x_at(0.4)) / 0.2, atol=1e-12)


def test_an_unknown_kind_is_refused_by_name():
    with pytest.raises(ValueError, match="'eps': choose one of epsilon, sample, v_prediction, "):
        target("eps", X0, EPS, LINEAR.level(5))
    with pytest.raises(ValueError, match="'velocity': choose one of"):
        to_x0_eps(EPS, X0, LINEAR.level(5), "velocity")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_targets_keep_the_dtype(kind, dtype):
    x0, eps = X0.astype(dtype), EPS.astype(dtype)
    for level in (LINEAR.level(40.5), LINEAR.batch([1, 900], x0)):
        assert target(kind, x0, eps, level).dtype == dtype
        assert [half.dtype for half in to_x0_eps(eps, x0, level, kind)] == [dtype, dtype]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_levels_is_one_level_per_picture(kind):
    many = LINEAR.batch([3, 800], X0)
    together = to_x0_eps(EPS, X0, many, kind)
    for k, t in enumerate((3, 800)):
        alone = to_x0_eps(EPS[k], X0[k], LINEAR.level(t), kind)
        np.testing.assert_allclose([half[k] for half in together], alone, rtol=1e-13)
