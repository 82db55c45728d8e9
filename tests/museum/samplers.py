"""Room 1: a step that is wrong, or that is taken to the wrong place."""
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from math import sqrt
from unittest.mock import patch

import numpy as np

from museum.frame import (
    LINEAR,
    Curve,
    Exhibit,
    Points,
    followed,
    petals,
    replaced,
    walked,
)
from tinydiff import grids, samplers
from tinydiff.diffusion import CLEAN, Level, posterior, transition
from tinydiff.oracle import GaussianMixture
from tinydiff.samplers.ddim import ddim_invert, ddim_step
from tinydiff.samplers.ddpm import ddpm_step
from tinydiff.samplers.dpm_solver_pp import derivatives, dpm_solver_pp_step
from tinydiff.schedules import Schedule

COSINE = Schedule.make("squaredcos_cap_v2")
PETALS = "mean distance between a point and where the exact flow has it"
EMOJI = "distance of the worst picture to the nearest emoji, root mean square"


# ---- the switches ----


def flipped_sign(x_t, x0_hat, eps_hat, t, s, eta=0.0, z=0.0):
    return ddim_step(x_t, x0_hat, -eps_hat, t, s, eta, z)


def option_ignored(x_t, x0_hat, eps_hat, t, s, eta=0.0, z=0.0):
    return ddim_step(x_t, x0_hat, eps_hat, t, s)


def step_of_no_size(x_t, t, s, *D, **form):
    return x_t if s.noise == 0 else dpm_solver_pp_step(x_t, t, s, *D, **form)


def half_the_last_term(nodes, s):
    D0, D1, D2 = derivatives(nodes, s)
    return D0, D1, None if D2 is None else D2 / 2


def order_kept_to_the_end(nodes, s):
    """As `derivatives`, but h may be infinite: all earlier values are then at a share of 0."""
    (t, D0), *others = nodes
    if s.noise > 0 or not others:
        return derivatives(nodes, s)
    return D0, (others[0][1] - D0) / np.float64((others[0][0].lam - t.lam) / np.inf), None


def variance_of_one_row(x_t, x0_hat, t, s, variance="small", z=0.0):
    return ddpm_step(x_t, x0_hat, t, LINEAR.level(t.t - 1), variance, z)


def noise_to_the_end(x_t, x0_hat, t, s, variance="small", z=0.0):
    mean, beta_tilde = posterior(x_t, x0_hat, t, s)
    return mean + sqrt(beta_tilde if variance == "small" else transition(s, t)[1]) * z


def off_the_grid(levels):
    stride = LINEAR.T // (len(levels) - 1)
    for t, _ in pairwise(levels):
        yield t, LINEAR.level(max(t.t - stride, 0))


def index_for_time(denoise, x_0, levels):
    """Walk up as `ddim_invert`, but tell the network the number of the step."""
    number = {level: LINEAR.level(k) for k, level in enumerate(levels, start=1)}
    return ddim_invert(lambda x, t: told(denoise(x, number[t])[1], x, t), x_0, levels)


def told(eps, x, t):
    return (x - t.noise * eps) / t.signal, eps


@contextmanager
def pairs_of(module, wrong):
    with patch.object(module, "pairwise", wrong):
        yield


# ---- the pictures ----


def followed_down(name, steps, spacing, schedule=LINEAR):
    return followed(name, grids.levels(schedule, steps, spacing))


