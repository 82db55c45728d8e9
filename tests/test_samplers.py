"""Claims: DDIM with eta 1 is DDPM; the true noise leads to x0 on any grid; the last step is x0_hat;
on Gaussian data, where the denoiser and the flow are known, DDIM converges at order one
(`test_gaussian_moments` follows the samplers that draw noise there).

Everything starts from the true q(x_T), not from N(0, I): that mismatch alone would show as a bias.
"""
from itertools import pairwise
from math import sqrt

import numpy as np
import pytest

from tinydiff.diffusion import CLEAN, Level, Step, q_sample
from tinydiff.grids import levels
from tinydiff.samplers import (
    SAMPLERS,
    ddim_invert,
    ddim_sample,
    ddim_step,
    ddpm_sample,
    ddpm_step,
)
from tinydiff.schedules import EDM, Flow, Schedule
from tinydiff.targets import to_x0_eps

LINEAR = Schedule.make("linear")
EVEN = ("trailing", "leading", "linspace")
RNG = np.random.default_rng(0)
X0, EPS, Z = RNG.uniform(-1, 1, (2, 3, 4, 4)), *RNG.normal(size=(2, 2, 3, 4, 4))
ADJACENT = [(LINEAR.level(t), LINEAR.level(t - 1)) for t in (1, 2, 17, LINEAR.T)]
MU, DEVIATION = 0.3, 0.5                               # the Gaussian data


def gaussian_denoiser(x_t, t):
    """E[x0 | x_t] and the noise that goes with it, for x0 ~ N(MU, DEVIATION^2)."""
    power = (t.signal * DEVIATION) ** 2 + t.noise**2
    x0_hat = MU + t.signal * DEVIATION**2 / power * (x_t - t.signal * MU)
    return x0_hat, t.noise / power * (x_t - t.signal * MU)


def gaussian_flow(u, t):
    """Where the probability flow carries the data point MU + DEVIATION * u."""
    return t.signal * MU + sqrt((t.signal * DEVIATION) ** 2 + t.noise**2) * u


def even_in_log_snr(steps, first=-4.0, last=4.0):
    """A variance-preserving grid with equal steps in half log-SNR, ending above zero."""
    return [LINEAR.at_lam(lam) for lam in np.linspace(first, last, steps + 1).tolist()]


def slope(steps, errors):
    return -np.polyfit(np.log(steps), np.log(errors), 1)[0]


def final(steps):
    *_, last = steps
    return last.x_s


# ---- identities ----


@pytest.mark.parametrize("t, s", [*ADJACENT, (LINEAR.level(1000), LINEAR.level(3)),
                                  (LINEAR.level(640.5), LINEAR.level(17.25))])
def test_ddim_with_eta_one_is_ddpm(t, s):
    x_t = q_sample(X0, EPS, t.signal, t.noise)
    ddim = ddim_step(x_t, X0, EPS, t, s, eta=1.0, z=Z)
    ddpm = ddpm_step(x_t, X0, t, s, "small", z=Z)
    np.testing.assert_allclose(ddim, ddpm, rtol=0, atol=1e-10)


@pytest.mark.parametrize("spacing", EVEN)
def test_ddim_with_eta_one_walks_as_ddpm(spacing):
    grid, draws = levels(LINEAR, 13, spacing), RNG.normal(size=(13, *Z.shape))
    noise = lambda k: draws[k]
    walks = (ddim_sample(gaussian_denoiser, Z, grid, noise=noise, eta=1.0),
             ddpm_sample(gaussian_denoiser, Z, grid, noise=noise))
    for ddim, ddpm in zip(*walks, strict=True):
        np.testing.assert_allclose(ddim.x_s, ddpm.x_s, rtol=0, atol=1e-10)


@pytest.mark.parametrize("grid", [
    *(levels(LINEAR, steps, spacing) for steps in (1, 2, 50) for spacing in EVEN),
    [LINEAR.level(t) for t in (1000, 999, 3.5, 0.01, 0)], [*even_in_log_snr(9), CLEAN],
])
def test_ddim_with_the_true_noise_returns_x0_exactly(grid):
    x_T = q_sample(X0, EPS, grid[0].signal, grid[0].noise)
    for step in ddim_sample(lambda x_t, t: (X0, EPS), x_T, grid):
        truth = q_sample(X0, EPS, step.s.signal, step.s.noise)
        np.testing.assert_allclose(step.x_s, truth, atol=1e-14)
    np.testing.assert_array_equal(step.x_s, X0)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
