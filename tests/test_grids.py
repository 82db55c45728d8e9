"""Claims: N steps asked are N steps done; every grid falls to clean data, as published."""
import numpy as np
import pytest

from tinydiff.diffusion import CLEAN
from tinydiff.grids import SPACINGS, levels
from tinydiff.schedules import Schedule

LINEAR = Schedule.make("linear")



@pytest.mark.parametrize("spacing", SPACINGS)
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
    (float("nan"), {}, "steps=nan"), (10, {"spacing": "quadratic"}, "quadratic"),
    (1000, {"spacing": "leading", "offset": 1}, "offset=1"),
    (10, {"spacing": "leading", "offset": -1}, "offset=-1"),
])
def test_bad_grids_are_one_line_errors(steps, options, message):
    with pytest.raises(ValueError, match=message) as error:
        levels(LINEAR, steps, **options)
    assert "\n" not in str(error.value)


# ---- beside diffusers, where it is installed ----


@pytest.mark.parametrize("spacing", SPACINGS)
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
