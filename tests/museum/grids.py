"""Room 2: a walk that starts, ends or passes where it should not."""
from contextlib import ExitStack, contextmanager
from functools import lru_cache, partial
from unittest.mock import patch

import numpy as np

from museum.frame import LINEAR, Curve, Exhibit, Pictures, emoji, replaced, walked
from tinydiff import grids, samplers
from tinydiff.backends import normal
from tinydiff.datasets import load_emoji
from tinydiff.diffusion import CLEAN
from tinydiff.grids import levels
from tinydiff.oracle import FiniteData
from tinydiff.pipelines import Denoiser
from tinydiff.schedules import Schedule, scaled_linear_beta, tables

SCALED = Schedule.make("scaled_linear", 1000, 0.00085, 0.012)
COSINE = Schedule.make("squaredcos_cap_v2")
EMOJI = "distance of the worst picture to the nearest emoji, root mean square"


# ---- the switches ----


def on_rows(schedule, steps, spacing="trailing", *args, **kwargs):
    """Levels as `tinydiff.grids.levels`; those chosen by noise are rounded to the table's rows."""
    grid = levels(schedule, steps, spacing, *args, **kwargs)
    if spacing not in grids.BY_NOISE or not hasattr(schedule, "alpha_bar"):
        return grid
    return [schedule.level(max(1, round(level.t))) for level in grid[:-1]] + grid[-1:]


def fewer(*args, **kwargs):
    return list(dict.fromkeys(on_rows(*args, **kwargs)))


@contextmanager
def looked_up():
    """A grid with rows twice, on which a sampler looks up where it is: at the second of them."""
    def pairwise(grid):
        k = 1 if grid[1] == grid[0] else 0
        for _ in range(len(grid) - 1):
            yield grid[k], grid[k + 1]
            k += 1
    with ExitStack() as both:
        both.enter_context(replaced(levels, on_rows))
        both.enter_context(patch.object(samplers.ddim, "pairwise", pairwise))
        both.enter_context(patch.object(samplers.ddim, "check_levels", lambda levels: None))
        yield


def ends_at_a_row(schedule, *args, **kwargs):
    grid = levels(schedule, *args, **kwargs)
    clean = grid[-1] == CLEAN and hasattr(schedule, "alpha_bar")
    return [*grid[:-1], schedule.level(1)] if clean and grid[-2].t > 1 else grid


def leading(schedule, steps, spacing="trailing", *args, **kwargs):
    return levels(schedule, steps, "leading" if spacing == "trailing" else spacing, *args, **kwargs)


# ---- the pictures ----


@lru_cache
def shades(darkest):
    """One emoji before 21 backgrounds, up to white; large, so that noise has little brightness."""
    pictures = load_emoji(64, "noto")
    heart = pictures.array([[r["label"] for r in pictures.records].index("red heart")])[0]
    drawn = heart.min(axis=0) < 0.8
    shade = np.linspace(darkest, 1, 21)[:, None, None, None]
    return FiniteData(np.where(drawn, heart.astype(np.float64), shade))


def backgrounds(data, schedule, steps):
    """Draw sixteen of them; return eight of the pictures, and the shades of all."""
    x_T = normal((3, 64, 64), 0, "x_T", 0, range(16), np.float64)
    *_, last = samplers.SAMPLERS["ddim"](data, x_T, grids.levels(schedule, steps))
    return Pictures(last.x_s[:8]), last.x_s[:, 0, 0, 0]


def dark_to_bright():
    data = shades(-1.0)
    schedule = Schedule.make("scaled_linear", 1000, 0.00085, 0.012, zero_snr=True)
    pictures, shade = backgrounds(data, schedule, 50)
    return pictures, float(abs(shade.std() / data.pictures[:, 0, 0, 0].std() - 1))


def bright_ones():
    data = shades(0.0)
    schedule = Schedule.make("scaled_linear", 1000, 0.00085, 0.012, zero_snr=True)
    pictures, shade = backgrounds(data, schedule, 10)
    return pictures, float(abs(shade.mean() - data.pictures[:, 0, 0, 0].mean()))


def karras_steps():
    """The last twenty of 100 levels, where the rows are nearer to each other than whole numbers."""
    times = [level.t for level in grids.levels(SCALED, 100, "karras")[:-1]]
    number = range(1, len(times) + 1)
    return (Curve(number[80:], times[80:], ("step", "time"), f"{len(times)} steps", False),
            float(abs(len(times) - 100)))


def karras_cosine():
    try:
        return walked("ddim", grids.levels(COSINE, 20, "karras"))
    except IndexError:
        return Pictures(np.full((4, 3, 32, 32), np.nan)), float("inf")


def twenty_rows():
    schedule = Schedule.make("linear", 20, 0.01, 0.5)
    return walked("ddim", grids.levels(schedule, 10))


