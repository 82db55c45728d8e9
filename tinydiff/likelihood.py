"""Bits per dimension: the variational bound, and the flow's exact change of variables.

A picture of D pixels of 8 bits costs so many bits a pixel to send by the model: less is better, and
a model that knew nothing would need 8.  Two ways to count:

=================  =====================================================================
`bound`            the bound of DDPM, term by term (arXiv:2006.11239, Eq. 5); an upper limit
`exact`            along the probability flow, by the instantaneous change of variables
                   (arXiv:2011.13456, Sec. 4.3): the density itself
=================  =====================================================================
"""
from math import log, pi
from typing import NamedTuple

import numpy as np

from tinydiff.diffusion import q_sample
from tinydiff.vlb import learned_log_variance, prior_term, step_term


class Bound(NamedTuple):
    """The bound of each picture, in bits per dimension.

    Fields: `total` (B,) is the sum of `prior` (B,), `steps` (N - 1, B), from noise downwards, and
    `decoder` (B,), the last step's discretised likelihood.  Of chosen steps `steps` has a row each,
    already multiplied by its weight.
    """

    total: object
    prior: object
    steps: object
    decoder: object


def bound(denoise, x0, levels, noise, variance="small", bins=256, chosen=None):
    """Bound the code length of pictures by a walk down a grid of levels.

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``, or with a third entry, the share of a
        learnt variance (`tinydiff.vlb.learned_log_variance`).
    x0 : (B, ...) ndarray
        Pictures in [-1, 1] on the grid of `bins` values.
    levels : sequence of Level
        Variance-preserving, falling to clean data.  All T of a table give DDPM's own bound; fewer
        give that of the shorter chain.
    noise : callable
        ``noise(k)`` returns the standard normal draw of step k: each x_t is drawn afresh from x0.
    variance : {"small", "large", "learned"}, default "small"
        beta_tilde, beta, or what `denoise` says; the last step has beta.
    bins : int, default 256
    chosen : sequence of (int, float), optional
        Which of the N - 1 steps above the last are asked, k = 0, 1, ... from noise downwards, and
        the weight of each one's term: `drawn_steps` draws a few that stand for all.

    Returns
    -------
    bound : Bound

    Raises
    ------
    ValueError
        If `variance` is unknown, or the levels do not end at clean data.

    References
    ----------
    .. [1] J. Ho et al., 2020, arXiv:2006.11239, Eq. 5.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> knows = lambda x_t, t: (np.zeros((1, 4)), x_t / t.noise)      # every picture is grey
    >>> sent = bound(knows, np.zeros((1, 4)), [Level(2.0, 0.0, 1.0), Level(1.0, 1.0, 1e-4), CLEAN],
    ...              lambda k: np.ones((1, 4)), bins=255)
    >>> abs(sent.total).round(3)                                      # and costs nothing to send
    array([0.])
    """
    if variance not in ("small", "large", "learned"):
        raise ValueError(f"unknown variance {variance!r}: choose one of small, large, learned")
    if levels[-1].noise != 0:
        raise ValueError("the bound's last term is of clean data: the levels must end there")
    bits = lambda term: term.reshape(len(x0), -1).mean(axis=1, dtype=np.float64) / log(2)
    share = {"small": 0.0, "large": 1.0}.get(variance)
    last, steps = len(levels) - 2, []
    if chosen is None:
        chosen = [(k, 1.0) for k in range(last)]
    for k, weight in [*chosen, (last, 1.0)]:
        t, s = levels[k], levels[k + 1]
        x_t = q_sample(x0, noise(k), t.signal, t.noise)
        x0_hat, _, *learned = denoise(x_t, t)
        if share is None and not learned:
            raise ValueError("variance 'learned': denoise(x_t, t) must return a third array")
        log_variance, _ = learned_log_variance(learned[0] if share is None else share, t, s)
        steps.append(weight * bits(step_term(x0, x_t, x0_hat, log_variance, t, s, bins)[0]))
    prior = bits(prior_term(x0, levels[0]))
    *middle, decoder = steps
    middle = np.array(middle).reshape(-1, len(x0))
    return Bound(prior + middle.sum(axis=0) + decoder, prior, middle, decoder)


def drawn_steps(profile, m, u):
    """Draw a few steps of the bound that stand for all: the more a step costs, the more often.

    Parameters
    ----------
    profile : (N - 1,) ndarray
        About what each step costs, e.g. the mean over some pictures of ``bound(...).steps``.  A
        tenth of the draws does not heed it, so no step is out of reach.
    m : int
        How many to draw.
    u : float
        Uniform in [0, 1).

    Returns
    -------
    chosen : list of (int, float)
        m steps and the weights of their terms, for `bound`; one can come up more than once.

    Notes
    -----
    With chances p_k the weight 1 / (m p_k) makes the weighted sum right on average, whatever the
    profile; were the terms as the profile says, nearly always.  The m draws are one walk of even
    strides 1 / m along the summed chances (systematic sampling), which varies less than m alone.

    References
    ----------
    .. [1] A. Nichol and P. Dhariwal, 2021, arXiv:2102.09672, Sec. 3.3, which trains on such draws.

    Examples
    --------
    >>> [k for k, weight in drawn_steps(np.array([0.0, 1.0, 7.0]), 8, 0.5)]
    [1, 2, 2, 2, 2, 2, 2, 2]
    """
    chances = 0.9 * profile / profile.sum() + 0.1 / len(profile)
    places = (u + np.arange(m)) / m
    picks = np.searchsorted(chances.cumsum()[:-1], places, side="right")
    return [(int(k), float(1 / (m * chances[k]))) for k in picks]


