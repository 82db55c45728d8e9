"""Claims: N steps asked are N steps done; every grid falls to clean data, as published."""
import numpy as np
import pytest

from tinydiff.diffusion import CLEAN
from tinydiff.grids import SPACINGS, levels
from tinydiff.schedules import EDM, Flow, Schedule

LINEAR = Schedule.make("linear")
EVEN = ("trailing", "leading", "linspace")



@pytest.mark.parametrize("spacing", EVEN)
@pytest.mark.parametrize("T", [1, 7, 64, 1000])
def test_steps_asked_are_steps_done(T, spacing):
    schedule = Schedule.make("linear", T=T)
    for steps in range(1, T + 1):
        times = [level.t for level in levels(schedule, steps, spacing)]
        assert len(times) == steps + 1
        assert (np.diff(times) < 0).all()
        assert times[-1] == 0 and times[0] <= T
    assert times == list(range(T, -1, -1))             # T steps: every row


def test_every_grid_ends_at_clean_data():
    for spacing in SPACINGS:
        assert levels(LINEAR, 13, spacing)[-1] == CLEAN


@pytest.mark.parametrize("spacing, expected", [         # arXiv:2305.08891, Table 2, S = 10
    ("leading", [901, 801, 701, 601, 501, 401, 301, 201, 101, 1]),
    ("linspace", [1000, 889, 778, 667, 556, 445, 334, 223, 112, 1]),
    ("trailing", [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100]),
])
def test_grids_are_the_published_table(spacing, expected):
    assert [level.t for level in levels(LINEAR, 10, spacing)] == [*expected, 0]


def test_trailing_steps_that_do_not_divide_the_table_are_rounded_not_cut():
    assert [level.t for level in levels(LINEAR, 7)] == [1000, 857, 714, 571, 429, 286, 143, 0]


def test_only_trailing_starts_at_the_noisiest_level_for_every_number_of_steps():
    assert all(levels(LINEAR, steps)[0].t == 1000 for steps in range(1, 1001))
    assert levels(LINEAR, 999, "leading")[0].t == 999


@pytest.mark.parametrize("steps, options, message", [
    (0, {}, "steps=0"), (-3, {}, "steps=-3"), (1001, {}, "1 to 1000"), (2.5, {}, "steps=2.5"),
    (float("nan"), {}, "steps=nan"), (10, {"spacing": "cubic"}, "cubic"),
    (1000, {"spacing": "leading", "offset": 1}, "offset=1"),
    (10, {"spacing": "leading", "offset": -1}, "offset=-1"),
    (10, {"spacing": "karras", "rho": 0}, "rho=0"), (10, {"spacing": "karras", "end": 0}, "end=0"),
    (10, {"spacing": "linspace", "end": 1000}, "end=1000"),
    (10, {"spacing": "trailing", "clean": False}, "names no last noisy level"),
])
def test_bad_grids_are_one_line_errors(steps, options, message):
    with pytest.raises(ValueError, match=message) as error:
        levels(LINEAR, steps, **options)
    assert "\n" not in str(error.value)


# ---- spacings by noise, and times between rows ----


def sigmas(grid):
    return np.array([level.noise / level.signal for level in grid if level != CLEAN])


@pytest.mark.parametrize("schedule", [LINEAR, Schedule.make("scaled_linear"), EDM(), Flow(shift=3)])
@pytest.mark.parametrize("steps", [2, 3, 10, 1000])
def test_logsnr_is_even_in_half_log_snr(schedule, steps):
    if schedule.level(schedule.T).signal == 0:
        schedule = Schedule.make("squaredcos_cap_v2")
    grid = levels(schedule, steps, "logsnr")
    lams = [level.lam for level in grid[:-1]]
    np.testing.assert_allclose(np.diff(lams), (lams[-1] - lams[0]) / (steps - 1), rtol=1e-6)
    assert grid[0] == schedule.level(schedule.T) and grid[-1] == CLEAN
    assert len(grid) == steps + 1


