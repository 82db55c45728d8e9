"""The variational bound: its terms with their gradients, and the loss that learns variances by it.

J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239;
A. Nichol and P. Dhariwal, "Improved DDPM", 2021, arXiv:2102.09672.

A picture's code length is at most the sum of three kinds of terms (2006.11239, Eq. 5)::

    L_T      KL( q(x_T | x0)  ||  N(0, I) )                  what is left of the picture at T
    L_{t-1}  KL( q(x_s | x_t, x0)  ||  p(x_s | x_t) )        one for each step of the grid
    L_0      -log p(x0 | x_1)                                the last step, read as 8-bit pixels

All are in nats here, an array of the picture's shape; `tinydiff.likelihood` adds them up in bits.
"""
import numpy as np

from tinydiff.diffusion import posterior, transition


def kl_normal(mean, log_variance, mean_hat, log_variance_hat):
    """KL divergence between two diagonal Gaussians, entry by entry, with its gradients.

    Parameters
    ----------
    mean, log_variance : ndarray or float
        Of the first, which is given.
    mean_hat, log_variance_hat : ndarray or float
        Of the second, which is learnt.

    Returns
    -------
    kl : ndarray
        In nats; 0 where the two agree.
    dmean_hat, dlog_variance_hat : ndarray
        Derivatives of each entry.

    Notes
    -----
    With d = mean_hat - mean and the precision p = exp(-log_variance_hat)::

        kl = (log_variance_hat - log_variance - 1 + exp(log_variance) p + d^2 p) / 2

    Examples
    --------
    >>> [float(value) for value in kl_normal(0.0, 0.0, 1.0, 0.0)]
    [0.5, 1.0, -0.5]
    """
    d, precision = mean_hat - mean, np.exp(-log_variance_hat)
    ratio = np.exp(log_variance - log_variance_hat)
    spread = ratio + d * d * precision
    kl = (log_variance_hat - log_variance - 1.0 + spread) / 2
    return kl, d * precision, (1.0 - spread) / 2


def discretised_nll(x0, mean_hat, log_variance_hat, bins=256):
    """Minus the log probability that a Gaussian gives to a pixel's bin, with its gradients.

    Parameters
    ----------
    x0 : ndarray
        Pixels in [-1, 1], on the grid of `bins` values.
    mean_hat, log_variance_hat : ndarray
        The Gaussian of each pixel.
    bins : int, default 256
        How many values a pixel has; the outermost bins reach to infinity.

    Returns
    -------
    nll : ndarray
        In nats.
    dmean_hat, dlog_variance_hat : ndarray
        Derivatives of each entry.

    Notes
    -----
    A bin reaches half a step to both sides: a = (low - mean_hat) / sd, b = (high - mean_hat) / sd,
    and its probability is Phi(b) - Phi(a), computed in logarithms on the side of the Gaussian where
    both are small.

    References
    ----------
    .. [1] arXiv:2006.11239, Eq. 13.

    Examples
    --------
    >>> pixels = np.linspace(-1, 1, 256)
    >>> nll, _, _ = discretised_nll(pixels, np.full(256, 0.3), np.full(256, -4.0))
    >>> round(float(np.exp(-nll).sum()), 9)                           # all bins together
    1.0
    """
    from scipy.special import log_ndtr
    half = 1.0 / (bins - 1)
    inv_sd = np.exp(-log_variance_hat / 2)
    first, last = x0 < -1 + half, x0 > 1 - half
    with np.errstate(over="ignore", invalid="ignore"):
        a = np.where(first, -np.inf, (x0 - half - mean_hat) * inv_sd)
        b = np.where(last, np.inf, (x0 + half - mean_hat) * inv_sd)
        # Mirror bins above the mean: both ends then lie in the lower tail, where log Phi is exact.
        flip = a + b > 0
        low, high = np.where(flip, -b, a), np.where(flip, -a, b)
        log_high = log_ndtr(high)
        nll = -(log_high + np.log1p(-np.exp(np.minimum(log_ndtr(low) - log_high, -1e-12))))
        # d/da of log(Phi(b) - Phi(a)) is -phi(a) / probability, d/db is phi(b) / probability.
        at_a, at_b = _density_over(a, nll), _density_over(b, nll)
        slope = np.where(np.isfinite(b), b, 0.0) * at_b - np.where(np.isfinite(a), a, 0.0) * at_a
    dmean_hat = (at_b - at_a) * inv_sd
    return nll.astype(x0.dtype), dmean_hat.astype(x0.dtype), (slope / 2).astype(x0.dtype)


def _density_over(z, nll):
    """phi(z) divided by the probability exp(-nll); 0 at infinity."""
    finite = np.isfinite(z)
    log_density = -np.where(finite, z, 0.0) ** 2 / 2 - np.log(2 * np.pi) / 2
    return np.where(finite, np.exp(log_density + nll), 0.0)