def exact(denoise, x, t, schedule, *, trace="exact", probe=None, prior=None, step=1e-4,
          rtol=1e-6):
    """Log density of samples at a level of little noise, along the probability flow.

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.
    x : (B, ...) ndarray
        Samples at level `t`, float64 for tight tolerances.
    t : Level
        Where the flow starts: with some noise.
    schedule : Schedule, EDM or Flow
        ``schedule.at_lam(lam)`` gives the levels on the way up to its noisiest.
    trace : {"exact", "hutchinson"}
        The divergence by all D directions, or by one random direction.
    probe : (B, ...) ndarray, optional
        For "hutchinson": entries of mean 0 and variance 1 (+-1 has the least spread).
    prior : callable, optional
        ``prior(x_T, T)`` returns the log density (B,) of the noisiest level; by default
        N(0, noise^2 + signal^2), for data of variance 1 a pixel.
    step : float, default 1e-4
        Of the central differences that give the divergence, in units of the level's noise.
    rtol : float, default 1e-6
        Of the integration.

    Returns
    -------
    log_density : (B,) float64 ndarray
        In nats; `bits` turns it into bits per dimension.

    Raises
    ------
    ValueError
        If `trace` is unknown, `probe` is missing or `t` is clean data.

    Notes
    -----
    With x_bar = x / signal and sigma = noise / signal the flow is d x_bar / d sigma = eps_hat, and
    the log density falls along it by the divergence of eps_hat.  Integrated over log sigma::

        d x_bar / d log sigma = sigma eps_hat
        d log p / d log sigma = -sigma div eps_hat
        log p(x) = log p_T(x_T) + D log(signal_T / signal) + integral of sigma div eps_hat

    References
    ----------
    .. [1] Y. Song et al., 2020, arXiv:2011.13456, Sec. 4.3 and App. D.2.

    Examples
    --------
    >>> from tinydiff.oracle import GaussianMixture
    >>> from tinydiff.schedules import Schedule
    >>> linear, normal = Schedule.make("linear"), GaussianMixture([[0.0]], 1.0)
    >>> exact(normal, np.zeros((1, 1)), linear.level(1), linear).round(6)    # -log(2 pi) / 2
    array([-0.918939])
    """
    if trace not in ("exact", "hutchinson"):
        raise ValueError(f"unknown trace {trace!r}: choose exact or hutchinson")
    if trace == "hutchinson" and probe is None:
        raise ValueError("hutchinson needs a probe: random signs of the shape of x")
    if t.noise == 0:
        raise ValueError("the flow has no noise to start from at clean data: pass a level above it")
    from scipy.integrate import solve_ivp
    B, D = len(x), x[0].size
    top = schedule.level(schedule.T)
    if top.signal == 0:                                  # infinitely far: begin just below
        top = schedule.at_lam(-7.0)
    directions = np.eye(D).reshape(D, 1, *x.shape[1:]) if trace == "exact" else probe[None]

    def slope(log_sigma, state):
        x_bar = state[:B * D].reshape(x.shape)
        level = schedule.at_lam(-log_sigma)
        eps = lambda x_bar: denoise((level.signal * x_bar).astype(x.dtype), level)[1]
        h, sigma = step * np.exp(log_sigma), np.exp(log_sigma)
        divergence = sum(((eps(x_bar + h * v) - eps(x_bar - h * v)) * v).reshape(B, D).sum(axis=1)
                         for v in directions) / (2 * h)
        return np.concatenate([(sigma * eps(x_bar)).ravel(), sigma * divergence])

    start = np.concatenate([(x / t.signal).ravel(), np.zeros(B)]).astype(np.float64)
    solved = solve_ivp(slope, (-t.lam, -top.lam), start, "DOP853", rtol=rtol, atol=rtol)
    x_T = (top.signal * solved.y[:B * D, -1]).reshape(x.shape)
    gained = solved.y[B * D:, -1]
    prior = prior or _standard
    return prior(x_T, top) + D * log(top.signal / t.signal) + gained


def _standard(x_T, top):
    """Log density of N(0, noise^2 + signal^2) per entry."""
    variance = top.noise**2 + top.signal**2
    flat = x_T.reshape(len(x_T), -1)
    return -(flat**2).sum(axis=1) / (2 * variance) - flat.shape[1] * log(2 * pi * variance) / 2


def bits(log_density, dimension, bins=256):
    """Turn a log density of pictures in [-1, 1] into bits per dimension of their `bins` values.

    Parameters
    ----------
    log_density : (B,) ndarray
        In nats, of pictures dequantised by uniform noise of one bin's width.
    dimension : int
        D, the numbers in a picture.
    bins : int, default 256

    Returns
    -------
    bits : (B,) ndarray

    Examples
    --------
    >>> bits(np.array([-3 * np.log(2)]), 3)                # uniform on [-1, 1]^3 knows nothing
    array([8.])
    """
    return -log_density / (dimension * log(2)) + np.log2(bins / 2)