def from_one_start():
    """Where eta = 1 leads from one noisy start, 400 times."""
    rng, data = np.random.default_rng(0), petals()
    t = LINEAR.level(500)
    x_t = np.tile([[0.25, 0.1]], (400, 1))
    grid = [LINEAR.level(k) for k in range(500, -1, -10)]
    draw = lambda k: rng.normal(size=x_t.shape)
    *_, last = samplers.SAMPLERS["ddim"](data, x_t, grid, noise=draw, eta=1.0)
    shares = data.shares(x_t[:1], t)[0]
    kept = [GaussianMixture([t.signal * 0.02 / (t.signal**2 * 0.02 + t.noise**2)
                             * (x_t[0] - t.signal * m) + m], 0.02 * t.noise**2
                            / (t.signal**2 * 0.02 + t.noise**2)) for m in data.means]
    which = rng.choice(8, 400, p=shares)
    truth = np.concatenate([kept[k].sample(1, rng) for k in which])
    spread = lambda x: np.sqrt(x.var(axis=0).sum())
    return Points(last.x_s, truth), float(abs(spread(last.x_s) / spread(truth) - 1))


def errors_over_steps():
    """Errors of DDIM on linspace grids; the error is that of the last and finest."""
    steps = [10, 30, 90, 270, 501]
    errors = [followed_down("ddim", n, "linspace")[1] for n in steps]
    return Curve(steps, errors, ("steps", "error"), f"{errors[-1]:.4f} at 501 steps"), errors[-1]


def round_trip():
    data, rng = petals(), np.random.default_rng(0)
    x_0 = data.sample(200, rng)
    low, high = LINEAR.level(20), LINEAR.level(600)
    grid = [LINEAR.at_lam(lam) for lam in np.linspace(low.lam, high.lam, 201).tolist()]
    x_low = low.signal * x_0
    *_, up = samplers.ddim_invert(data, x_low, grid)
    *_, down = samplers.ddim_sample(data, up.x_s, grid[::-1])
    return (Points(down.x_s / low.signal, x_0),
            float(np.sqrt(((down.x_s - x_low) ** 2).sum(axis=1)).mean()))


def slope_of_3m():
    """Errors of (3M) on one Gaussian, whose flow is a formula; and how far its order is from 3."""
    data = GaussianMixture([[0.3, -0.5]], [[[0.25, 0.1], [0.1, 0.3]]])
    points, steps, errors = data.sample(8, np.random.default_rng(0)), [20, 40, 80, 160, 320], []
    high, low = LINEAR.level(600), LINEAR.level(50)
    for n in steps:
        h = (low.lam - high.lam) / n
        grid = [LINEAR.at_lam(high.lam + k * h) for k in range(-2, n + 1)]
        known = [(u, data(data.flow(points, CLEAN, u), u)[0]) for u in grid[1::-1]]
        *_, last = samplers.SAMPLERS["dpmpp_3m"](
            data, data.flow(points, CLEAN, high), grid[2:], lower_order_final=False, history=known)
        errors.append(float(np.abs(last.x_s - data.flow(points, CLEAN, low)).max()))
    order = -np.polyfit(np.log(steps[-3:]), np.log(errors[-3:]), 1)[0]
    return (Curve(steps, errors, ("steps", "error"), f"order {order:.2f}"),
            float(abs(order - 3)))


def drawn(name, steps, spacing="trailing", **options):
    return walked(name, grids.levels(LINEAR, steps, spacing), **options)


