"""EDM: Euler and Heun in sigma, with churn: noise added before a step, and removed again.

T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
arXiv:2206.00364.

In x_bar = x / signal and sigma = noise / signal every family is the same process, and its
probability flow has slope eps_hat::

    d x_bar / d sigma = (x_bar - x0_hat) / sigma = eps_hat

Euler's step is therefore DDIM's, whatever the family; Heun's repeats it with the mean of the slopes
at both ends.

=====================  ==================================================
here                   in the paper
=====================  ==================================================
``x / signal``         x
``noise / signal``     sigma(t) = t
``x0_hat``             D(x; sigma)
``eps_hat``            d_i, the slope
``churn, ...``         S_churn, S_tmin, S_tmax, S_noise
=====================  ==================================================
"""
from itertools import pairwise
from math import inf, sqrt

from tinydiff.diffusion import Level, Step, check_levels


def euler_step(x0_hat, eps_hat, t, s):
    """Follow the slope `eps_hat` from level `t` to level `s`.

    Written with both halves of the prediction, so that neither end needs a division::

        signal_s (x_t / signal_t + (sigma_s - sigma_t) eps_hat) = signal_s x0_hat + noise_s eps_hat

    References
    ----------
    .. [1] arXiv:2206.00364, Algorithm 1, line 5.

    Examples
    --------
    >>> euler_step(1.0, 0.5, Level(10.0, 1.0, 10.0), Level(4.0, 1.0, 4.0))
    3.0
    """
    return s.signal * x0_hat + s.noise * eps_hat


def heun_step(x_s, eps_hat, eps_next, t, s):
    """Correct Euler's `x_s`: the slope is the mean of those at both ends.

    Parameters
    ----------
    x_s : ndarray
        Euler's sample at `s`.
    eps_hat, eps_next : ndarray
        The slopes at `t`, and at `x_s`.
    t, s : Level
        Both with signal; `s` with noise.

    References
    ----------
    .. [1] arXiv:2206.00364, Algorithm 1, lines 6-8.

    Examples
    --------
    >>> heun_step(3.0, 0.5, 1.0, Level(10.0, 1.0, 10.0), Level(4.0, 1.0, 4.0))     # 6 - 6 * 0.75
    1.5
    """
    step = s.noise / s.signal - t.noise / t.signal
    return x_s + s.signal * step / 2 * (eps_next - eps_hat)


def churned(t, gamma, level_of):
    """Return the level with sigma raised by the share `gamma`, and what its noise adds.

    Returns
    -------
    t_hat : Level
    ratio, deviation : float
        ``x_hat = ratio * x_t + deviation * z``.

    References
    ----------
    .. [1] arXiv:2206.00364, Algorithm 2, lines 5-6.

    Examples
    --------
    >>> churned(Level(4.0, 1.0, 4.0), 0.25, lambda sigma: Level(sigma, 1.0, sigma))
    (Level(t=5.0, signal=1.0, noise=5.0), 1.0, 3.0)
    """
    sigma = t.noise / t.signal
    t_hat = level_of(sigma * (1 + gamma))
    return t_hat, t_hat.signal / t.signal, t_hat.signal * sigma * sqrt((1 + gamma) ** 2 - 1)


def edm_sample(denoise, x_T, levels, *, noise=None, order=2, churn=0.0, churn_min=0.0,
               churn_max=inf, churn_noise=1.0, level_of=None):
    """Yield every step from noise to a sample: Euler (order 1) or Heun (order 2).

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.  Heun asks it twice a step, once for
        the last: 2 N - 1 calls.
    x_T : ndarray
    levels : sequence of Level
    noise : callable, optional
        ``noise(k)`` returns the standard normal draw of step k; needed with churn.
    order : {1, 2}, default 2
    churn : float, default 0
        S_churn, in steps: over the whole walk as much noise as so many steps remove.
    churn_min, churn_max : float
        S_tmin, S_tmax: only where sigma lies between.
    churn_noise : float, default 1
        S_noise: the added noise's standard deviation, a little above 1 in the paper.
    level_of : callable, optional
        ``level_of(sigma)`` gives the level of a sigma; with churn on a family other than
        `EDM`, pass ``lambda sigma: schedule.at_lam(-log(sigma))``.

    Yields
    ------
    step : Step
        With churn, `t` and `x_t` are what the denoiser saw: the raised level and sample.

    Raises
    ------
    ValueError
        If an option is out of range, or missing with churn.

    References
    ----------
    .. [1] arXiv:2206.00364, Algorithms 1 and 2.
    """
    check_levels(levels)
    if order not in (1, 2):
        raise ValueError(f"edm has the orders 1 (Euler) and 2 (Heun), not {order!r}")
    if not (0 <= churn < inf and churn_min <= churn_max and 0 <= churn_noise < inf):
        raise ValueError(f"churn={churn}, churn_min={churn_min}, churn_max={churn_max}, "
                         f"churn_noise={churn_noise}: none negative, and min below max, is needed")
    if churn > 0 and noise is None:
        raise ValueError(f"edm with churn={churn} adds noise: pass noise(k)")
    if churn > 0 and level_of is None and any(t.signal != 1 for t in levels):
        raise ValueError("churn raises sigma to levels off the grid: pass level_of(sigma)")
    level_of = level_of or (lambda sigma: Level(sigma, 1.0, sigma))
    most = min(churn / (len(levels) - 1), sqrt(2) - 1)                # gamma

    x_t = x_T
    for k, (t, s) in enumerate(pairwise(levels)):
        gamma = most if t.signal and churn_min <= t.noise / t.signal <= churn_max else 0.0
        if gamma > 0:
            t, ratio, deviation = churned(t, gamma, level_of)
            x_t = ratio * x_t + churn_noise * deviation * noise(k)
        x0_hat, eps_hat = denoise(x_t, t)
        x_s = euler_step(x0_hat, eps_hat, t, s)
        if order == 2 and s.noise > 0 and not t.pure:                 # at either end: Euler's
            _, eps_next = denoise(x_s, s)
            x_s = heun_step(x_s, eps_hat, eps_next, t, s)
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        x_t = x_s
