"""Claims, for whatever Hypothesis thinks of: conversions come back, grids fall or say why not,
schedules lose signal as they gain noise, guidance keeps its identities, samplers stay finite.
"""
from functools import partial
from itertools import pairwise
from math import inf, isfinite

import numpy as np
import pytest

pytest.importorskip("hypothesis", reason="property tests need hypothesis")
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tinydiff.diffusion import CLEAN, Level, posterior, q_sample, transition
from tinydiff.editing import slerp
from tinydiff.grids import SPACINGS, by_noise, levels
from tinydiff.guidance import (
    by_gradient,
    classifier_free,
    dynamic_threshold,
    rescaled,
    weight_within,
)
from tinydiff.oracle import GaussianMixture
from tinydiff.samplers import (
    SAMPLERS,
    ddim_step,
    dpm_solver_sample,
    dpmpp_multistep_sample,
    dpmpp_singlestep_sample,
    lms_sample,
    unipc_sample,
)
from tinydiff.samplers.dpm_solver import dpm_solver_1
from tinydiff.schedules import EDM, TABLES, Flow, Schedule
from tinydiff.targets import KINDS, target, to_x0_eps

FEW = settings(derandomize=True, deadline=None, max_examples=60)
NUMBER = st.floats(-8, 8, allow_subnormal=False)
BATCH = arrays(np.float64, (2, 3), elements=NUMBER)
SHARE = st.floats(0, 1, allow_subnormal=False)
NAMES = st.sampled_from(sorted(TABLES))


@st.composite
def tables(draw, zero_snr=None):
    """A table of any length and name, as the published fields make it."""
    start = draw(st.floats(1e-5, 0.01))
    end = draw(st.floats(start, 0.05))
    zero = draw(st.booleans()) if zero_snr is None else zero_snr
    return Schedule.make(draw(NAMES), draw(st.integers(2, 300)), start, end, zero)


FAMILIES = st.one_of(
    tables(), st.builds(Flow, st.sampled_from([1, 20, 1000]), st.floats(0.1, 10)),
    st.builds(EDM, st.floats(1e-3, 0.1), st.floats(1, 200)))


REFUSALS = ("distinct levels", "pure noise", "steps=", "end=")


@st.composite
def walks(draw, families=FAMILIES):
    """A schedule and a grid of it, or None where the grid refuses in one line."""
    schedule, steps = draw(families), draw(st.integers(1, 40))
    spacing, whole = draw(st.sampled_from(SPACINGS)), draw(st.booleans())
    try:
        return schedule, levels(schedule, steps, spacing, whole=whole)
    except ValueError as fault:
        assert "\n" not in str(fault) and any(word in str(fault) for word in REFUSALS), fault
        return schedule, None


# ---- schedules ----


@FEW
@given(FAMILIES, SHARE)
def test_every_level_has_its_familys_power(schedule, share):
    level = schedule.level(share * schedule.T)
    power = {Schedule: level.signal**2 + level.noise**2, Flow: level.signal + level.noise,
             EDM: level.signal}[type(schedule)]
    assert power == pytest.approx(1, abs=1e-12) and min(level.signal, level.noise) >= 0
    assert all(type(number) is float for number in level)


@FEW
@given(FAMILIES, SHARE, SHARE)
def test_log_snr_falls_with_time(schedule, a, b):
    early, late = sorted((a, b))
    assume(late - early > 1e-6)
    early, late = (schedule.level(share * schedule.T) for share in (early, late))
    assert early.lam > late.lam and early.noise < late.noise


@FEW
@given(FAMILIES, st.floats(1e-4, 1))
def test_a_level_is_found_again_by_its_log_snr(schedule, share):
    level = schedule.level(share * schedule.T)
    back = schedule.at_lam(level.lam)
    assert back[1:] == pytest.approx(level[1:], rel=1e-7, abs=1e-9)
    assert back.t == pytest.approx(level.t, rel=1e-5, abs=1e-7)