ROOM = [
    Exhibit(
        "flipped_sign", "A DDIM with a flipped sign",
        "The direction that points to the noise is subtracted. The last step lands on the "
        "predicted picture all the same, so samples look like something; but all that the noise "
        "had to say is lost, and each mode shrinks to its middle.",
        "[a NumPy code base](https://github.com/AkiRusProd/numpy-nn-model), `ddim_denoise_sample` "
        "in its `examples/ddpm.py`.",
        "x_s = s.signal * x0_hat - s.noise * eps_hat",
        "x_s = s.signal * x0_hat + s.noise * eps_hat",
        partial(replaced, ddim_step, flipped_sign), partial(followed_down, "ddim", 100, "linspace"),
        PETALS,
        "test_samplers.py::test_ddim_with_the_true_noise_returns_x0_exactly",
        (grids.levels(LINEAR, 50),)),
    Exhibit(
        "option_ignored", "An option that does nothing",
        "The user asks for eta = 1, the sampler drops it without a word. From one noisy start "
        "the stochastic sampler must reach all that could have become of it; this one always "
        "reaches the same point.",
        "diffusers' pipelines, which leave `eta` out where a scheduler's `step` does not take it "
        "(`prepare_extra_step_kwargs`; the documentation says so). Here it is refused.",
        "x_s = ddim_step(x_t, x0_hat, eps_hat, t, s)",
        "x_s = ddim_step(x_t, x0_hat, eps_hat, t, s, eta, z)",
        partial(replaced, ddim_step, option_ignored), from_one_start,
        "how far the spread of the points is from that of the exact posterior, relative",
        "test_samplers.py::test_ddim_with_eta_one_is_ddpm",
        (LINEAR.level(640.5), LINEAR.level(17.25))),
    Exhibit(
        "step_of_no_size", "A last step of no size",
        "The list of sigmas was closed by writing its last entry twice, not by 0. The last "
        "step then leads from a level to itself, and the noise of that level stays in the picture.",
        "diffusers with Karras sigmas, until January 2024 "
        "([#6477](https://github.com/huggingface/diffusers/pull/6477); residual noise was reported "
        "in [#5689](https://github.com/huggingface/diffusers/issues/5689)).",
        "sigmas = np.concatenate([sigmas, sigmas[-1:]])",
        "sigmas = np.concatenate([sigmas, [0.0]])",
        partial(replaced, dpm_solver_pp_step, step_of_no_size), partial(drawn, "dpmpp_2m", 20),
        EMOJI, "test_samplers.py::test_steps_asked_are_done_and_the_last_is_x0_hat",
        ("dpmpp_2m", {}, 10)),
    Exhibit(
        "order_kept_to_the_end", "NaN at order 3",
        "The step onto clean data is infinitely long in log-SNR. A method of higher order divides "
        "by its share of that, 0, and the whole picture is NaN: black, in every viewer.",
        "diffusers' singlestep solver of order 3 at 11, 14, 17 ... steps "
        "([#9007](https://github.com/huggingface/diffusers/issues/9007)).",
        "order = 3",
        "order = 1 if sigma_next == 0 else 3",
        partial(replaced, derivatives, order_kept_to_the_end), partial(drawn, "dpmpp_3m", 20),
        EMOJI, "test_samplers.py::test_steps_asked_are_done_and_the_last_is_x0_hat",
        ("dpmpp_3m", {}, 1000)),
    Exhibit(
        "corrected_at_pure_noise", "A correction times 20,291",
        "Heun corrects Euler's step by half of the difference of two slopes, times the step in "
        "sigma. The cosine schedule cuts its last beta to 0.999, so it starts at a sigma of 20,291 "
        "and not at the 80 of Heun's paper: a difference too small to mean anything moves the "
        "points far off. There Euler's step alone is the better one.",
        "this library, until `tinydiff evaluate fashion-unet --sweep` drew with Heun; diffusers "
        "0.42.1's `HeunDiscreteScheduler` with `squaredcos_cap_v2` and trailing spacing misses by "
        "5.1 here as well, its Euler by 0.06 (`test_samplers_parity.py`).",
        "if s.noise > 0 and t.signal > 0:",
        "if s.noise > 0 and not t.pure:",
        partial(patch.object, Level, "pure", property(lambda t: t.signal == 0)),
        partial(followed_down, "heun", 10, "trailing", COSINE), PETALS,
        "test_samplers.py::test_a_walk_from_pure_noise_does_not_blow_up_what_a_network_gets_wrong",
        ("heun", False)),
    Exhibit(
        "half_the_last_term", "A third order that is a second",
        "The parabola's last term has half of its weight. No picture shows it: the points lie "
        "where they should, to a thousandth. The slope of the error does: with twice the steps it "
        "falls by 4, not by 8.",
        "DPM-Solver++(3M) as published code has it: `test_samplers_parity.py` needs the half to "
        "agree with diffusers 0.42.",
        "x_s = x_s - s.signal * ((expm1(-h) + h) / h**2 - 0.5) * D2 / 2",
        "x_s = x_s - s.signal * ((expm1(-h) + h) / h**2 - 0.5) * D2",
        partial(replaced, derivatives, half_the_last_term), slope_of_3m,
        "how far the measured order is from 3", "test_convergence.py::test_order_of_convergence",
        ("dpmpp_3m", {}, "x0", 3, 0.1)),
    Exhibit(
        "off_the_grid", "A step to where the grid is not",
        "The next level was computed as t - T // N, whatever the spacing of the grid. Where that "
        "is another row, each sample is handed on as if it were of a level that it has not "
        "reached. With few steps that is lost in the method's own error; more steps make it worse.",
        "diffusers' DDIM with linspace spacing "
        "([#11347](https://github.com/huggingface/diffusers/issues/11347), "
        "[#12633](https://github.com/huggingface/diffusers/issues/12633)).",
        "s = schedule.level(t.t - schedule.T // steps)",
        "s = levels[k + 1]",
        partial(pairs_of, samplers.ddim, off_the_grid),
        errors_over_steps, PETALS + ", at 501 steps",
        "test_samplers.py::test_ddim_on_the_papers_own_table_converges_to_the_data",
        ("linspace", (11, 30, 90, 270, 400))),
    Exhibit(
        "variance_of_one_row", "Fifty steps with the posterior of one",
        "The walk skips rows of the table, but mean and variance are those of a step to the row "
        "before. Each step removes a little of the noise that it should: only noise remains.",
        "diffusers' DDPM until 2023 "
        "([#2076](https://github.com/huggingface/diffusers/pull/2076)).",
        "mean, variance = posterior(x_t, x0_hat, t, schedule.level(t.t - 1))",
        "mean, variance = posterior(x_t, x0_hat, t, s)",
        partial(replaced, ddpm_step, variance_of_one_row), partial(drawn, "ddpm", 50), EMOJI,
        "test_samplers.py::test_each_variance_is_exact_for_the_data_it_was_made_for",
        ("small", 0.0)),
    Exhibit(
        "noise_to_the_end", "Noise in the last step",
        "The last step draws from its Gaussian like all others. With the small variance that is 0 "
        "and harmless, so the line survives; with the large one the picture ends in fresh noise.",
        "diffusers' DDPM with `variance_type=\"fixed_large\"` on a grid whose last timestep is not "
        "0: `test_ddpm_is_that_of_diffusers_step_by_step` has to take it out.",
        "return mu_tilde + sqrt(variance) * z",
        "return mu_tilde + sqrt(variance) * z if s.noise > 0 else mu_tilde",
        partial(replaced, ddpm_step, noise_to_the_end),
        partial(drawn, "ddpm", 20, variance="large"), EMOJI,
        "test_samplers.py::test_steps_asked_are_done_and_the_last_is_x0_hat",
        ("ddpm", {"variance": "large"}, 10)),
    Exhibit(
        "index_for_time", "An inversion that is wrong",
        "On the way up the network is told the number of the step, 1, 2, 3 ..., in the place of "
        "the time. The noise that it names is not there; sampling down again leads elsewhere.",
        "Stable Diffusion's `DDIMSampler.encode` "
        "([#226](https://github.com/Stability-AI/stablediffusion/pull/226)); diffusers' first "
        "told it -19 ([#5145](https://github.com/huggingface/diffusers/pull/5145)).",
        "eps_hat = network(x_t, k)",
        "eps_hat = network(x_t, timesteps[k])",
        partial(replaced, ddim_invert, index_for_time), round_trip,
        "mean distance between a point and where the round trip ends",
        "test_convergence.py::test_inversion_comes_back_at_order_one"),
]