def test_ddim_walks_the_same_whatever_the_network_predicts(kind):
    """x_t itself goes through the conversions here, so a wrong sign anywhere in them shows."""
    def denoise(x_t, t):
        x0_hat, eps_hat = gaussian_denoiser(x_t, t)
        prediction = {"epsilon": eps_hat, "sample": x0_hat,
                      "v_prediction": t.signal * eps_hat - t.noise * x0_hat}[kind]
        return to_x0_eps(prediction, x_t, t, kind)

    grid = levels(LINEAR, 20)
    np.testing.assert_allclose(final(ddim_sample(denoise, Z, grid)),
                               final(ddim_sample(gaussian_denoiser, Z, grid)), atol=1e-10)


NOISY = [("ddim", {"eta": 0.4}), ("ddim", {"eta": 1.0}), ("ddpm", {"variance": "small"}),
         ("ddpm", {"variance": "large"}), ("dpmpp_sde", {}), ("dpmpp_sde", {"order": 1}),
         ("euler_ancestral", {})]
OPTIONS = [*NOISY, ("ddim", {"eta": 0.0}), ("dpm_solver", {"order": 2}), ("dpm_solver", {}),
           ("dpmpp_2m", {}), ("dpmpp_3m", {}), ("dpmpp_2s", {}), ("unipc", {}),
           ("unipc", {"order": 3}), ("euler", {}), ("heun", {}), ("lms", {}), ("pndm", {}),
           ("pndm", {"level": LINEAR.level})]


@pytest.mark.parametrize("name, options", [*OPTIONS, ("flow", {}), ("flow", {"order": 2})])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 1000])
def test_steps_asked_are_done_and_the_last_is_x0_hat(name, options, steps):
    grid = levels(Flow() if name == "flow" else LINEAR, steps)
    walk = list(SAMPLERS[name](gaussian_denoiser, Z, grid, noise=lambda k: Z, **options))
    assert len(walk) == steps
    assert np.isfinite(walk[-1].x_s).all()
    if name not in ("lms", "pndm"):                    # published so: older slopes to the end
        np.testing.assert_allclose(walk[-1].x_s, walk[-1].x0_hat, rtol=0,
                                   atol=1e-12 if name == "flow" else 0)


@pytest.mark.parametrize("steps", [1, 2, 5, 6, 7, 20])
@pytest.mark.parametrize("name, calls", [
    ("ddim", 0), ("dpm_solver", 0), ("dpmpp_2m", 0), ("dpmpp_2s", 0), ("dpmpp_3m", 0),
    ("unipc", 0), ("euler", 0), ("lms", 0), ("heun", 1)])
def test_a_step_is_one_call_of_the_network_but_heuns(name, calls, steps):
    asked = []
    denoise = lambda x_t, t: asked.append(t) or gaussian_denoiser(x_t, t)
    list(SAMPLERS[name](denoise, Z, levels(LINEAR, steps)))
    assert len(asked) == steps + calls * (steps - 1)


@pytest.mark.parametrize("name, options", OPTIONS)
def test_steps_hang_together(name, options):
    grid, asked = levels(LINEAR, 6), []
    noise = lambda k: asked.append(k) or Z
    walk = list(SAMPLERS[name](gaussian_denoiser, Z, grid, noise=noise, **options))
    assert all(isinstance(step, Step) for step in walk)
    assert [step.t for step in walk] == grid[:-1] and [step.s for step in walk] == grid[1:]
    assert walk[0].x_t is Z
    assert all(above.x_s is below.x_t for above, below in pairwise(walk))
    assert asked == (list(range(6)) if (name, options) in NOISY else [])
    for step in walk:
        parts = step.t.signal * step.x0_hat + step.t.noise * step.eps_hat
        np.testing.assert_allclose(parts, step.x_t, atol=1e-13)


@pytest.mark.parametrize("name, options", OPTIONS)
def test_picture_k_does_not_depend_on_its_batch(name, options):
    draws = RNG.normal(size=(5, *Z.shape))
    grid = levels(LINEAR, 5)
    together = final(SAMPLERS[name](gaussian_denoiser, Z, grid, noise=lambda k: draws[k],
                                    **options))
    alone = final(SAMPLERS[name](gaussian_denoiser, Z[1:], grid, noise=lambda k: draws[k][1:],
                                 **options))
    np.testing.assert_array_equal(together[1:], alone)