@pytest.mark.parametrize("rho", [1.0, 7.0])
@pytest.mark.parametrize("schedule", [LINEAR, EDM()])
def test_karras_is_the_published_formula(schedule, rho):
    N = 18
    grid = levels(schedule, N, "karras", rho=rho)
    sigma = sigmas(grid)
    high, low = sigma[0], sigma[-1]
    assert low == pytest.approx(0.002 if schedule == EDM() else 0.010001, rel=1e-3)
    want = [(high ** (1 / rho) + i / (N - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
            for i in range(N)]
    np.testing.assert_allclose(sigma, want, rtol=1e-9)


def test_quadratic_is_even_in_the_root_of_time():
    roots = np.sqrt([level.t for level in levels(LINEAR, 50, "quadratic", whole=False)[:-1]])
    np.testing.assert_allclose(np.diff(roots), (1 - 1000**0.5) / 49, rtol=1e-9)
    whole = [level.t for level in levels(LINEAR, 10, "quadratic")[:-1]]
    assert whole == [1 + round((1 + (1000**0.5 - 1) * k / 9) ** 2 - 1) for k in range(9, -1, -1)]


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_fractional_grids_are_even_whatever_the_number_of_steps(spacing):
    for steps in (7, 61, 333, 2500):                   # more steps than rows are fine
        times = np.array([level.t for level in levels(LINEAR, steps, spacing, whole=False)[:-1]])
        np.testing.assert_allclose(np.diff(times), times[1] - times[0], rtol=1e-8)
        assert len(times) == steps


@pytest.mark.parametrize("spacing", ["linspace", "quadratic", "logsnr", "karras"])
def test_a_grid_may_end_above_zero(spacing):
    grid = levels(LINEAR, 20, spacing, end=50, clean=False)
    assert len(grid) == 21
    assert grid[0].t == 1000 and grid[-1].t == pytest.approx(50, rel=1e-9)


def test_a_grid_that_cannot_give_distinct_levels_says_so():
    assert len(levels(LINEAR, 16, "quadratic")) == 17
    with pytest.raises(ValueError, match="'quadratic' cannot give 200 distinct levels") as error:
        levels(LINEAR, 200, "quadratic")
    assert "\n" not in str(error.value)
    assert len(levels(LINEAR, 200, "quadratic", whole=False)) == 201


@pytest.mark.parametrize("spacing", ["logsnr", "karras"])
def test_pure_noise_has_no_log_snr_to_space_by(spacing):
    for schedule in (Schedule([1.0, 0.8, 0.3, 0.0]), Flow()):
        with pytest.raises(ValueError, match="begins at pure noise"):
            levels(schedule, 2, spacing)


@pytest.mark.parametrize("T", range(1, 60))
def test_a_grid_starts_exactly_at_its_schedules_end(T):
    """A root of T squared may exceed it by a rounding error: every other T or so."""
    for steps in (1, 2, 5):
        for spacing in ("quadratic", "linspace", "trailing"):
            assert levels(Flow(T), steps, spacing)[0].t == T


def test_flow_grids_start_at_pure_noise_and_end_at_clean_data():
    grid = levels(Flow(shift=3.0), 4)
    assert [level.noise for level in grid] == pytest.approx([1, 0.9, 0.75, 0.5, 0])
    assert [level.t for level in grid] == pytest.approx([1000, 900, 750, 500, 0])


# ---- beside diffusers, where it is installed ----


@pytest.mark.parametrize("spacing", EVEN)
def test_grids_equal_those_of_diffusers(spacing):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(timestep_spacing=spacing)
    for steps in (*range(1, 130), 200, 250, 333, 500, 999, 1000):
        theirs.set_timesteps(steps)
        ours = [level.t - 1 for level in levels(LINEAR, steps, spacing)[:-1]]
        if spacing != "trailing":
            assert ours == theirs.timesteps.tolist(), steps
            continue
        # Their float arange may run one entry too far (61 steps asked, 62 done), and its rounding
        # errors decide the halves; ours counts in integers and rounds halves to even.
        for k, (here, there) in enumerate(zip(ours, theirs.timesteps.tolist(), strict=False)):
            half = 2 * 1000 * (steps - k) % (2 * steps) == steps
            assert here == there or (half and abs(here - there) == 1), (steps, k)
