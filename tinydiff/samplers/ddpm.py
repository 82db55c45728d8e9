"""DDPM: ancestral sampling, one draw from the posterior per step, on any sub-sequence of levels.

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.

Notation.  The paper steps from t to t - 1; here from `t` to any lower level `s`, by the same
formulas with the transition q(x_t | x_s) in place of q(x_t | x_{t-1}).

==================  ==================================================
here                in the paper
==================  ==================================================
``t.signal``        sqrt(alpha_bar_t)
``t.noise``         sqrt(1 - alpha_bar_t)
``mu_tilde``        mu_tilde_t(x_t, x_0), with x0_hat for x_0 (Eq. 7)
``beta_tilde``      beta_tilde_t (Eq. 7), the "small" variance
``beta_t``          beta_t, the "large" variance
==================  ==================================================
"""
from itertools import pairwise
from math import sqrt

import numpy as np

from tinydiff.diffusion import Step, check_levels, posterior, transition
from tinydiff.vlb import learned_log_variance

VARIANCES = ("small", "large", "learned")


def ddpm_step(x_t, x0_hat, t, s, variance="small", z=0.0):
    """Draw x_s from p(x_s | x_t): the posterior, with the prediction for the clean picture.

    Parameters
    ----------
    x_t, x0_hat : ndarray
        The current sample, and the clean sample that the model sees in it.
    t, s : Level
        ``s.t < t.t``.
    variance : {"small", "large"} or ndarray
        beta_tilde_t is exact for data that is a single point, beta_t for data ~ N(0, I);
        the truth lies between (Sec. 3.2 of the paper).  An array says where, for each entry:
        0 is small, 1 is large, between them the logarithm is linear (`learned_log_variance`).
    z : ndarray, the shape of `x_t`, default 0
        Standard normal noise, drawn by the caller.

    Returns
    -------
    x_s : ndarray
        The sample at level `s`; exactly `x0_hat` when `s` is clean data.

    References
    ----------
    .. [1] arXiv:2006.11239, Algorithm 2, Eq. 7 and Sec. 3.2.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> ddpm_step(0.3, 0.25, Level(1.0, 0.6, 0.8), CLEAN, z=1.7)
    0.25
    """
    mu_tilde, beta_tilde = posterior(x_t, x0_hat, t, s)
    if s.noise == 0:
        return mu_tilde                  # Algorithm 2, line 3: the step to data adds no noise
    if not isinstance(variance, str):
        log_variance, _ = learned_log_variance(variance, t, s)
        return mu_tilde + np.exp(log_variance / 2) * z
    _, beta_t = transition(s, t)
    return mu_tilde + sqrt(beta_tilde if variance == "small" else beta_t) * z


def ddpm_sample(denoise, x_T, levels, *, noise=None, variance="small"):
    """Yield every step from pure noise to a sample; the last one's ``x_s`` is x_0.

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.
    x_T : ndarray
        The first sample, at the first level.
    levels : sequence of Level
        Falls from noise to clean data, as `tinydiff.grids.levels` gives it.
    noise : callable
        ``noise(k)`` returns the standard normal draw of step k = 0, 1, ...
    variance : {"small", "large", "learned"}
        See `ddpm_step`; for "learned" `denoise` returns a third array, the share.

    Yields
    ------
    step : Step

    Raises
    ------
    ValueError
        If `noise` is missing, or `variance` is none of the three.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> half = lambda x_t, t: (x_t / 2, (x_t - t.signal * x_t / 2) / t.noise)
    >>> *_, last = ddpm_sample(half, 2.0, [Level(1.0, 0.6, 0.8), CLEAN], noise=lambda k: 0.3)
    >>> last.x_s
    1.0
    """
    check_levels(levels)
    if variance not in VARIANCES:
        raise ValueError(f"unknown variance {variance!r}: choose one of {', '.join(VARIANCES)}")
    if noise is None:
        raise ValueError("ddpm adds noise at every step: pass noise(k)")

    x_t = x_T
    for k, (t, s) in enumerate(pairwise(levels)):
        x0_hat, eps_hat, *share = denoise(x_t, t)
        if variance == "learned" and not share:
            raise ValueError("ddpm with variance='learned': denoise(x_t, t) must return a third "
                             "array, the share of the variance; this network learnt none")
        x_s = ddpm_step(x_t, x0_hat, t, s, share[0] if variance == "learned" else variance,
                        noise(k))
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        x_t = x_s
