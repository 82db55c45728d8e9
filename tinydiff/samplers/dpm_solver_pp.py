"""DPM-Solver++: as DPM-Solver, with the clean picture as the polynomial; it bears guidance better.

C. Lu et al., "DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models",
2022, arXiv:2211.01095.

In half log-SNR lam the probability flow from s down to t is an integral::

    x_t = (sigma_t / sigma_s) x_s + sigma_t  integral over lam_s..lam_t of e^lam x0_hat(lam) dlam

Put in x0_hat as a polynomial through known values, D0 + D1 tau + D2 tau^2 / 2 with tau the share of
the step, and integrate (all methods below are this line, with more or fewer terms)::

    x_t = (sigma_t / sigma_s) x_s - alpha_t (e^-h - 1) D0
          + alpha_t ((e^-h - 1) / h + 1) D1 - alpha_t ((e^-h - 1 + h) / h^2 - 1/2) D2

Notation.  As in `dpm_solver`: the paper steps from s down to t, here from `t` down to `s`.

=====================  ==================================================
here                   in the paper
=====================  ==================================================
``t``, ``s``           t_{i-1}, t_i
``.signal, .noise``    alpha, sigma
``.lam``               lambda = log(alpha / sigma)
``h``                  h_i = lambda_i - lambda_{i-1}, above 0
``x0_hat``             x_theta
``D0, D1, D2``         x0_hat at t, and its first two derivatives, in units of the step
=====================  ==================================================

At both ends lam is infinite, and so is h: the step is then of first order, exactly DDIM's.
"""
from itertools import pairwise
from math import expm1, inf, sqrt

from tinydiff.diffusion import Step, check_levels
from tinydiff.samplers.dpm_solver import blocks

FORMS = ("midpoint", "heun")


def dpm_solver_pp_step(x_t, t, s, D0, D1=None, D2=None, form="midpoint"):
    """Integrate the polynomial D0 + D1 tau + D2 tau^2 / 2 from level `t` to level `s`.

    Parameters
    ----------
    x_t : ndarray
    t, s : Level
        ``s.noise < t.noise``.
    D0 : ndarray
        x0_hat at `t`.
    D1, D2 : ndarray, optional
        Derivatives of x0_hat in the share of the step (`derivatives`); for orders 2 and 3.
    form : {"midpoint", "heun"}
        With D1 alone: the paper's -(e^-h - 1) / 2 in place of (e^-h - 1) / h + 1, or that itself
        (the two agree to the method's order).

    Returns
    -------
    x_s : ndarray

    References
    ----------
    .. [1] arXiv:2211.01095, Algorithms 1 and 2, and its appendix on solvers of order 3.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> dpm_solver_pp_step(1.0, Level(1.0, 0.6, 0.8), CLEAN, 0.25)
    0.25
    """
    h = s.lam - t.lam
    first = s.noise / t.noise * x_t - s.signal * expm1(-h) * D0
    if D1 is None:
        return first
    if D2 is None and form == "midpoint":
        return first - s.signal * expm1(-h) / 2 * D1
    second = first + s.signal * (expm1(-h) / h + 1) * D1
    if D2 is None:
        return second
    return second - s.signal * ((expm1(-h) + h) / h**2 - 0.5) * D2


def sde_dpm_solver_pp_step(x_t, t, s, D0, D1=None, z=0.0):
    """Step of SDE-DPM-Solver++(2M), or (1) without `D1`: the reverse SDE in place of the flow.

    Parameters
    ----------
    x_t, t, s, D0, D1
        As for `dpm_solver_pp_step`.
    z : ndarray
        Standard normal noise, drawn by the caller.

    Returns
    -------
    x_s : ndarray
        Exactly `D0` when `s` is clean data.

    References
    ----------
    .. [1] arXiv:2211.01095, the section on SDE solvers of its appendix.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> sde_dpm_solver_pp_step(1.0, Level(1.0, 0.6, 0.8), CLEAN, 0.25, z=3.0)
    0.25
    """
    h = s.lam - t.lam
    new = -expm1(-2 * h)                                              # 1 - e^-2h: the share redrawn
    old = s.noise / t.noise * sqrt(1 - new)
    D = D0 if D1 is None else D0 + D1 / 2
    return old * x_t + s.signal * new * D + s.noise * sqrt(new) * z


def derivatives(nodes, s):
    """Fit a polynomial to values of x0_hat: its derivatives at the first node, in units of a step.

    Parameters
    ----------
    nodes : list of (Level, ndarray)
        One to three values; the first is where the step starts.
    s : Level
        Where it goes: lam is counted in units of h.

    Returns
    -------
    D0, D1, D2 : ndarray
        None where there are too few values; those infinitely far away in lam say nothing.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> at = lambda lam: (Level(0.0, 1.0, 2.718281828459045**-lam), 1 + 3 * lam + lam**2)
    >>> [round(D, 6) for D in derivatives([at(0.0), at(-1.0), at(-2.0)], at(2.0)[0])]
    [1.0, 6.0, 8.0]
    """
    (t, D0), *others = nodes
    h = s.lam - t.lam
    if h == inf:
        return D0, None, None
    shares = [((u.lam - t.lam) / h, value) for u, value in others if u.lam > -inf]
    slopes = [(tau, (value - D0) / tau) for tau, value in shares]
    if not slopes:
        return D0, None, None
    if len(slopes) == 1:
        return D0, slopes[0][1], None
    (tau1, d1), (tau2, d2) = slopes
    return D0, (tau2 * d1 - tau1 * d2) / (tau2 - tau1), 2 * (d2 - d1) / (tau2 - tau1)


