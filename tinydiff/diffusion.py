"""The forward process: noise levels, q(x_t | x_0), one step of the chain, and the posterior.

J. Ho, A. Jain, P. Abbeel, "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239.

Notation.  That paper writes everything in alpha_bar_t.  Here a level carries the two numbers
that every paper agrees on, x_t = signal * x0 + noise * eps; the formulas below hold for any
two levels s < t, and become the paper's when s = t - 1.

=====================  ==================================================
here                   in the paper
=====================  ==================================================
``t.signal``           sqrt(alpha_bar_t)
``t.noise``            sqrt(1 - alpha_bar_t)
``transition(s, t)``   sqrt(alpha_t), beta_t
``posterior``          mu_tilde_t(x_t, x_0), beta_tilde_t
=====================  ==================================================
"""
from itertools import pairwise
from math import inf, log
from typing import Any, NamedTuple


class Level(NamedTuple):
    """How much data and how much noise a sample holds: x = signal * x0 + noise * eps.

    Attributes
    ----------
    t : float
        The paper's time: 0 is clean data, T the noisiest; fractions are as good as integers.
    signal, noise : float
        Python floats: a NumPy float64 scalar would promote a float32 batch.  A training batch
        has one level per picture, and these are (B, 1, 1, 1) arrays (`Schedule.batch`).

    Examples
    --------
    >>> Level(t=1.0, signal=0.6, noise=0.8)
    Level(t=1.0, signal=0.6, noise=0.8)
    >>> Level(0.0, 1.0, 0.0).lam
    inf
    """

    t: float
    signal: float
    noise: float

    @property
    def lam(self):
        """Half the log signal-to-noise ratio; inf for clean data, -inf where no signal is left."""
        if self.noise == 0:
            return inf
        if self.signal == 0:
            return -inf
        return log(self.signal) - log(self.noise)

    @property
    def pure(self):
        """Whether a sample is noise for all that can be told: noise / signal of `PURE` or more.

        A method that corrects its step by differences of eps_hat multiplies them, a network's
        errors among them, by that ratio.  So such methods leave a pure level by DDIM's step, which
        is exact where x0_hat does not yet depend on x_t, and keep no slope from it.

        Examples
        --------
        >>> from tinydiff.schedules import Schedule
        >>> cosine = Schedule.make("squaredcos_cap_v2")                # its last beta, cut to 0.999
        >>> cosine.level(1000).pure, cosine.level(999).pure
        (True, False)
        """
        return self.noise >= PURE * self.signal


CLEAN = Level(0.0, 1.0, 0.0)
PURE = 1000                             # noise / signal; a linear table starts at 157, EDM at 80


def check_levels(levels):
    """Refuse a walk that does not fall from noise towards clean data.

    Raises
    ------
    ValueError
        If there are fewer than two levels, or one is not below the one before it.
    """
    if len(levels) < 2:
        raise ValueError(f"a walk needs two levels or more, one below the other, not {len(levels)}")
    for t, s in pairwise(levels):
        if not s.lam > t.lam:
            raise ValueError(f"levels must fall in noise at every step, and {s} comes after {t}")


class Step(NamedTuple):
    """What one sampling step from level `t` down to level `s` saw and made.

    ``x_t == t.signal * x0_hat + t.noise * eps_hat``; `x_s` is the next sample.
    """

    t: Level
    s: Level
    x_t: Any
    x0_hat: Any
    eps_hat: Any
    x_s: Any


def q_sample(x0, eps, signal, noise):
    """Draw from q(x_t | x_0) in one shot.

    Parameters
    ----------
    x0 : (B, C, H, W) ndarray
        Clean pictures, in [-1, 1].
    eps : (B, C, H, W) ndarray
        Standard normal noise.
    signal, noise : float or (B, 1, 1, 1) ndarray
        The two numbers of a `Level`.

    Returns
    -------
    x_t : (B, C, H, W) ndarray

    References
    ----------
    .. [1] arXiv:2006.11239, Eq. 4.

    Examples
    --------
    >>> import numpy as np
    >>> q_sample(np.array([1.0, -1.0]), np.array([0.5, 0.5]), 0.6, 0.8)
    array([ 1. , -0.2])
    """
    return signal * x0 + noise * eps


def transition(s, t):
    """Coefficient and variance of q(x_t | x_s), from level `s` up to a noisier level `t`.

    Returns
    -------
    ratio, variance : float
        x_t = ratio * x_s + sqrt(variance) * z.  For s = t - 1: sqrt(1 - beta_t) and beta_t.

    Notes
    -----
    Put x_s = s.signal * x0 + s.noise * eps in: the signal fixes the ratio, and what x_t's
    noise power exceeds the noise carried over is the variance::

        ratio    = t.signal / s.signal
        variance = t.noise^2 - (ratio * s.noise)^2

    References
    ----------
    .. [1] arXiv:2006.11239, Eq. 2.

    Examples
    --------
    >>> transition(CLEAN, Level(1.0, 0.6, 0.8)) == (0.6, 0.8**2)
    True
    """
    ratio = t.signal / s.signal
    return ratio, t.noise**2 - (ratio * s.noise) ** 2


def q_step(x_s, z, s, t):
    """Draw from q(x_t | x_s): one step up the chain, from level `s` to level `t`.

    Parameters
    ----------
    x_s : (B, C, H, W) ndarray
        A sample at level `s`.
    z : (B, C, H, W) ndarray
        Standard normal noise, independent of `x_s`.
    s, t : Level
        ``s.t < t.t``.

    Returns
    -------
    x_t : (B, C, H, W) ndarray

    References
    ----------
    .. [1] arXiv:2006.11239, Eq. 2.

    Examples
    --------
    >>> import numpy as np
    >>> q_step(np.array([1.0]), np.array([0.5]), CLEAN, Level(1.0, 0.6, 0.8))
    array([1.])
    """
    ratio, variance = transition(s, t)
    return ratio * x_s + variance**0.5 * z


def posterior(x_t, x0, t, s):
    """Mean and variance of q(x_s | x_t, x_0): one step down, when the clean picture is known.

    Parameters
    ----------
    x_t, x0 : (B, C, H, W) ndarray
    t, s : Level
        ``s.t < t.t``, with ``t.noise > 0``.

    Returns
    -------
    mean : (B, C, H, W) ndarray
        mu_tilde.
    variance : float
        beta_tilde, the same for every entry; 0 when `s` is clean data, where mean == x0.

    Notes
    -----
    The product of two Gaussians in x_s, the prior q(x_s | x0) and the likelihood q(x_t | x_s),
    with the ratio and variance of `transition`::

        mean     = ratio * s.noise^2 / t.noise^2 * x_t  +  s.signal * variance_ts / t.noise^2 * x0
        variance = variance_ts * s.noise^2 / t.noise^2

    References
    ----------
    .. [1] arXiv:2006.11239, Eqs. 6-7.

    Examples
    --------
    >>> import numpy as np
    >>> posterior(np.array([0.3]), np.array([1.0]), Level(1.0, 0.6, 0.8), CLEAN)
    (array([1.]), 0.0)
    """
    ratio, variance_ts = transition(s, t)
    mean = (ratio * s.noise**2 / t.noise**2 * x_t
            + s.signal * variance_ts / t.noise**2 * x0)
    return mean, variance_ts * s.noise**2 / t.noise**2