def learned_log_variance(share, t, s):
    """Interpolate the step's log variance between its two extremes, with its gradient.

    Parameters
    ----------
    share : (B, ...) ndarray
        v: 0 is beta_tilde, the smallest that makes sense, 1 is beta; the network may go beyond.
        (Published networks output 2 v - 1.)
    t, s : Level
        ``s.t < t.t``.  On the last step, where beta_tilde is 0, both ends are beta.

    Returns
    -------
    log_variance : (B, ...) ndarray
    dlog_variance : float
        Its derivative in `share`.

    References
    ----------
    .. [1] arXiv:2102.09672, Eq. 15.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> t, s = Level(2.0, 0.6, 0.8), Level(1.0, 0.8, 0.6)
    >>> ends = [learned_log_variance(share, t, s)[0] for share in (0.0, 1.0)]
    >>> [round(float(np.exp(end)), 6) for end in ends]                # beta_tilde, beta
    [0.246094, 0.4375]
    """
    from math import log
    _, beta = transition(s, t)
    beta_tilde = beta * s.noise**2 / t.noise**2 or beta
    span = log(beta) - log(beta_tilde)
    return log(beta_tilde) + span * share, span


def step_term(x0, x_t, x0_hat, log_variance_hat, t, s, bins=256):
    """One step's term of the bound, entry by entry in nats, with its gradients.

    Parameters
    ----------
    x0, x_t : (B, ...) ndarray
        The picture, and what the forward process made of it.
    x0_hat : (B, ...) ndarray
        What the network takes for the picture.
    log_variance_hat : (B, ...) ndarray or float
        Of the step from `t` to `s`.
    t, s : Level
        The last step's `s` is clean data: there the term is L_0.
    bins : int, default 256

    Returns
    -------
    term : (B, ...) ndarray
    dx0_hat, dlog_variance_hat : (B, ...) ndarray

    References
    ----------
    .. [1] arXiv:2006.11239, Eqs. 5 and 7.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> t, s = Level(2.0, 0.6, 0.8), Level(1.0, 0.8, 0.6)
    >>> right, (small, _) = np.array([0.5]), learned_log_variance(0.0, t, s)
    >>> step_term(right, np.array([1.0]), right, small, t, s)[0]      # it knows: nothing to tell
    array([0.])
    """
    if s.noise == 0:
        return discretised_nll(x0, x0_hat, log_variance_hat + 0.0 * x0, bins)
    mean, variance = posterior(x_t, x0, t, s)
    mean_hat, _ = posterior(x_t, x0_hat, t, s)
    term, dmean_hat, dlog_variance_hat = kl_normal(mean, float(np.log(variance)), mean_hat,
                                                   log_variance_hat)
    _, beta = transition(s, t)
    return term, s.signal * beta / t.noise**2 * dmean_hat, dlog_variance_hat


def prior_term(x0, t):
    """L_T: KL(q(x_t | x0) || N(0, I)) at the last level `t`, entry by entry in nats.

    References
    ----------
    .. [1] arXiv:2006.11239, Eq. 5, its first term.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> float(prior_term(0.5, Level(1000.0, 0.0, 1.0)))               # nothing is left of x0
    0.0
    """
    kl, _, _ = kl_normal(t.signal * x0, 2 * float(np.log(t.noise)), 0.0, 0.0)
    return kl


def hybrid(eps_hat, share, eps, x0, x_t, t, s, weight=0.001, bins=256):
    """L_simple for the noise, and the bound for the variances: L_hybrid.

    Parameters
    ----------
    eps_hat, share : (B, ...) ndarray
        The network's two outputs: the noise, and the variance's place between its extremes.
    eps, x0, x_t : (B, ...) ndarray
    t, s : Level
        The step whose variance is learnt; one pair for the batch.
    weight : float, default 0.001
        Of the bound; the paper's.

    Returns
    -------
    value : float
    deps_hat, dshare : (B, ...) ndarray
        The bound moves the variances alone: its gradient in `eps_hat` is stopped.

    References
    ----------
    .. [1] arXiv:2102.09672, Eq. 16.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> t, s = Level(2.0, 0.6, 0.8), Level(1.0, 0.8, 0.6)
    >>> x0, eps, share = np.full((3, 1, 1, 1), 0.5), np.ones((3, 1, 1, 1)), np.zeros((3, 1, 1, 1))
    >>> value, deps_hat, dshare = hybrid(eps, share, eps, x0, 0.6 * x0 + 0.8 * eps, t, s)
    >>> abs(round(value, 12)), float(abs(dshare.round(12)).max())     # right: nothing to learn
    (0.0, 0.0)
    """
    from tinydiff.losses import mse
    simple, deps_hat = mse(eps_hat, eps)
    x0_hat = (x_t - t.noise * eps_hat) / t.signal
    log_variance, dlog_variance = learned_log_variance(share, t, s)
    term, _, dterm = step_term(x0, x_t, x0_hat, log_variance, t, s, bins)
    value = simple + weight * float(term.mean())
    return value, deps_hat, weight / term.size * dterm * dlog_variance
