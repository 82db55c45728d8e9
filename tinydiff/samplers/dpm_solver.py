"""DPM-Solver: the flow's linear part solved exactly, the noise prediction as a polynomial.

C. Lu et al., "DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around
10 Steps", 2022, arXiv:2206.00927.

In half log-SNR lam the probability flow from s down to t is an integral (Proposition 3.1)::

    x_t = (alpha_t / alpha_s) x_s - alpha_t  integral over lam_s..lam_t of e^-lam eps_hat(lam) dlam

A method of order k puts a polynomial of degree k - 1 in lam in the place of eps_hat.

Notation.  In that paper s is the noisier level and t the next one, and alpha_t is the signal
itself (not DDPM's 1 - beta_t, nor DDIM's alpha_bar_t).  Here as everywhere `t` is noisier.

=====================  ==================================================
here                   in the paper
=====================  ==================================================
``t``, ``s``           s (or t_{i-1}), t (or t_i)
``.signal, .noise``    alpha, sigma
``.lam``               lambda = log(alpha / sigma)
``h``                  h = lambda_t - lambda_s, above 0
``r``                  r_1, r_2: how far into the step a further level lies
``d``                  D_1, D_2: differences to the first eps_hat
=====================  ==================================================
"""
from itertools import pairwise
from math import expm1

from tinydiff.diffusion import Step, check_levels


def dpm_solver_1(x_t, eps_hat, t, s):
    """Step with one constant eps_hat: DDIM, written the paper's way.

    Parameters
    ----------
    x_t, eps_hat : ndarray
        The sample at `t`, and the noise that the model sees in it.
    t, s : Level
        ``s.noise < t.noise``; both with signal and noise.

    Returns
    -------
    x_s : ndarray

    References
    ----------
    .. [1] arXiv:2206.00927, Eq. 3.7.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> t, s = Level(2.0, 0.6, 0.8), Level(1.0, 0.8, 0.6)
    >>> round(dpm_solver_1(1.0, 0.5, t, s), 9)                        # 0.8 * 1.0 + 0.6 * 0.5
    1.1
    """
    h = s.lam - t.lam
    return s.signal / t.signal * x_t - s.noise * expm1(h) * eps_hat


def dpm_solver_2(x_t, eps_hats, t, s, r):
    """Step with two values of eps_hat, at `t` and a share `r` of the way.

    Parameters
    ----------
    x_t : ndarray
    eps_hats : (eps_hat at t, eps_hat at t.lam + r h)
    t, s : Level
    r : float
        Above 0; 1/2 is the paper's.

    Returns
    -------
    x_s : ndarray

    References
    ----------
    .. [1] arXiv:2206.00927, Algorithm 1 (r = 1/2).

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> t, s = Level(2.0, 0.6, 0.8), Level(1.0, 0.8, 0.6)
    >>> round(dpm_solver_2(1.0, (0.5, 0.5), t, s, 0.5), 9)            # equal values: order 1
    1.1
    """
    h = s.lam - t.lam
    d = eps_hats[1] - eps_hats[0]
    return dpm_solver_1(x_t, eps_hats[0], t, s) - s.noise * expm1(h) / (2 * r) * d


def dpm_solver_3(x_t, eps_hats, t, s, r1, r2):
    """Step with three values of eps_hat, the last at a share `r2` of the way.

    Parameters
    ----------
    x_t : ndarray
    eps_hats : (at t, at t.lam + r1 h, at t.lam + r2 h)
        The second helps only to find the third (`dpm_solver_to_third`); order 3 asks for
        ``r2 = 2/3``.
    t, s : Level
    r1, r2 : float

    Returns
    -------
    x_s : ndarray

    References
    ----------
    .. [1] arXiv:2206.00927, Algorithm 2.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> t, s = Level(2.0, 0.6, 0.8), Level(1.0, 0.8, 0.6)
    >>> round(dpm_solver_3(1.0, (0.5, 0.7, 0.5), t, s, 1 / 3, 2 / 3), 9)       # the last counts
    1.1
    """
    h = s.lam - t.lam
    d = eps_hats[2] - eps_hats[0]
    return (dpm_solver_1(x_t, eps_hats[0], t, s)
            - s.noise / r2 * (expm1(h) / h - 1) * d)