def dpmpp_multistep_sample(denoise, x_T, levels, *, noise=None, order=2, form="midpoint",
                           lower_order_final=True, history=()):
    """Yield every step from noise to a sample: DPM-Solver++(2M), or (3M).

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.
    x_T : ndarray
    levels : sequence of Level
    noise : callable, optional
        Not used: the method is deterministic.
    order : {1, 2, 3}, default 2
        Reached as soon as there are so many values: the first steps are of lower order.
    form : {"midpoint", "heun"}
        See `dpm_solver_pp_step`.
    lower_order_final : bool, default True
        Lower the order over the last steps of a grid of fewer than 15, as published: it
        is steadier.  The step onto clean data is of order 1 always.
    history : sequence of (Level, x0_hat), optional
        Values from before the first level, the newest first, to start at full order.

    Yields
    ------
    step : Step

    Raises
    ------
    ValueError
        If `order` or `form` is unknown.

    References
    ----------
    .. [1] arXiv:2211.01095, Algorithm 2 (2M).  The (3M) of the published code takes half of
       the term in D2, and is then of order 2 (`tests/test_convergence.py` measures both).
    """
    check_levels(levels)
    _check("dpmpp multistep", order, form)
    nodes, x_t, steps = list(history), x_T, len(levels) - 1
    for k, (t, s) in enumerate(pairwise(levels)):
        x0_hat, eps_hat = denoise(x_t, t)
        nodes = [(t, x0_hat), *nodes][:order]
        use = min(order, steps - k) if lower_order_final and steps < 15 else order
        x_s = dpm_solver_pp_step(x_t, t, s, *derivatives(nodes[:use], s), form)
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        x_t = x_s


def dpmpp_singlestep_sample(denoise, x_T, levels, *, noise=None, order=2, form="midpoint"):
    """Yield every step from noise to a sample: DPM-Solver++(2S), or of order 3 by the same line.

    As in `dpm_solver_sample`, a step of order k spans k intervals of the grid, whose inner levels
    are where it asks again.

    Parameters
    ----------
    denoise, x_T, levels, noise, form
        As for `dpmpp_multistep_sample`.
    order : {1, 2, 3}, default 2

    Yields
    ------
    step : Step
        One an interval; within a block `x_s` is the method's inner sample.

    Raises
    ------
    ValueError
        If `order` or `form` is unknown.

    References
    ----------
    .. [1] arXiv:2211.01095, Algorithm 1 (2S).
    """
    check_levels(levels)
    _check("dpmpp singlestep", order, form)
    start, x_t = 0, x_T
    for size in blocks(levels, order):
        x_block, nodes = x_t, []
        for t, s in pairwise(levels[start:start + size + 1]):
            x0_hat, eps_hat = denoise(x_t, t)
            nodes.append((t, x0_hat))
            inner = "heun" if order == 3 else form       # within order 3 it must not lose accuracy
            x_s = dpm_solver_pp_step(x_block, nodes[0][0], s, *derivatives(nodes, s), inner)
            yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
            x_t = x_s
        start += size


def dpmpp_sde_sample(denoise, x_T, levels, *, noise=None, order=2):
    """Yield every step from noise to a sample: SDE-DPM-Solver++(2M), which adds noise.

    Parameters
    ----------
    denoise, x_T, levels
        As for `dpmpp_multistep_sample`.
    noise : callable
        ``noise(k)`` returns the standard normal draw of step k = 0, 1, ...
    order : {1, 2}, default 2
        Of the polynomial; the noise makes the weak order 1 (or 2 where it vanishes).

    Yields
    ------
    step : Step

    Raises
    ------
    ValueError
        If `noise` is missing or `order` is neither of the two.
    """
    check_levels(levels)
    if order not in (1, 2):
        raise ValueError(f"dpmpp_sde has the orders 1 and 2, not {order!r}")
    if noise is None:
        raise ValueError("dpmpp_sde adds noise at every step: pass noise(k)")
    nodes, x_t = [], x_T
    for k, (t, s) in enumerate(pairwise(levels)):
        x0_hat, eps_hat = denoise(x_t, t)
        nodes = [(t, x0_hat), *nodes][:order]
        D0, D1, _ = derivatives(nodes, s)
        x_s = sde_dpm_solver_pp_step(x_t, t, s, D0, D1, noise(k))
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        x_t = x_s


def _check(name, order, form):
    if order not in (1, 2, 3):
        raise ValueError(f"{name} has the orders 1, 2 and 3, not {order!r}")
    if form not in FORMS:
        raise ValueError(f"unknown form {form!r}: choose one of {', '.join(FORMS)}")
