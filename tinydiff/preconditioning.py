"""EDM's preconditioning: a raw network made into a denoiser that is easy to train at every noise.

T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022,
arXiv:2206.00364, Sec. 5 and Table 1.

The network F never sees nor makes numbers far from unit size::

    D(x; sigma) = c_skip x + c_out F(c_in x; c_noise)
"""
from math import log, sqrt
from typing import NamedTuple


class Coefficients(NamedTuple):
    """What surrounds the network at one sigma: `skip`, `out`, `into` (c_in) and `noise`."""

    skip: float
    out: float
    into: float
    noise: float


def coefficients(sigma, sigma_data=0.5):
    """Return the four coefficients at a noise level.

    Parameters
    ----------
    sigma : float
        noise / signal, above 0.
    sigma_data : float, default 0.5
        Standard deviation of the data.

    Returns
    -------
    coefficients : Coefficients
        c_in scales the input to variance 1; c_skip and c_out are those with which the target has
        variance 1 and an error of the network counts least.

    References
    ----------
    .. [1] arXiv:2206.00364, Table 1 ("Ours"), derived in App. B.6.

    Examples
    --------
    >>> [round(c, 4) for c in coefficients(0.5)]
    [0.5, 0.3536, 1.4142, -0.1733]
    """
    power = sigma**2 + sigma_data**2
    return Coefficients(sigma_data**2 / power, sigma * sigma_data / sqrt(power), 1 / sqrt(power),
                        log(sigma) / 4)


def weight(sigma, sigma_data=0.5):
    """Weight of a denoiser's squared error: an error of the network weighs 1 at every sigma.

    References
    ----------
    .. [1] arXiv:2206.00364, Table 1: lambda(sigma) = 1 / c_out^2.

    Examples
    --------
    >>> weight(0.5)
    8.0
    """
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def network_target(x0, eps, sigma, sigma_data=0.5):
    """Say what the network itself should output, so that D(x; sigma) is `x0`.

    Parameters
    ----------
    x0, eps : (B, ...) ndarray
    sigma : float
    sigma_data : float, default 0.5

    Returns
    -------
    target : (B, ...) ndarray

    References
    ----------
    .. [1] arXiv:2206.00364, Eq. 8.

    Examples
    --------
    >>> sigma, c = 0.5, coefficients(0.5)
    >>> F = network_target(0.3, 1.0, sigma)
    >>> round(c.skip * (0.3 + sigma * 1.0) + c.out * F, 12)           # D(x; sigma) is x0
    0.3
    """
    c = coefficients(sigma, sigma_data)
    return (1 / c.out) * (x0 - c.skip * (x0 + sigma * eps))


class Preconditioned:
    """A sampler's `denoise` around an EDM network, on levels of any family.

    Parameters
    ----------
    network : callable
        ``network(x, c_noise)`` returns F, the shape of x.
    sigma_data : float, default 0.5

    References
    ----------
    .. [1] arXiv:2206.00364, Eq. 7.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> silent = Preconditioned(lambda x, c_noise: 0.0 * x)           # then x0_hat is c_skip x
    >>> silent(2.0, Level(0.5, 1.0, 0.5))
    (1.0, 2.0)
    """

    def __init__(self, network, sigma_data=0.5):
        self.network = network
        self.sigma_data = sigma_data

    def __call__(self, x_t, t):
        """Return ``(x0_hat, eps_hat)``; EDM's x is ``x_t / signal``."""
        sigma = t.noise / t.signal
        c = coefficients(sigma, self.sigma_data)
        x = (1 / t.signal) * x_t
        x0_hat = c.skip * x + c.out * self.network(c.into * x, c.noise)
        return x0_hat, (1 / sigma) * (x - x0_hat)