@FEW
@given(tables(), SHARE, SHARE, SHARE, BATCH, BATCH)
def test_the_chain_and_its_posterior_keep_the_level(schedule, a, b, c, x0, eps):
    """Two steps up are one; the posterior of a sample without surprise is on its way back."""
    r, s, t = (schedule.level(share * schedule.T) for share in sorted((a, b, c)))
    assume(r.noise < s.noise < t.noise and s.signal > 1e-6)
    (first, v), (second, u), (whole, w) = transition(r, s), transition(s, t), transition(r, t)
    assert first * second == pytest.approx(whole, abs=1e-12)
    assert second**2 * v + u == pytest.approx(w, abs=1e-12)
    mean, variance = posterior(q_sample(x0, eps, t.signal, t.noise), x0, t, s)
    assert 0 <= variance <= s.noise**2 + 1e-12
    spread = (s.noise**2 - variance) / s.noise**2 if s.noise else 0.0
    np.testing.assert_allclose(mean, s.signal * x0 + s.noise * spread**0.5 * eps, atol=1e-6)


# ---- grids ----


@FEW
@given(walks())
def test_a_grid_has_as_many_falling_levels_as_were_asked_for(walk):
    schedule, grid = walk
    assume(grid is not None)
    assert all(s.lam > t.lam and s.noise < t.noise for t, s in pairwise(grid))
    assert grid[-1] == CLEAN and grid[0].t <= schedule.T


@FEW
@example(EDM(0.0625, 23.3326772171943), 11, "trailing")                # T * 11 / 11 > T
@given(FAMILIES, st.integers(1, 60), st.sampled_from(SPACINGS))
def test_n_steps_asked_are_n_steps_done_or_one_line(schedule, steps, spacing):
    try:
        grid = levels(schedule, steps, spacing)
    except ValueError as fault:
        line = str(fault)
        assert "\n" not in line and any(word in line for word in REFUSALS), line
        if spacing in ("trailing", "leading"):           # these always find N rows of T
            assert steps > schedule.T
        return
    assert len(grid) == steps + 1


@FEW
@given(st.floats(1, 100), st.floats(1e-3, 0.9), st.integers(1, 30),
       st.sampled_from(["logsnr", "karras"]), st.floats(0.5, 12))
def test_levels_by_noise_stay_between_their_ends(high, low, N, spacing, rho):
    schedule = EDM(1e-4, 200.0)
    grid = by_noise(schedule, schedule.level(high), schedule.level(low), N, spacing, rho)
    assert len(grid) == N and grid[0].noise == high and (N == 1 or grid[-1].noise == low)
    assert all(t.noise > s.noise for t, s in pairwise(grid))


@FEW
@given(st.one_of(st.integers(-5, 0), st.floats(), st.none(), st.sampled_from(["", "7"])))
def test_steps_that_are_no_number_of_steps_are_one_line(steps):
    with pytest.raises(ValueError, match="steps=") as error:
        levels(Schedule.make("linear"), steps)
    assert "from 1 to 1000 is needed" in str(error.value)


# ---- targets ----


@FEW
@given(FAMILIES, st.floats(0.01, 0.99), st.sampled_from(KINDS), st.sampled_from(KINDS), BATCH,
       BATCH)
def test_any_target_gives_any_other(schedule, share, kind, other, x0, eps):
    level = schedule.level(share * schedule.T)
    assume(level.signal > 1e-4 and level.noise > 1e-4)
    x_t = q_sample(x0, eps, level.signal, level.noise)
    halves = to_x0_eps(target(kind, x0, eps, level), x_t, level, kind)
    worst = 1e-11 / min(level.signal, level.noise) ** 2 * (1 + level.noise)
    np.testing.assert_allclose(halves, (x0, eps), atol=worst)
    again = to_x0_eps(target(other, *halves, level), x_t, level, other)
    np.testing.assert_allclose(again, halves, atol=10 * worst)


@FEW
@given(FAMILIES, st.floats(0.01, 0.99), st.sampled_from(KINDS), BATCH, BATCH)
def test_two_halves_make_up_the_whole(schedule, share, kind, prediction, x_t):
    level = schedule.level(share * schedule.T)
    assume(level.signal > 1e-4 and level.noise > 1e-4)
    x0_hat, eps_hat = to_x0_eps(prediction, x_t, level, kind)
    size = 1 + np.abs(level.signal * x0_hat).max() + np.abs(level.noise * eps_hat).max()
    np.testing.assert_allclose(level.signal * x0_hat + level.noise * eps_hat, x_t,
                               atol=1e-13 * size)


# ---- guidance ----


