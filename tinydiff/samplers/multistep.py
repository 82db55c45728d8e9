"""Linear multistep methods: LMS in sigma, and PLMS (PNDM), which reuse the last slopes.

=========  ==================================================================================
method     in the place of DDIM's eps_hat
=========  ==================================================================================
LMS        a polynomial in sigma through the last slopes, integrated exactly; K. Crowson's
           use of Adams-Bashforth on the flow of arXiv:2206.00364
PLMS       the Adams-Bashforth weights for even steps, then DDIM's step: L. Liu et al., "Pseudo
           Numerical Methods for Diffusion Models on Manifolds", 2022, arXiv:2202.09778
=========  ==================================================================================

The newest slope comes first in every list of slopes.
"""
from itertools import pairwise

import numpy as np

from tinydiff.diffusion import Step, check_levels
from tinydiff.samplers.ddim import ddim_step

ADAMS_BASHFORTH = {                     # the last is the one of arXiv:2202.09778
    1: (1.0,),
    2: (3 / 2, -1 / 2),
    3: (23 / 12, -16 / 12, 5 / 12),
    4: (55 / 24, -59 / 24, 37 / 24, -9 / 24),
}


# ---- LMS ----


def lms_weights(sigmas, end):
    """Integrate each Lagrange polynomial over the step: the weights of the slopes.

    Parameters
    ----------
    sigmas : sequence of float
        Where the slopes are known, the newest first; the step starts at the first.
    end : float
        The sigma where it ends.

    Returns
    -------
    weights : list of float
        They add up to ``end - sigmas[0]``.

    Examples
    --------
    >>> [round(w, 6) for w in lms_weights([2.0, 3.0], 1.0)]           # even steps: 3/2 and -1/2
    [-1.5, 0.5]
    """
    start, h = sigmas[0], end - sigmas[0]
    places = np.array([(sigma - start) / h for sigma in sigmas])      # the step is 0 to 1
    weights = []
    for j, place in enumerate(places):
        others = np.delete(places, j)
        basis = np.atleast_1d(np.poly(others)) / np.prod(place - others)
        weights.append(float(np.polyval(np.polyint(basis), 1.0) * h))
    return weights


def lms_step(x0_hat, slopes, t, s):
    """Step from `t` to `s` by the slopes (Level, eps_hat) at the last levels, that of `t` first.

    Written as DDIM's step and what the older slopes change in it.

    Returns
    -------
    x_s : ndarray

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> at = lambda sigma: Level(sigma, 1.0, sigma)
    >>> lms_step(1.0, [(at(2.0), 0.5), (at(3.0), 0.7)], at(2.0), at(1.0))          # 1.5 + 0.1
    1.6
    """
    weights = lms_weights([u.noise / u.signal for u, _ in slopes], s.noise / s.signal)
    eps_hat = slopes[0][1]
    x_s = s.signal * x0_hat + s.noise * eps_hat
    for weight, (_, older) in zip(weights[1:], slopes[1:], strict=True):
        x_s = x_s + s.signal * weight * (older - eps_hat)             # the weights add up to h
    return x_s


def lms_sample(denoise, x_T, levels, *, noise=None, order=4, history=()):
    """Yield every step from noise to a sample, by the last `order` slopes in sigma.

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.
    x_T : ndarray
    levels : sequence of Level
    noise : callable, optional
        Not used: the method is deterministic.
    order : int, 1 to 6, default 4
        Reached as soon as there are so many slopes.
    history : sequence of (Level, eps_hat), optional
        Slopes from before the first level, the newest first, to start at full order.

    Yields
    ------
    step : Step

    Raises
    ------
    ValueError
        If `order` is out of range.
    """
    check_levels(levels)
    if order not in range(1, 7):
        raise ValueError(f"lms: order={order!r} is not one of 1 to 6")
    slopes, x_t = list(history), x_T
    for t, s in pairwise(levels):
        x0_hat, eps_hat = denoise(x_t, t)
        if t.pure:                                        # DDIM's step, and no slope to keep
            x_s = ddim_step(x_t, x0_hat, eps_hat, t, s)
        else:
            slopes = [(t, eps_hat), *slopes][:order]
            x_s = lms_step(x0_hat, slopes, t, s)
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        x_t = x_s


# ---- PLMS ----


def plms_eps(slopes):
    """Combine the last one to four eps_hat, the newest first, by Adams-Bashforth's weights.

    Examples
    --------
    >>> plms_eps([2.0, 1.0])                            # the line through both, half a step on
    2.5
    """
    weights = ADAMS_BASHFORTH[len(slopes)]
    return sum(w * eps for w, eps in zip(weights, slopes, strict=True))


def transfer(x_t, eps, t, s):
    """Move from `t` to `s` as DDIM would with this noise: the paper's phi.

    References
    ----------
    .. [1] arXiv:2202.09778, the transfer part.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> round(transfer(1.0, 0.5, Level(1.0, 0.6, 0.8), CLEAN), 9)     # (1 - 0.8 * 0.5) / 0.6
    1.0
    """
    return ddim_step(x_t, (x_t - t.noise * eps) / t.signal, eps, t, s)


def pndm_sample(denoise, x_T, levels, *, noise=None, order=4, level=None, history=()):
    """Yield every step from noise to a sample: PNDM, with one of two ways to get started.

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.
    x_T : ndarray
    levels : sequence of Level
        Even in t: the weights take it for granted.
    noise : callable, optional
        Not used: the method is deterministic.
    order : {1, 2, 3, 4}, default 4
    level : callable, optional
        ``level(t)`` reads the schedule between two levels of the grid, such as
        ``schedule.level``.  With it the first three steps are the paper's pseudo Runge-Kutta, of
        four calls each; without it the first is an improved Euler step of two calls and the order
        rises from there, as Stable Diffusion was published with.
    history : sequence of eps_hat, optional
        From before the first level, the newest first, to start at full order.

    Yields
    ------
    step : Step

    Raises
    ------
    ValueError
        If `order` is out of range.

    References
    ----------
    .. [1] arXiv:2202.09778, Algorithms 1 and 2.
    """
    check_levels(levels)
    if order not in ADAMS_BASHFORTH:
        raise ValueError(f"pndm: order={order!r} is not one of 1 to 4")
    slopes, x_t = list(history), x_T
    warm_up = 0 if history or order == 1 else 3 if level else 1       # steps of more than one call
    for t, s in pairwise(levels):
        x0_hat, eps_hat = denoise(x_t, t)
        if t.pure:                                        # DDIM's step, and no slope to keep
            x_s = ddim_step(x_t, x0_hat, eps_hat, t, s)
        else:
            slopes = [eps_hat, *slopes][:order]
            if warm_up > 0 and s.noise > 0:
                eps = _start(denoise, x_t, eps_hat, t, s, level)
            else:
                eps = plms_eps(slopes)
            warm_up -= 1
            x_s = transfer(x_t, eps, t, s)
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        x_t = x_s


def _start(denoise, x_t, e1, t, s, level=None):
    """Return the mean of eps_hat over a step, by new calls: pseudo Runge-Kutta, or two values."""
    if level is None:
        _, e2 = denoise(transfer(x_t, e1, t, s), s)
        return (e1 + e2) / 2
    middle = level((t.t + s.t) / 2)
    _, e2 = denoise(transfer(x_t, e1, t, middle), middle)
    _, e3 = denoise(transfer(x_t, e2, t, middle), middle)
    _, e4 = denoise(transfer(x_t, e3, t, s), s)
    return (e1 + 2 * e2 + 2 * e3 + e4) / 6