@pytest.mark.parametrize("name, options", OPTIONS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_samplers_keep_the_dtype(name, options, dtype):
    z = Z.astype(dtype)
    for step in SAMPLERS[name](gaussian_denoiser, z, levels(LINEAR, 4), noise=lambda k: z,
                               **options):
        assert {step.x_t.dtype, step.x0_hat.dtype, step.eps_hat.dtype, step.x_s.dtype} == {z.dtype}


def test_a_start_without_any_signal_is_not_special():
    schedule = Schedule([1.0, 0.8, 0.3, 0.0])          # zero terminal SNR
    for name, options in OPTIONS:
        if name == "pndm":
            continue                                   # its transfer divides by the signal
        x0 = final(SAMPLERS[name](gaussian_denoiser, Z, levels(schedule, 3), noise=lambda k: Z,
                                  **options))
        assert np.isfinite(x0).all()


@pytest.mark.parametrize("eta", [0.0, 0.3, 1.0])
def test_no_pair_of_levels_makes_a_negative_variance(eta):
    """Close pairs, nearly clean and nearly silent ones: rounding must not reach a square root."""
    rows = [0.0, 1e-9, 1e-4, 0.5, 1, 1 + 1e-9, 2, 500, 500 + 1e-9, 999, 999.999, 1000]
    for schedule in (LINEAR, Schedule.make("squaredcos_cap_v2"),
                     Schedule([*np.linspace(1, 0.001, 1000), 2.0**-48])):
        for s, t in pairwise(map(schedule.level, rows)):
            assert np.isfinite(ddim_step(0.1, 0.2, 0.3, t, s, eta, z=1.0))
            for variance in ("small", "large"):
                assert np.isfinite(ddpm_step(0.1, 0.2, t, s, variance, z=1.0))


# ---- on Gaussian data ----


def test_ddim_converges_at_order_one():
    u, steps, errors = np.linspace(-2, 2, 9), (16, 32, 64, 128, 256), []
    for count in steps:
        grid = even_in_log_snr(count)
        x = final(ddim_sample(gaussian_denoiser, gaussian_flow(u, grid[0]), grid))
        errors.append(np.abs(x - gaussian_flow(u, grid[-1])).max())
    assert slope(steps, errors) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize("spacing, steps", [
    ("trailing", (10, 20, 50, 100, 200)), ("linspace", (11, 30, 90, 270, 400))])
def test_ddim_on_the_papers_own_table_converges_to_the_data(spacing, steps):
    u, errors = np.linspace(-2, 2, 9), []
    for count in steps:
        grid = levels(LINEAR, count, spacing)
        x = final(ddim_sample(gaussian_denoiser, gaussian_flow(u, grid[0]), grid))
        errors.append(np.abs(x - (MU + DEVIATION * u)).max())
    assert slope(steps[2:], errors[2:]) == pytest.approx(1.0, abs=0.15)


def test_churn_adds_the_noise_it_says():
    """One step of churn on data that is one point: sigma rises by gamma, and comes down again."""
    grid, z = [EDM().level(sigma) for sigma in (10.0, 1.0)], RNG.normal(size=1000)
    at_zero = lambda x_t, t: (0.0 * x_t, x_t / t.noise)
    step, = SAMPLERS["euler"](at_zero, 0 * z, grid, noise=lambda k: z, churn=0.3)
    assert step.t.noise == pytest.approx(13.0)
    np.testing.assert_allclose(step.x_t, sqrt(13.0**2 - 10.0**2) * z)
    np.testing.assert_allclose(step.x_s, step.x_t / 13)


@pytest.mark.parametrize("variance, data", [("small", 0.0), ("large", 1.0)])
def test_each_variance_is_exact_for_the_data_it_was_made_for(variance, data):
    """arXiv:2006.11239, Sec. 3.2: beta_tilde for one point, beta for N(0, I); each step exactly."""
    for t, s in (ADJACENT[1], ADJACENT[3], (LINEAR.level(900), LINEAR.level(20))):
        power = (t.signal * data) ** 2 + t.noise**2
        at = lambda x, z, t=t, s=s, power=power: ddpm_step(
            x, t.signal * data**2 / power * x, t, s, variance, z)
        got = at(1.0, 0.0) ** 2 * power + at(0.0, 1.0) ** 2
        assert got == pytest.approx((s.signal * data) ** 2 + s.noise**2, rel=1e-9)


@pytest.mark.parametrize("share, name", [(0.0, "small"), (1.0, "large")])
def test_a_learned_variance_reaches_from_small_to_large(share, name):
    learnt = lambda x_t, t: (*gaussian_denoiser(x_t, t), np.full_like(x_t, share))
    grid, noise = levels(LINEAR, 20), lambda k: Z
    walks = (ddpm_sample(learnt, EPS, grid, noise=noise, variance="learned"),
             ddpm_sample(gaussian_denoiser, EPS, grid, noise=noise, variance=name))
    for ours, theirs in zip(*walks, strict=True):
        np.testing.assert_allclose(ours.x_s, theirs.x_s, rtol=0, atol=1e-10)


# ---- bad input ----


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("grid, message", [
    ([LINEAR.level(t) for t in (900, 400, 500, 0)], r"fall in noise.*t=500\.0.*after.*t=400\.0"),
    ([LINEAR.level(t) for t in (900, 900, 0)], "fall in noise"),
    ([LINEAR.level(t) for t in (10, 900)], "fall in noise"),
    ([Level(1.0, float("nan"), 0.5), CLEAN], "fall in noise"), ([CLEAN, CLEAN], "fall in noise"),
    ([LINEAR.level(900)], "two levels or more, one below the other, not 1"), ([], "not 0")])
def test_a_custom_grid_that_does_not_fall_is_a_one_line_error(name, grid, message):
    if name == "flow":                                 # on its own line
        grid = [level._replace(signal=1 - level.noise) for level in grid]
        message = "fall in noise" if len(grid) > 1 else message
        if len(grid) > 1 and grid[0].noise == 0.5:     # there it would be a level like any other
            grid = [level._replace(noise=float("nan")) for level in grid]
    with pytest.raises(ValueError, match=message) as error:
        next(SAMPLERS[name](gaussian_denoiser, X0, grid, noise=lambda k: Z))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, options, message", [
    ("ddim", {"eta": -0.1}, "eta=-0.1 is outside"), ("ddim", {"eta": 1.01}, "eta=1.01"),
    ("ddim", {"eta": float("nan")}, "eta=nan"), ("ddim", {"eta": 0.5, "noise": None}, "pass noise"),
    ("ddpm", {"noise": None}, "pass noise"), ("ddpm", {"variance": "huge"}, "small, large"),
    ("ddpm", {"variance": "learned"}, "must return a third array"),
])
def test_bad_options_are_one_line_errors(name, options, message):
    options = {"noise": lambda k: Z, **options}
    with pytest.raises(ValueError, match=message) as error:
        next(SAMPLERS[name](gaussian_denoiser, Z, levels(LINEAR, 4), **options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name, options, message", [
    ("dpm_solver", {"order": 4}, "orders 1, 2 and 3, not 4"),
    ("dpmpp_2m", {"form": "taylor"}, "midpoint, heun"),
    ("dpmpp_sde", {"noise": None}, "pass noise"), ("dpmpp_sde", {"order": 3}, "orders 1 and 2"),
    ("unipc", {"order": 0}, "not 0"),
    ("unipc", {"scale": "bh3"}, "bh1, bh2"), ("heun", {"churn": -1.0}, "churn=-1"),
    ("heun", {"churn": 1.0, "noise": None}, "pass noise"),
    ("heun", {"churn": 1.0}, r"pass level_of\(sigma\)"), ("lms", {"order": 7}, "1 to 6"),
    ("pndm", {"order": 5}, "1 to 4"), ("flow", {"order": 3}, "orders 1"),
    ("flow", {}, "off it: use ddim"), ("euler_ancestral", {"noise": None}, "pass noise"),
])
def test_bad_options_of_the_solvers_are_one_line_errors(name, options, message):
    options = {"noise": lambda k: Z, **options}
    with pytest.raises(ValueError, match=message) as error:
        next(SAMPLERS[name](gaussian_denoiser, Z, levels(LINEAR, 4), **options))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", sorted(SAMPLERS.keys() - {"flow"}))
