"""Claims: on Gaussian data every stochastic sampler's samples have the mean and covariance that its
paper's equations carry through all steps, and that bias falls at the weak order.

The data is one Gaussian with correlated entries, so the denoiser is affine, x0_hat = A x + b, and
so is every step: x_s = F x + f + N(0, Q).  F, f and Q are written here from the papers, in matrices
(`Affine`, one function a paper), and share no line with the samplers.  A sampler shows what it does
to mean and covariance when it is run on unit inputs (`carried`), and must agree to 1e-10.
"""
from itertools import pairwise
from math import exp, log, sqrt
from typing import NamedTuple

import numpy as np
import pytest

from tinydiff.diffusion import CLEAN, Level
from tinydiff.grids import levels
from tinydiff.samplers import SAMPLERS
from tinydiff.schedules import EDM, Schedule

LINEAR = Schedule.make("linear")
M = np.array([0.3, -0.6, 1.0])
C = np.array([[0.50, 0.30, -0.10], [0.30, 0.40, 0.05], [-0.10, 0.05, 0.15]])
EYE = np.eye(3)
SHARES = np.array([0.0, 0.3, 1.0])                     # of a learned variance, for each entry


def denoise(x_t, t):
    """E[x0 | x_t] and E[eps | x_t] for x0 ~ N(M, C); and a share, for the learned variance."""
    V = t.signal**2 * C + t.noise**2 * EYE             # Cov[x_t]
    white = (x_t - t.signal * M) @ np.linalg.inv(V)
    return M + t.signal * white @ C, t.noise * white, np.broadcast_to(SHARES, x_t.shape)


def two(x_t, t):
    return denoise(x_t, t)[:2]


def even_in_log_snr(steps, first=-4.0, last=4.0):
    return [at_sigma(exp(-lam)) for lam in np.linspace(first, last, steps + 1).tolist()]


def at_sigma(sigma):
    """The variance-preserving level with noise / signal = sigma."""
    return Level(log(sigma), (1 + sigma**2) ** -0.5, sigma * (1 + sigma**2) ** -0.5)


# ---- by the papers ----


class Affine(NamedTuple):
    """x -> F x + f + N(0, Q)."""

    F: np.ndarray
    f: np.ndarray
    Q: np.ndarray

    def of(self, mean, covariance):
        """Mean and covariance of the image of a Gaussian."""
        return self.F @ mean + self.f, self.F @ covariance @ self.F.T + self.Q


def denoiser(t):
    """The Gaussian's denoiser by Bayes' rule: A, b with E[x0 | x_t] = A x_t + b."""
    A = t.signal * C @ np.linalg.inv(t.signal**2 * C + t.noise**2 * EYE)
    return A, M - t.signal * A @ M


def by_ddpm(t, s, variance="small"):
    """arXiv:2006.11239, Eq. 7 and Sec. 3.2; learned: arXiv:2102.09672, Eq. 15."""
    A, b = denoiser(t)
    alpha_bar_t, alpha_bar_s = t.signal**2, s.signal**2
    alpha = alpha_bar_t / alpha_bar_s
    beta = 1 - alpha
    beta_tilde = (1 - alpha_bar_s) / (1 - alpha_bar_t) * beta
    on_x0 = sqrt(alpha_bar_s) * beta / (1 - alpha_bar_t)
    on_x = sqrt(alpha) * (1 - alpha_bar_s) / (1 - alpha_bar_t)
    if s == CLEAN:
        Q = 0 * EYE
    else:
        Q = {"small": beta_tilde * EYE, "large": beta * EYE,
             "learned": np.diag(beta**SHARES * beta_tilde ** (1 - SHARES))}[variance]
    return Affine(on_x0 * A + on_x * EYE, on_x0 * b, Q)


def by_ddim(t, s, eta):
    """arXiv:2010.02502, Eqs. 12 and 16, whose alpha is alpha_bar here."""
    A, b = denoiser(t)
    alpha_t, alpha_s = t.signal**2, s.signal**2
    sigma = eta * sqrt((1 - alpha_s) / (1 - alpha_t)) * sqrt(1 - alpha_t / alpha_s)
    direction = sqrt(1 - alpha_s - sigma**2) / sqrt(1 - alpha_t)      # times x_t - sqrt(alpha_t) x0
    on_x0 = sqrt(alpha_s) - direction * sqrt(alpha_t)
    return Affine(on_x0 * A + direction * EYE, on_x0 * b, sigma**2 * EYE)


