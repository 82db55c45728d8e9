"""DDIM: deterministic (or partly stochastic) sampling in fewer steps.

J. Song, C. Meng, S. Ermon, "Denoising Diffusion Implicit Models", 2020, arXiv:2010.02502.

Notation.  That paper writes alpha_t for the cumulative product which the DDPM paper calls
alpha_bar_t.  Here a noise level carries the two numbers that every paper agrees on:
x = signal * x0 + noise * eps.

===============  ==================================================
here             in the paper
===============  ==================================================
``t.signal``     sqrt(alpha_t)
``t.noise``      sqrt(1 - alpha_t)
``eps_hat``      epsilon_theta(x_t)
``x0_hat``       f_theta(x_t), the "predicted x_0"
``sigma``        sigma_t(eta), Eq. 16
===============  ==================================================

For levels of any family Eq. 16 reads ``sigma = eta * noise_s * sqrt(1 - ratio^2)``, with the ratio
of noise / signal at s and at t.  In the variables x / signal and noise / signal this is
K. Crowson's "Euler ancestral" (eta = 1: a step of Euler's method too far, then noise up again).
"""
from itertools import pairwise
from math import sqrt

from tinydiff.diffusion import Step, check_levels


def ddim_step(x_t, x0_hat, eps_hat, t, s, eta=0.0, z=0.0):
    """Move from noise level `t` to the lower noise level `s`.

    Parameters
    ----------
    x_t : ndarray
        The current sample; DDIM itself needs only its two parts below.
    x0_hat, eps_hat : ndarray, the shape of `x_t`
        The clean sample and the noise that the model sees in `x_t`:
        ``x_t == t.signal * x0_hat + t.noise * eps_hat``.
    t, s : Level
        ``s.noise < t.noise``, or above it with ``eta = 0`` (`ddim_invert`).
    eta : float, default 0
        0 is deterministic DDIM; 1 is DDPM (Sec. 4.1 of the paper).
    z : ndarray, the shape of `x_t`, default 0
        Standard normal noise, drawn by the caller.

    Returns
    -------
    x_s : ndarray
        The sample at level `s`; exactly `x0_hat` when `s` is clean data.

    References
    ----------
    .. [1] arXiv:2010.02502, Eq. 12 (the update), Eq. 16 (sigma).

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> ddim_step(1.0, 1.0, 0.5, Level(2.0, 0.6, 0.8), CLEAN)
    1.0
    """
    ratio = (s.noise * t.signal) / (s.signal * t.noise) if eta else 1.0        # sigma_s / sigma_t
    sigma = eta * s.noise * sqrt(1 - ratio**2)                                 # Eq. 16

    return (s.signal * x0_hat                              # "predicted x_0"
            + sqrt(s.noise**2 - sigma**2) * eps_hat        # "direction pointing to x_t"
            + sigma * z)                                   # "random noise"


def ddim_sample(denoise, x_T, levels, *, noise=None, eta=0.0):
    """Yield every step from pure noise to a sample; the last one's ``x_s`` is x_0.

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.
    x_T : ndarray
        The first sample, at the first level.
    levels : sequence of Level
        Falls from noise to clean data, as `tinydiff.grids.levels` gives it.
    noise : callable, optional
        ``noise(k)`` returns the standard normal draw of step k = 0, 1, ...; needed when
        ``eta > 0``.
    eta : float, default 0
        ``0 <= eta <= 1``; 0 is deterministic, 1 is DDPM with its small variance.

    Yields
    ------
    step : Step

    Raises
    ------
    ValueError
        If `eta` is outside [0, 1], or is above 0 while `noise` is missing.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> half = lambda x_t, t: (x_t / 2, (x_t - t.signal * x_t / 2) / t.noise)
    >>> *_, last = ddim_sample(half, 2.0, [Level(1.0, 0.6, 0.8), CLEAN])
    >>> last.x_s
    1.0
    """
    check_levels(levels)
    eta = float(eta)
    if not 0 <= eta <= 1:
        raise ValueError(f"eta={eta} is outside [0, 1]: 0 is deterministic DDIM, 1 is DDPM")
    if eta > 0 and noise is None:
        raise ValueError(f"ddim with eta={eta} adds noise at every step: pass noise(k)")

    x_t = x_T
    for k, (t, s) in enumerate(pairwise(levels)):
        x0_hat, eps_hat = denoise(x_t, t)
        z = noise(k) if eta > 0 else 0.0
        x_s = ddim_step(x_t, x0_hat, eps_hat, t, s, eta, z)
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        x_t = x_s


def ddim_invert(denoise, x_0, levels):
    """Yield every step from a sample up to noise: DDIM's step, walked the other way.

    Sampling down again from the last ``x_s`` gives the sample back, but for an error of first order
    in the steps: the slope is taken at the wrong end of each.

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.
    x_0 : ndarray
        A sample at the first level; clean, if that is `CLEAN`.
    levels : sequence of Level
        Rising from (nearly) clean data to noise: a grid, reversed.

    Yields
    ------
    step : Step
        From `t` up to `s`.  Where `t` is clean data no noise can be seen in it: the noise is then
        what the model would see if it took the sample for one of level `s`.

    Raises
    ------
    ValueError
        If the levels do not rise.

    References
    ----------
    .. [1] arXiv:2010.02502, Eq. 13 and Sec. 4.3.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> zero = lambda x_t, t: (0.0 * x_t, x_t / t.noise)              # the data is a zero
    >>> walk = ddim_invert(zero, 0.3, [Level(1.0, 0.8, 0.6), Level(2.0, 0.6, 0.8)])
    >>> [round(step.x_s, 12) for step in walk]                        # as far out as before: 0.5
    [0.4]
    """
    if not all(t.lam > s.lam for t, s in pairwise(levels)):
        raise ValueError("inversion walks up: levels must rise in noise (reverse a grid)")
    x_t = x_0
    for t, s in pairwise(levels):
        if t.noise > 0:
            x0_hat, eps_hat = denoise(x_t, t)
        else:
            x0_hat, eps_hat = x_t / t.signal, denoise(x_t, s)[1]
        x_s = ddim_step(x_t, x0_hat, eps_hat, t, s)
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        x_t = x_s