def test_a_walk_from_pure_noise_does_not_blow_up_what_a_network_gets_wrong(name, zero_snr):
    """The cosine table starts at noise / signal = 20,291: Heun multiplied errors by it."""
    def wrong(x_t, t):                                   # by up to 0.01 in v
        x0_hat, eps_hat = gaussian_denoiser(x_t, t)
        error = 0.01 * np.sin(7 * x_t + t.t)
        return x0_hat - t.noise * error, eps_hat + t.signal * error

    grid = levels(Schedule.make("squaredcos_cap_v2", zero_snr=zero_snr), 10)
    noise = lambda k: np.random.default_rng(k).normal(size=Z.shape)
    right, off = (list(SAMPLERS[name](denoise, Z, grid, noise=noise))[-1].x_s
                  for denoise in (gaussian_denoiser, wrong))
    assert np.abs(off - right).max() < 0.05


def test_inversion_refuses_levels_that_fall():
    with pytest.raises(ValueError, match="must rise"):
        next(ddim_invert(gaussian_denoiser, Z, levels(LINEAR, 4)))


def test_an_option_of_another_sampler_is_not_silently_ignored():
    with pytest.raises(TypeError, match="eta"):
        SAMPLERS["ddpm"](gaussian_denoiser, Z, levels(LINEAR, 4), eta=0.5)
    with pytest.raises(TypeError, match="variance"):
        SAMPLERS["ddim"](gaussian_denoiser, Z, levels(LINEAR, 4), variance="large")