def by_sde_dpmpp(t, s, before, order):
    """arXiv:2211.01095, SDE-DPM-Solver++(1) and (2M), on the pair of x and the x0_hat before."""
    A, b = denoiser(t)
    r = 0.0                                            # D = (1 + r) x0_hat - r (the x0_hat before)
    if s == CLEAN:
        on_x, on_D, deviation = 0.0, 1.0, 0.0
    else:
        h = s.lam - t.lam
        on_x, on_D = s.noise / t.noise * exp(-h), s.signal * (1 - exp(-2 * h))
        deviation = s.noise * sqrt(1 - exp(-2 * h))
        if order == 2 and before is not None:
            r = h / (2 * (t.lam - before.lam))
    zero = np.zeros((3, 3))
    F = np.block([[on_x * EYE + on_D * (1 + r) * A, -on_D * r * EYE], [A, zero]])
    return Affine(F, np.concatenate([on_D * (1 + r) * b, b]),
                  np.block([[deviation**2 * EYE, zero], [zero, zero]]))


def by_euler_ancestral(t, s):
    """K. Crowson's step: Euler in x / signal down to sigma_down, then noise sigma_up."""
    A, b = denoiser(t)
    sigma_t, sigma_s = t.noise / t.signal, s.noise / s.signal
    up = sqrt(sigma_s**2 * (sigma_t**2 - sigma_s**2) / sigma_t**2)
    share = (sqrt(sigma_s**2 - up**2) - sigma_t) / sigma_t            # of x / signal - x0_hat
    F = (1 + share) / t.signal * EYE - share * A
    return Affine(s.signal * F, -s.signal * share * b, (s.signal * up) ** 2 * EYE)


def by_edm(t, s, order, churn, churn_min=0.0, churn_max=np.inf, churn_noise=1.0, steps=0):
    """arXiv:2206.00364, Algorithm 2, in its own x and D(x; sigma)."""
    sigma, after = t.noise / t.signal, s.noise / s.signal
    gamma = min(churn / steps, sqrt(2) - 1) if churn_min <= sigma <= churn_max else 0.0
    hat = sigma + gamma * sigma
    D = lambda sigma: C @ np.linalg.inv(C + sigma**2 * EYE)           # D(x; sigma) = M + D (x - M)
    slope = (EYE - D(hat)) / hat                       # of x - M; M itself stays where it is
    euler = EYE + (after - hat) * slope
    if order == 2 and after > 0:
        euler = EYE + (after - hat) / 2 * (slope + (EYE - D(after)) / after @ euler)
    raised = (hat**2 - sigma**2) * churn_noise**2 * EYE
    return Affine(s.signal * euler / t.signal, s.signal * (M - euler @ M),
                  s.signal**2 * euler @ raised @ euler.T)


def by_the_paper(name, grid, options):
    """Yield mean and covariance at every level below the first, from the true q(x_T)."""
    T = grid[0]
    mean, covariance = T.signal * M, T.signal**2 * C + T.noise**2 * EYE
    if name == "dpmpp_sde":                            # the x0_hat before is a part of the state
        mean, covariance = np.pad(mean, (0, 3)), np.pad(covariance, (0, 3))
    before = None
    for t, s in pairwise(grid):
        if name == "dpmpp_sde":
            step = by_sde_dpmpp(t, s, before, options.get("order", 2))
        elif name in ("euler", "heun"):
            own = {key: value for key, value in options.items() if key != "level_of"}
            step = by_edm(t, s, 1 if name == "euler" else 2, steps=len(grid) - 1, **own)
        else:
            step = {"ddpm": by_ddpm, "ddim": by_ddim,
                    "euler_ancestral": by_euler_ancestral}[name](t, s, **options)
        mean, covariance = step.of(mean, covariance)
        yield mean[:3], covariance[:3, :3]
        before = t


# ---- by the sampler ----


def carried(name, grid, options):
    """Yield mean and covariance at every level as a sampler makes them, by a run on unit inputs.

    Row 0 of the batch has no input at all; the others one unit each, in x_T or in the noise of a
    step: what a row adds to row 0 is a column of the sampler's affine map.
    """
    steps = len(grid) - 1
    unit = np.zeros((1 + 3 * (steps + 1), steps + 1, 3))
    unit[1:] = np.eye(3 * (steps + 1)).reshape(-1, steps + 1, 3)
    T = grid[0]
    start = T.signal**2 * C + T.noise**2 * EYE
    for step in SAMPLERS[name](denoise if name == "ddpm" else two, unit[:, 0], grid,
                               noise=lambda k: unit[:, k + 1], **options):
        gain = step.x_s[1:] - step.x_s[0]              # (3 (steps + 1), 3)
        yield (step.x_s[0] + T.signal * M @ gain[:3],
               gain[:3].T @ start @ gain[:3] + gain[3:].T @ gain[3:])


