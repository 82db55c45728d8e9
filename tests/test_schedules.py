"""Claims: the tables are the papers' formulas; levels are exact at integers and finite everywhere;
a published scheduler_config.json is read whole or refused by name.
"""
from math import cos, exp, inf, isfinite, pi, prod, sqrt

import numpy as np
import pytest

from tinydiff.diffusion import CLEAN
from tinydiff.scheduler_config import SchedulerConfig
from tinydiff.schedules import (
    EDM,
    TABLES,
    Flow,
    Schedule,
    cosine_alpha_bar,
    linear_beta,
    scaled_linear_beta,
    sigmoid_alpha_bar,
    sigmoid_beta,
)

LINEAR = Schedule.make("linear")
STABLE_DIFFUSION = {
    "_class_name": "PNDMScheduler", "_diffusers_version": "0.6.0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False,
    "num_train_timesteps": 1000, "set_alpha_to_one": False, "skip_prk_steps": True,
    "steps_offset": 1, "trained_betas": None,
}


# ---- tables ----


@pytest.mark.parametrize("T", [1, 2, 10, 1000])
@pytest.mark.parametrize("name", TABLES)
def test_alpha_bar_starts_at_one_and_falls_strictly(name, T):
    alpha_bar = Schedule.make(name, T=T).alpha_bar
    assert alpha_bar.shape == (T + 1,) and alpha_bar.dtype == np.float64
    assert alpha_bar[0] == 1
    assert (np.diff(alpha_bar) < 0).all()
    assert alpha_bar[-1] > 0


@pytest.mark.parametrize("T", [2, 10, 1000])
@pytest.mark.parametrize("name", TABLES)
def test_zero_terminal_snr_keeps_the_first_level_and_ends_at_pure_noise(name, T):
    before, after = Schedule.make(name, T), Schedule.make(name, T, zero_snr=True)
    assert after.level(T)[1:] == (0.0, 1.0)
    assert after.level(1).signal == pytest.approx(before.level(1).signal, rel=1e-12)
    signals = [[schedule.level(t).signal for t in range(1, T + 1)] for schedule in (before, after)]
    steps = [np.diff(signal) for signal in signals]    # shifting and scaling: steps in proportion
    np.testing.assert_allclose(steps[1] / steps[0], (steps[1] / steps[0])[0], rtol=1e-8)


def test_zero_terminal_snr_needs_two_steps():
    with pytest.raises(ValueError, match="2 steps or more"):
        Schedule.make("linear", 1, zero_snr=True)


@pytest.mark.parametrize("name, ends, bound", [
    ("linear", (1e-4, 0.02), 4.1e-5),
    ("scaled_linear", (0.00085, 0.012), 4.8e-3),       # Stable Diffusion keeps 0.5 % of the power
    ("squaredcos_cap_v2", (), 3e-9),
])
def test_the_last_signal_to_noise_ratio_is_small(name, ends, bound):
    last = Schedule.make(name, 1000, *ends).level(1000)
    assert 0.8 * bound < (last.signal / last.noise) ** 2 < bound


@pytest.mark.parametrize("t", [1, 2, 17, 500, 999, 1000])
def test_tables_are_the_published_formulas(t):
    linear = [1e-4 + (0.02 - 1e-4) * r / 999 for r in range(t)]
    assert Schedule.make("linear").alpha_bar[t] == pytest.approx(prod(1 - b for b in linear),
                                                                 rel=1e-12)

    low, high = sqrt(0.00085), sqrt(0.012)
    scaled = [(low + (high - low) * r / 999) ** 2 for r in range(t)]
    schedule = Schedule.make("scaled_linear", 1000, 0.00085, 0.012)
    assert schedule.alpha_bar[t] == pytest.approx(prod(1 - b for b in scaled), rel=1e-12)

    f = [cos((r / 1000 + 0.008) / 1.008 * pi / 2) ** 2 for r in range(t + 1)]
    cosine = cosine_alpha_bar(1000)
    if t < 1000:                                       # no beta is capped before the last
        assert cosine[t] == pytest.approx(f[t] / f[0], rel=1e-9)
    else:
        assert cosine[t] == pytest.approx(cosine[t - 1] * 0.001, rel=1e-9)