def by_another_table():
    """A network that was trained on the linear table, sampled by what that name means."""
    predict = lambda x, timestep: emoji()(x, LINEAR.level(timestep + 1))[1]
    grid = grids.levels(Schedule.make("linear"), 50)
    return walked("ddim", grid, denoise=Denoiser(predict, "epsilon"))


ROOM = [
    Exhibit(
        "fewer", "100 steps asked and 95 done",
        "Karras' sigmas were rounded to rows of the table, and rows that came twice dropped. "
        "The pictures are fine; the comparison at equal numbers of steps is not.",
        "diffusers ([#4122](https://github.com/huggingface/diffusers/issues/4122), until September "
        "2023). The switch does the same to our grid, and 95 is what comes out.",
        "timesteps = np.unique(timesteps.round())",
        "timesteps = timesteps",
        partial(replaced, levels, fewer), karras_steps,
        "steps that are missing", "test_grids.py::test_karras_is_the_published_formula",
        (LINEAR, 7.0)),
    Exhibit(
        "looked_up", "An index past the end",
        "As above, but rows that come twice are kept, and a sampler finds its place by looking "
        "up the time: the second of two equal rows. One step early, it ends one past the end.",
        "diffusers with Karras sigmas on a cosine schedule "
        "([#10738](https://github.com/huggingface/diffusers/issues/10738), "
        "[#12771](https://github.com/huggingface/diffusers/issues/12771)).",
        "k = (timesteps == t).nonzero()[1]",
        "for t, s in pairwise(levels):",
        looked_up, karras_cosine,
        "infinite, where there is no picture; else that to the nearest emoji, root mean square",
        "test_grids.py::test_karras_is_the_published_formula", (LINEAR, 7.0)),
    Exhibit(
        "ends_at_a_row", "A last step that ends at the first row",
        "The first row of a table without one for clean data is noisy already. The last step ends "
        "there, and its noise stays: little of it on 1000 rows, and on 20 plain to see.",
        "latent diffusion's DDIM, whose `alphas_prev` begins with `alphacums[0]` "
        "([#345](https://github.com/Stability-AI/stablediffusion/pull/345), "
        "[#587](https://github.com/lllyasviel/ControlNet/pull/587)).",
        "alphas_prev = [alphacums[0], *alphacums[timesteps[:-1]]]",
        "alphas_prev = [1.0, *alphacums[timesteps[:-1]]]",
        partial(replaced, levels, ends_at_a_row), twenty_rows, EMOJI,
        "test_grids.py::test_every_grid_ends_at_clean_data"),
    Exhibit(
        "not_to_the_noise", "A table that does not end at pure noise",
        "At its last row some picture is left: its brightness, an average of all pixels, can still "
        "be read. Sampling starts from noise that has none, and the denoiser takes that for a "
        "medium grey. No sample is dark, and none is bright.",
        "Stable Diffusion's table; Lin et al. found it "
        "([arXiv:2305.08891](https://arxiv.org/abs/2305.08891)).",
        "alpha_bar = scaled_linear(T)",
        "alpha_bar = zero_terminal_snr(scaled_linear(T))",
        partial(replaced, tables.zero_terminal_snr, lambda alpha_bar: alpha_bar),
        dark_to_bright, "how far the spread of the backgrounds is from the data's, relative",
        "test_schedules.py::test_zero_terminal_snr_keeps_the_first_level_and_ends_at_pure_noise",
        ("scaled_linear", 1000)),
    Exhibit(
        "leading", "A grid that starts below its top",
        "The table ends at pure noise, but with leading spacing ten steps begin at row 901, where "
        "there should be a little of a picture in the noise. There is none, which is taken for a "
        "medium grey. All backgrounds of this data are brighter, so what comes is its darkest.",
        "the default of Stable Diffusion's samplers; the same paper, its Table 2 "
        "([arXiv:2305.08891](https://arxiv.org/abs/2305.08891)).",
        "times = np.arange(1, T + 1, T // N)[::-1]",
        "times = np.round(np.arange(T, 0, -T / N))",
        partial(replaced, levels, leading), bright_ones,
        "how far the mean shade of the backgrounds is from the data's",
        "test_grids.py::test_grids_are_the_published_table",
        ("trailing", [1000, 900, 800, 700, 600, 500, 400, 300, 200, 100])),
    Exhibit(
        "name_of_a_table", "Linear in what?",
        "One code base calls `linear` what is linear in the root of beta. A network that was "
        "trained on the one and sampled on the other sees more or less noise than it is told.",
        "latent diffusion's `make_beta_schedule` "
        "([#314](https://github.com/CompVis/stable-diffusion/issues/314)), and from there "
        "[ComfyUI](https://github.com/Comfy-Org/ComfyUI/issues/1998).",
        "beta = np.linspace(start**0.5, end**0.5, T) ** 2",
        "beta = np.linspace(start, end, T)",
        partial(replaced, tables.linear_beta,
                lambda T, start=1e-4, end=0.02: scaled_linear_beta(T, start, end)),
        by_another_table, EMOJI, "test_schedules.py::test_tables_are_the_published_formulas",
        (500,)),
]