# ---- beside diffusers, step by step, where it is installed ----


def with_their_table(theirs, torch):
    """Let diffusers work in float64 on its own alphas_cumprod, and read the same numbers."""
    theirs.alphas_cumprod = theirs.alphas_cumprod.double()
    theirs.one = torch.tensor(1.0, dtype=torch.float64)
    return Schedule(np.concatenate([[1.0], theirs.alphas_cumprod.numpy()]))


def published(kind, x_t, t):
    """Some network's output of this kind at x_t: any function will do."""
    return np.tanh(x_t) + {"epsilon": 0.0, "sample": 0.2, "v_prediction": -0.2}[kind] * t.signal


PARITY = [*((steps, spacing, kind) for steps in (1, 10, 40) for spacing in EVEN
            for kind in ("epsilon", "sample", "v_prediction")), (1000, "leading", "v_prediction")]


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_that_of_diffusers_step_by_step(beta_schedule, eta):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    for steps, spacing, kind in PARITY:
        theirs = diffusers.DDIMScheduler(beta_schedule=beta_schedule, clip_sample=False,
                                         prediction_type=kind, timestep_spacing=spacing)
        schedule = with_their_table(theirs, torch)
        theirs.set_timesteps(steps)
        denoise = lambda x_t, t, kind=kind: to_x0_eps(published(kind, x_t, t), x_t, t, kind)
        walk = ddim_sample(denoise, EPS, levels(schedule, steps, spacing), noise=lambda k: Z,
                           eta=eta)
        for step, timestep in zip(walk, theirs.timesteps.tolist(), strict=True):
            prediction = torch.from_numpy(published(kind, step.x_t, step.t))
            if max(timestep - 1000 // steps, -1) != step.s.t - 1:
                assert spacing != "leading"            # theirs steps by T // N, off its own grid
                continue
            want = theirs.step(prediction, timestep, torch.from_numpy(step.x_t), eta=eta,
                               variance_noise=torch.from_numpy(Z)).prev_sample.numpy()
            np.testing.assert_allclose(step.x_s, want, rtol=0, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("variance", ["small", "large"])
def test_ddpm_is_that_of_diffusers_step_by_step(beta_schedule, variance):
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    for steps, spacing, kind in PARITY:
        theirs = diffusers.DDPMScheduler(beta_schedule=beta_schedule, clip_sample=False,
                                         prediction_type=kind, timestep_spacing=spacing,
                                         variance_type=f"fixed_{variance}")
        schedule = with_their_table(theirs, torch)
        theirs.set_timesteps(steps)
        stream = torch.Generator().manual_seed(0)
        draws = [torch.randn(Z.shape, generator=stream, dtype=torch.float64) for _ in range(steps)]
        stream = torch.Generator().manual_seed(0)
        denoise = lambda x_t, t, kind=kind: to_x0_eps(published(kind, x_t, t), x_t, t, kind)
        walk = ddpm_sample(denoise, EPS, levels(schedule, steps, spacing),
                           noise=lambda k, draws=draws: draws[k].numpy(), variance=variance)
        for step, timestep in zip(walk, theirs.timesteps.tolist(), strict=True):
            prediction = torch.from_numpy(published(kind, step.x_t, step.t))
            want = theirs.step(prediction, timestep, torch.from_numpy(step.x_t),
                               generator=stream).prev_sample.numpy()
            if step.s == CLEAN and timestep > 0 and variance == "large":
                want = want - step.t.noise * draws[-1].numpy()     # theirs ends in fresh noise here
            # Theirs clamps a vanishing variance to 1e-20, which adds 1e-10 z to the last step.
            atol = 1e-5 * np.abs(want).max() + 1e-9
            np.testing.assert_allclose(step.x_s, want, rtol=0, atol=atol)