def test_beta_is_indexed_by_the_papers_t():
    for table, first, last in ((linear_beta, 1e-4, 0.02), (scaled_linear_beta, 0.00085, 0.012)):
        beta = table(1000)
        assert beta.shape == (1001,)
        assert beta[0] == 0
        assert beta[[1, 1000]] == pytest.approx([first, last], rel=1e-12)


@pytest.mark.parametrize("arguments", [
    ("linear", 0), ("linear", -5), ("linear", 2.5), ("linear", "1000"), ("linear", True),
    ("linear", 10, 0.02, 1e-4), ("linear", 10, 0.0, 0.02), ("linear", 10, 1e-4, 1.0),
    ("scaled_linear", 10, -1e-4, 0.02), ("linear", 10, float("nan"), 0.02),
    ("linear", 10, None, 0.02), ("squaredcos_cap_v2", 0), ("sigmoidal", 10), (["linear"], 10),
])
def test_bad_tables_are_one_line_errors(arguments):
    with pytest.raises(ValueError) as error:
        Schedule.make(*arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("table", [[1.0], [], 1.0, [0.9, 0.5], [1, 0.5, 0.5], [1, 0.5, 0.6],
                                   [1, 0.5, -0.1], [1.0, float("nan")]])
def test_a_table_that_is_no_schedule_is_refused(table):
    with pytest.raises(ValueError, match="falls strictly"):
        Schedule(table)


def test_a_schedule_cannot_be_changed_behind_its_back():
    table = np.array([1.0, 0.5])
    schedule = Schedule(table)
    table[1] = 0.9
    assert schedule.alpha_bar[1] == 0.5
    with pytest.raises(ValueError, match="read-only"):
        schedule.alpha_bar[1] = 0.9


# ---- levels ----


@pytest.mark.parametrize("name", TABLES)
def test_levels_at_integers_are_the_table(name):
    schedule = Schedule.make(name)
    assert schedule.level(0) == CLEAN
    for t in (1, 2, 17, 999, 1000):
        level = schedule.level(t)
        assert level.t == t
        assert level.signal == sqrt(schedule.alpha_bar[t])
        assert level.noise == sqrt(1 - schedule.alpha_bar[t])
        assert all(type(number) is float for number in level)


@pytest.mark.parametrize("schedule", [LINEAR, Schedule.make("squaredcos_cap_v2", 20),
                                      Schedule([1.0, 0.6, 0.1, 0.0])])
def test_fractional_levels_fall_strictly_and_are_finite_at_both_ends(schedule):
    times = np.linspace(0, schedule.T, 7 * schedule.T + 1)
    found = [schedule.level(t) for t in times]
    assert all(isfinite(level.signal) and isfinite(level.noise) for level in found)
    assert (np.diff([level.signal for level in found]) < 0).all()
    assert (np.diff([level.noise for level in found]) > 0).all()
    assert all(level.signal**2 + level.noise**2 == pytest.approx(1, abs=1e-15) for level in found)


def test_fractional_levels_join_the_table_without_a_jump():
    for schedule in (LINEAR, Schedule([1.0, 0.6, 0.0])):
        for t in range(1, min(schedule.T, 20)):
            for near in (t - 1e-9, t + 1e-9):
                assert schedule.level(near).noise == pytest.approx(schedule.level(t).noise,
                                                                   rel=1e-6)


def test_beta_is_constant_between_two_rows():
    logs = [2 * np.log(LINEAR.level(t).signal) for t in (300.0, 300.25, 300.5, 300.75, 301.0)]
    assert np.diff(logs) == pytest.approx(np.full(4, np.diff(logs)[0]), rel=1e-9)


@pytest.mark.parametrize("t", [-1e-9, 1000.1, inf, float("nan")])
def test_a_time_outside_the_table_is_refused(t):
    with pytest.raises(ValueError, match="outside this schedule's range, 0 to 1000"):
        LINEAR.level(t)


def test_half_log_snr_is_infinite_at_the_ends_without_a_warning():
    schedule = Schedule([1.0, 0.5, 0.0])
    assert schedule.level(0).lam == inf
    assert schedule.level(1).lam == pytest.approx(0, abs=1e-15)
    assert schedule.level(2).lam == -inf
    assert LINEAR.level(17.5).lam == pytest.approx(
        np.log(LINEAR.level(17.5).signal / LINEAR.level(17.5).noise), rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_batch_of_levels_follows_the_pictures(dtype):
    x0 = np.ones((3, 2, 4, 4), dtype)
    level = LINEAR.batch(np.array([1, 500, 1000]), x0)
    assert level.t.shape == (3,) and level.t.dtype == dtype
    for number in (level.signal, level.noise):
        assert number.shape == (3, 1, 1, 1) and number.dtype == dtype
    for row, t in enumerate((1, 500, 1000)):
        assert level.signal[row, 0, 0, 0] == dtype(LINEAR.level(t).signal)
        assert level.noise[row, 0, 0, 0] == dtype(LINEAR.level(t).noise)
    assert (level.signal * x0).dtype == dtype


# ---- the published file ----


def test_stable_diffusions_file_is_read():
    config = SchedulerConfig.from_config(STABLE_DIFFUSION)
    assert config.prediction_type == "epsilon" and config.timestep_spacing == "leading"
    assert not config.clip_sample and not config.set_alpha_to_one
    expected = Schedule.make("scaled_linear", 1000, 0.00085, 0.012).alpha_bar
    np.testing.assert_array_equal(config.schedule.alpha_bar, expected)
    times = [level.t for level in config.levels(50)]
    assert times[:2] == [982, 962] and times[-2:] == [2, 0]          # timesteps 981, 961 ... 1
    assert config.levels(10, "trailing")[0].t == 1000


def test_a_config_survives_the_round_trip():
    fields = {"num_train_timesteps": 77, "beta_schedule": "linear", "beta_start": 0.001,
              "beta_end": 0.03, "prediction_type": "v_prediction", "timestep_spacing": "trailing",
              "steps_offset": 0, "clip_sample": True, "set_alpha_to_one": False,
              "rescale_betas_zero_snr": True, "_class_name": "DDIMScheduler"}
    assert SchedulerConfig.from_config(fields).to_config() == fields
    schedule = Schedule.from_config(fields)
    assert Schedule.from_config(schedule.to_config()).alpha_bar[-1] == schedule.alpha_bar[-1]


@pytest.mark.parametrize("field, value", [
    ("trained_betas", [0.1, 0.2]), ("rescale_betas_zero_snr", 1), ("thresholding", True),
    ("beta_schedule", "laplace"), ("beta_schedule", None), ("prediction_type", "flow"),
    ("prediction_type", ["epsilon"]), ("timestep_spacing", "cubic"), ("steps_offset", -1),
    ("steps_offset", 0.5), ("clip_sample", "yes"), ("clip_sample_range", 2.0),
    ("variance_type", "learned"), ("use_karras_sigmas", True), ("num_train_timesteps", "1000"),
    ("beta_start", 0.5), ("beta_end", None), ("_class_name", "KDPM2DiscreteScheduler"),
    ("beta_shedule", "linear"), ("shift", 3.0),
])
def test_an_unsupported_field_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field) as error:
        SchedulerConfig.from_config({**STABLE_DIFFUSION, field: value})
    assert "\n" not in str(error.value)


def test_a_schedule_refuses_what_would_change_its_process():
    with pytest.raises(ValueError, match="trained_betas"):
        Schedule.from_config({"trained_betas": [0.1]})
    with pytest.raises(ValueError, match="no published fields"):
        Schedule([1.0, 0.5]).to_config()


# ---- sigmoids ----


def test_the_sigmoid_of_beta_is_the_published_formula():
    beta = sigmoid_beta(1000, 1e-4, 0.02)
    for t in (1, 2, 500, 1000):
        rise = 1 / (1 + exp(6 - 12 * (t - 1) / 999))
        assert beta[t] == pytest.approx(1e-4 + rise * (0.02 - 1e-4), rel=1e-12)


@pytest.mark.parametrize("tau", [0.3, 1.0, 1.7])
def test_the_sigmoid_of_alpha_bar_is_symmetric_about_the_middle(tau):
    alpha_bar = sigmoid_alpha_bar(200, tau=tau)
    np.testing.assert_allclose(alpha_bar + alpha_bar[::-1], 1, atol=2e-4)   # but for beta_max
    assert (np.diff(alpha_bar) < 0).all()
    flatter = sigmoid_alpha_bar(200, tau=5 * tau)
    assert alpha_bar[40] > flatter[40] and alpha_bar[160] < flatter[160]


@pytest.mark.parametrize("start, end, tau", [(3, -3, 1), (0, 0, 1), (-3, 3, 0), (-3, 3, -1)])
def test_a_sigmoid_without_a_fall_is_refused(start, end, tau):
    with pytest.raises(ValueError, match="start < end and tau > 0"):
        sigmoid_alpha_bar(10, start, end, tau)


# ---- from half log-SNR back to a level ----

FAMILIES = [LINEAR, Schedule.make("squaredcos_cap_v2"), Schedule([1.0, 0.8, 0.3, 0.0]), EDM(),
            Flow(), Flow(shift=3.0)]


@pytest.mark.parametrize("schedule", FAMILIES)
def test_at_lam_undoes_level(schedule):
    for share in (1e-6, 0.001, 0.02, 0.3, 0.5, 0.77, 0.999, 1.0):
        level = schedule.level(share * schedule.T)
        back = schedule.at_lam(level.lam)
        assert back.t == pytest.approx(level.t, rel=1e-6)
        assert back[1:] == pytest.approx(level[1:], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("schedule", FAMILIES)
def test_clean_data_has_infinite_log_snr(schedule):
    assert schedule.at_lam(inf) == CLEAN == schedule.level(0)


@pytest.mark.parametrize("lam", [-20.0, -3.0, 0.0, 2.5, 30.0])
def test_at_lam_has_that_log_snr(lam):
    for schedule in (Schedule([1.0, 0.8, 0.3, 0.0]), EDM(1e-9, 1e9), Flow(), Flow(shift=3.0)):
        assert schedule.at_lam(lam).lam == pytest.approx(lam, abs=1e-6)


def test_noise_beyond_the_schedule_is_refused():
    with pytest.raises(ValueError, match="none below -5"):
        LINEAR.at_lam(-6.0)
    with pytest.raises(ValueError, match="outside this schedule's range, 0 to 80"):
        EDM().level(81)


@pytest.mark.parametrize("make, message", [
    (lambda: EDM(0.0, 1.0), "sigma_min=0.0"), (lambda: EDM(2.0, 1.0), "sigma_max=1.0"),
    (lambda: Flow(shift=0), "shift=0"), (lambda: Flow(T=-1), "T=-1")])
def test_a_family_with_impossible_numbers_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_shift_moves_levels_towards_noise_and_keeps_both_ends():
    for t in (1, 250, 900):
        assert Flow(shift=3.0).level(t).noise > Flow().level(t).noise
        u, shift = t / 1000, 3.0
        assert Flow(shift=shift).level(t).noise == pytest.approx(shift * u / (1 + (shift - 1) * u))
    assert Flow(shift=3.0).level(0) == CLEAN and Flow(shift=3.0).level(1000)[1:] == (0, 1)


@pytest.mark.parametrize("shift", [0.1, 0.7, 1.15, 3.0, 7.3])
def test_a_shifted_line_starts_at_pure_noise_exactly(shift):
    """Not at 1 + 2e-16, whose signal would be below zero and have no logarithm."""
    for T in (1, 7, 1000):
        assert Flow(T, shift).level(T) == (T, 0.0, 1.0)


# ---- beside diffusers, where it is installed ----


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_tables_equal_those_of_diffusers(name, zero_snr):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler if name == "sigmoid" else diffusers.DDIMScheduler
    theirs = scheduler(beta_schedule=name, beta_start=0.00085, beta_end=0.012,
                       rescale_betas_zero_snr=zero_snr)
    ours = Schedule.make(name, 1000, 0.00085, 0.012, zero_snr)
    np.testing.assert_allclose(ours.alpha_bar[1:], theirs.alphas_cumprod.numpy(), rtol=2e-4,
                               atol=1e-12)


def test_diffusers_reads_our_config():
    diffusers = pytest.importorskip("diffusers")
    ours = SchedulerConfig(Schedule.make("scaled_linear", 300, 0.001, 0.02), "v_prediction",
                           "trailing")
    theirs = diffusers.DDIMScheduler.from_config(ours.to_config())
    assert theirs.config.prediction_type == "v_prediction"
    assert theirs.config.clip_sample is False
    np.testing.assert_allclose(ours.schedule.alpha_bar[1:], theirs.alphas_cumprod.numpy(),
                               rtol=2e-4)
    back = SchedulerConfig.from_config(dict(theirs.config))
    assert back.to_config() == ours.to_config()