@FEW
@given(BATCH, BATCH, NUMBER, NUMBER)
def test_guidance_is_a_line_through_both_predictions(null, text, v, w):
    np.testing.assert_allclose(classifier_free(null, text, w), null + w * (text - null), atol=1e-11)
    # The middle of two weights is the middle of two pictures; nothing to extrapolate is nothing.
    middle = (classifier_free(null, text, v) + classifier_free(null, text, w)) / 2
    np.testing.assert_allclose(classifier_free(null, text, (v + w) / 2), middle, atol=1e-11)
    np.testing.assert_allclose(classifier_free(null, null, w), null, atol=1e-11)


@FEW
@given(BATCH, BATCH, BATCH, NUMBER, NUMBER, tables(zero_snr=False), st.floats(0.01, 1))
def test_pushes_add_up_and_leave_x_t_whole(x0, eps, gradient, v, w, schedule, share):
    level = schedule.level(share * schedule.T)
    assume(level.signal > 1e-3)
    x_t = q_sample(x0, eps, level.signal, level.noise)
    pushed = by_gradient(x0, eps, gradient, level, v)
    scale = 1e-12 * 64 / level.signal
    np.testing.assert_allclose(q_sample(*pushed, level.signal, level.noise), x_t, atol=scale)
    np.testing.assert_allclose(by_gradient(*pushed, gradient, level, w),
                               by_gradient(x0, eps, gradient, level, v + w), atol=scale)


@FEW
@given(BATCH, BATCH, SHARE)
def test_rescaling_is_between_the_two_contrasts(prediction, text, phi):
    assume(min(prediction.std(axis=1).min(), text.std(axis=1).min()) > 1e-3)
    std = rescaled(prediction, text, phi).std(axis=1)
    np.testing.assert_allclose(std, phi * text.std(axis=1) + (1 - phi) * prediction.std(axis=1),
                               atol=1e-10)


@FEW
@given(BATCH, st.floats(0.01, 1), st.floats(1, 20))
def test_a_squeezed_picture_is_a_picture_and_is_squeezed_once(x, ratio, largest):
    y = dynamic_threshold(x, ratio, largest)
    assert np.abs(y).max() <= 1 and (y * x >= 0).all()
    np.testing.assert_array_equal(dynamic_threshold(y, ratio, largest), y)
    order = np.argsort(x, axis=1)
    assert (np.diff(np.take_along_axis(y, order, axis=1)) >= 0).all()      # nothing changes places
    np.testing.assert_array_equal(dynamic_threshold(x, ratio, 1.0), np.clip(x, -1, 1))


@FEW
@given(tables(), SHARE, st.floats(0, 5), st.floats(0, 5), NUMBER)
def test_an_interval_is_w_within_and_one_without(schedule, share, a, b, w):
    low, high = sorted((a, b))
    assume(low < high)
    level = schedule.level(share * schedule.T)
    inside = level.signal > 0 and low < level.noise / level.signal <= high
    assert weight_within(w, level, (low, high)) == (w if inside else 1.0)


# ---- samplers ----

DATA = GaussianMixture([[-1.0, 0.2, 0.0], [1.0, 0.5, -0.5]], [0.05, 0.2])
OWN = {"flow": st.builds(Flow, st.sampled_from([20, 1000]), st.floats(0.1, 10)),
       "ddpm": tables(), "pndm": tables()}         # what they walk on
EXACT = {"ddim", "euler", "flow", "dpmpp_2m"}            # whose step to clean data is x0_hat


@settings(derandomize=True, deadline=None, max_examples=12)
@pytest.mark.parametrize("name", SAMPLERS)
@given(data=st.data(), x_T=BATCH, seed=st.integers(0, 9))
def test_every_walk_is_finite_and_hands_over(name, data, x_T, seed):
    _, grid = data.draw(walks(OWN.get(name, FAMILIES)))
    assume(grid is not None)
    noise = lambda k: np.random.default_rng((seed, k)).normal(size=x_T.shape)
    x_T = x_T * max(1.0, grid[0].noise)
    steps = list(SAMPLERS[name](DATA, x_T, grid, noise=noise))
    assert len(steps) == len(grid) - 1
    assert all(np.isfinite(step.x_s).all() for step in steps)
    for a, b in pairwise(steps):
        assert a.s == b.t
    if name in EXACT:
        np.testing.assert_allclose(steps[-1].x_s, steps[-1].x0_hat, atol=1e-9)