def dpm_solver_to_third(x_t, eps_hats, t, u, r):
    """Within a step of order 3, reach the level `u` where eps_hat is asked the third time.

    Parameters
    ----------
    x_t : ndarray
    eps_hats : (at t, at the level before u)
    t, u : Level
    r : float
        The second eps_hat's share of the way from t to u.

    Returns
    -------
    x_u : ndarray

    References
    ----------
    .. [1] arXiv:2206.00927, Algorithm 2 (u_{2i}; its r_2 / r_1 is this 1 / r).

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> t, s = Level(2.0, 0.6, 0.8), Level(1.0, 0.8, 0.6)
    >>> round(dpm_solver_to_third(1.0, (0.5, 0.5), t, s, 0.5), 9)
    1.1
    """
    h = u.lam - t.lam
    d = eps_hats[1] - eps_hats[0]
    return dpm_solver_1(x_t, eps_hats[0], t, u) - u.noise / r * (expm1(h) / h - 1) * d


def blocks(levels, order):
    """Cut a grid into blocks, each one step of the method: a call of the denoiser an interval.

    Parameters
    ----------
    levels : sequence of Level
    order : int

    Returns
    -------
    sizes : list of int
        The order of each block, adding up to the intervals.  The first step, from pure noise,
        and the last, onto clean data, are far off in lam and of order 1.

    References
    ----------
    .. [1] arXiv:2206.00927, "DPM-Solver-fast", for order 3 down to clean data.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> noisy = [Level(t, 0.6, 0.8) for t in range(10)]
    >>> blocks(noisy, 3), blocks([*noisy[1:], CLEAN], 3), blocks([*noisy, CLEAN], 3)
    ([3, 3, 3], [3, 3, 2, 1], [3, 3, 3, 1])
    """
    first = [1] * sum(t.pure for t in levels[:-1])
    whole, rest = divmod(len(levels) - 1 - len(first), order)
    sizes = first + [order] * whole + [rest] * (rest > 0)
    if levels[-1].noise == 0 and sizes[-1] > 1:
        sizes[-1:] = [sizes[-1] - 1, 1]
    return sizes


def dpm_solver_sample(denoise, x_T, levels, *, noise=None, order=3):
    """Yield every step from noise to a sample; each level of the grid is asked once.

    A step of order k spans k intervals of the grid, whose inner levels are where it asks again;
    an even grid in lam ("logsnr") is the paper's r = 1/2, or 1/3 and 2/3.

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.
    x_T : ndarray
        The first sample, at the first level.
    levels : sequence of Level
        Falls from noise, as `tinydiff.grids.levels` gives it.
    noise : callable, optional
        Not used: the method is deterministic.
    order : {1, 2, 3}, default 3

    Yields
    ------
    step : Step
        One an interval; within a block `x_s` is the method's inner sample.

    Raises
    ------
    ValueError
        If `order` is none of the three.
    """
    check_levels(levels)
    if order not in (1, 2, 3):
        raise ValueError(f"dpm_solver has the orders 1, 2 and 3, not {order!r}")
    start, x_t = 0, x_T
    for size in blocks(levels, order):
        block, x_block, eps_hats = levels[start:start + size + 1], x_t, []
        for t, s in pairwise(block):
            x0_hat, eps_hat = denoise(x_t, t)
            eps_hats.append(eps_hat)
            x_s = _within(x_block, x0_hat, eps_hats, block, s)
            yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
            x_t = x_s
        start += size


def _within(x_block, x0_hat, eps_hats, block, s):
    """Go from the block's first level to `s`, by the best formula for the values at hand."""
    t = block[0]
    if len(eps_hats) == 1:              # either end may be infinite in lam: DDIM, the same step
        return s.signal * x0_hat + s.noise * eps_hats[0]
    share = lambda u: (u.lam - t.lam) / (s.lam - t.lam)
    if len(eps_hats) == 2 and len(block) == 3:
        return dpm_solver_2(x_block, eps_hats, t, s, share(block[1]))
    if len(eps_hats) == 2:
        return dpm_solver_to_third(x_block, eps_hats, t, s, share(block[1]))
    return dpm_solver_3(x_block, eps_hats, t, s, share(block[1]), share(block[2]))