def last(walk):
    *_, end = walk
    return end


CHURN = {"churn": 10.0, "level_of": at_sigma}
STOCHASTIC = [
    ("ddpm", {"variance": "small"}, 1), ("ddpm", {"variance": "large"}, 1),
    ("ddpm", {"variance": "learned"}, 1), ("ddim", {"eta": 0.5}, 1), ("ddim", {"eta": 1.0}, 1),
    ("dpmpp_sde", {"order": 1}, 1), ("dpmpp_sde", {}, 2), ("euler_ancestral", {}, 1),
    ("euler", CHURN, 1), ("heun", CHURN, 2)]
WINDOW = {"churn": 30.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.007}
CASES = [(name, options) for name, options, _ in STOCHASTIC] + [
    ("heun", {**CHURN, **WINDOW}), ("euler", {**CHURN, **WINDOW})]
GRIDS = {
    "all 50 of a short table": levels(Schedule.make("linear", T=50), 50),
    "13 of 1000": levels(LINEAR, 13), "2 of 1000": levels(LINEAR, 2, "leading"),
    "uneven": [*map(LINEAR.level, (990, 700.5, 640, 200, 33, 4.25, 1)), CLEAN],
    "log-SNR, not to the end": even_in_log_snr(40),
    "cosine, once below pure noise": levels(Schedule.make("squaredcos_cap_v2"), 26, "logsnr")[6:],
}


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("name, options", CASES)
def test_mean_and_covariance_are_those_of_the_papers_equations(name, options, grid):
    grid = GRIDS[grid]
    for ours, theirs in zip(carried(name, grid, options), by_the_paper(name, grid, options),
                            strict=True):
        for got, want in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("name", ["euler", "heun"])
def test_churn_on_edms_own_levels(name):
    """Where sigma reaches 80 the same step is as large as 80."""
    grid = levels(EDM(), 18, "karras")
    options = {"churn": 40.0, "churn_min": 0.05, "churn_max": 50.0, "churn_noise": 1.003}
    for ours, theirs in zip(carried(name, grid, options), by_the_paper(name, grid, options),
                            strict=True):
        for got, want in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(got, want, rtol=0, atol=1e-10 * max(1, np.abs(want).max()))


@pytest.mark.parametrize("name, options", CASES)
def test_samples_are_within_four_standard_errors(name, options):
    n, grid, rng = 50_000, levels(LINEAR, 50), np.random.default_rng(1)
    mean, covariance = last(by_the_paper(name, grid, options))
    T = grid[0]
    x0 = rng.multivariate_normal(M, C, n)
    x_T = T.signal * x0 + T.noise * rng.normal(size=x0.shape)
    sample = last(SAMPLERS[name](denoise if name == "ddpm" else two, x_T, grid,
                                 noise=lambda k: rng.normal(size=x0.shape), **options)).x_s
    variances = np.diag(covariance)
    error = np.sqrt(variances / n)
    assert (np.abs(sample.mean(axis=0) - mean) < 4 * error).all()
    error = np.sqrt((np.outer(variances, variances) + covariance**2) / n)
    assert (np.abs(np.cov(sample.T) - covariance) < 4 * error).all()


@pytest.mark.parametrize("name, options, weak_order", STOCHASTIC)
def test_the_bias_falls_at_the_weak_order(name, options, weak_order):
    steps, biases = (64, 128, 256, 512), []
    for count in steps:
        grid = even_in_log_snr(count)
        mean, covariance = last(carried(name, grid, options))
        s = grid[-1]
        bias = np.abs(mean - s.signal * M).max()
        if name in ("ddpm", "ddim", "euler_ancestral", "euler", "heun"):
            assert bias < 1e-10                        # M is where each of these steps leaves it
        biases.append(bias + np.abs(covariance - s.signal**2 * C - s.noise**2 * EYE).max())
    order = -np.polyfit(np.log(steps), np.log(biases), 1)[0]
    assert order == pytest.approx(weak_order, abs=0.1)