@FEW
@given(walks(), BATCH, BATCH)
def test_ddim_with_the_true_noise_returns_the_picture_on_any_grid(walk, x0, eps):
    _, grid = walk
    assume(grid is not None)
    known = lambda x_t, t: (x0, eps)
    *_, last = SAMPLERS["ddim"](known, q_sample(x0, eps, grid[0].signal, grid[0].noise), grid)
    np.testing.assert_array_equal(last.x_s, x0)


ORDER_ONE = {"euler": SAMPLERS["euler"], "dpm_solver": partial(dpm_solver_sample, order=1),
             "dpmpp_multistep": partial(dpmpp_multistep_sample, order=1),
             "dpmpp_singlestep": partial(dpmpp_singlestep_sample, order=1),
             "unipc": partial(unipc_sample, order=1, correct=False),
             "lms": partial(lms_sample, order=1)}


@settings(derandomize=True, deadline=None, max_examples=30)
@pytest.mark.parametrize("name", ORDER_ONE)
@given(walk=walks(), x_T=BATCH)
def test_every_method_of_order_one_is_ddim(name, walk, x_T):
    """DPM-Solver-1 = DPM-Solver++-1 = UniP-1 = Euler in sigma = DDIM, on any grid of any family."""
    _, grid = walk
    assume(grid is not None)
    x_T = x_T * max(1.0, grid[0].noise)
    pairs = zip(ORDER_ONE[name](DATA, x_T, grid), SAMPLERS["ddim"](DATA, x_T, grid), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one.x_s, other.x_s, rtol=1e-9, atol=1e-9)


@FEW
@given(FAMILIES, SHARE, SHARE, BATCH, BATCH)
def test_dpm_solver_1_as_its_paper_writes_it_is_ddims_step(schedule, a, b, x0, eps):
    t, s = sorted((schedule.level(share * schedule.T) for share in (a, b)), key=lambda u: u.lam)
    assume(-inf < t.lam < s.lam < inf and s.lam - t.lam < 700)       # e^h is a float64 up to 709
    x_t = q_sample(x0, eps, t.signal, t.noise)
    np.testing.assert_allclose(dpm_solver_1(x_t, eps, t, s), ddim_step(x_t, x0, eps, t, s),
                               rtol=1e-9, atol=1e-9)


@FEW
@given(walks(tables()), BATCH, st.integers(0, 9))
def test_every_first_order_method_of_the_reverse_sde_is_ddpm(walk, x_T, seed):
    """SDE-DPM-Solver++(1) = Euler ancestral = DDIM(eta = 1) = DDPM with the small variance."""
    _, grid = walk
    assume(grid is not None)
    noise = lambda k: np.random.default_rng((seed, k)).normal(size=x_T.shape)
    ddpm, *others = (list(SAMPLERS[name](DATA, x_T, grid, noise=noise, **own)) for name, own in [
        ("ddpm", {}), ("ddim", {"eta": 1.0}), ("euler_ancestral", {}), ("dpmpp_sde", {"order": 1})])
    for other in others:
        for one, two in zip(ddpm, other, strict=True):
            np.testing.assert_allclose(one.x_s, two.x_s, rtol=1e-9, atol=1e-9)


@FEW
@given(arrays(np.float64, 6, elements=NUMBER), arrays(np.float64, 6, elements=NUMBER), SHARE)
def test_the_sphere_is_walked_the_same_from_both_ends(a, b, share):
    there, back = slerp(a, b, share), slerp(b, a, 1 - share)
    assert all(map(isfinite, there))
    np.testing.assert_allclose(there, back, atol=1e-6)


@FEW
@given(st.lists(st.tuples(SHARE, SHARE), min_size=2, max_size=6), st.sampled_from(sorted(
    SAMPLERS.keys() - {"flow", "pndm"})))
def test_a_custom_grid_falls_or_is_refused(numbers, name):
    grid = [Level(float(k), signal, noise) for k, (signal, noise) in enumerate(numbers)]
    assume(not all(s.lam > t.lam for t, s in pairwise(grid)))
    with pytest.raises(ValueError, match="levels must fall in noise"):
        next(SAMPLERS[name](DATA, np.zeros((2, 3)), grid, noise=lambda k: 0.0))
