"""Schedules without a table: noise that only grows (EDM), and flow matching's straight line."""
from dataclasses import dataclass
from math import exp, inf

from tinydiff.diffusion import Level
from tinydiff.schedules.reading import batch_of, time_in


@dataclass(frozen=True)
class EDM:
    """The variance-exploding family: x = x0 + sigma eps, and time is sigma itself.

    Attributes
    ----------
    sigma_min, sigma_max : float
        The range of noise that a network was trained for; ``0 < sigma_min < sigma_max``.

    Raises
    ------
    ValueError
        If the two are not in that order.

    References
    ----------
    .. [1] T. Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
       2022, arXiv:2206.00364, Table 1.

    Examples
    --------
    >>> EDM().level(0.5)
    Level(t=0.5, signal=1.0, noise=0.5)
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        if not 0 < self.sigma_min < self.sigma_max < inf:
            raise ValueError(f"sigma_min={self.sigma_min!r}, sigma_max={self.sigma_max!r}: "
                             "0 < sigma_min < sigma_max is needed")

    @property
    def T(self):  # noqa: N802 - as the other families call their last time
        """The noisiest time, sigma_max."""
        return float(self.sigma_max)

    def level(self, t):
        """Read the level of noise ``t = sigma``, from 0 to sigma_max."""
        t = time_in(t, self.T)
        return Level(t, 1.0, t)

    def at_lam(self, lam):
        """Find the level of half log-SNR ``lam = -log(sigma)``."""
        return self.level(exp(-lam))

    def batch(self, t, like):
        """Read one level per picture, as `Schedule.batch` does."""
        return batch_of(self, t, like)


@dataclass(frozen=True)
class Flow:
    """Flow matching's straight line: x = (1 - sigma) x0 + sigma eps.

    Attributes
    ----------
    T : int, default 1000
        What the network's time is counted in: it is told T sigma.
    shift : float, default 1
        Above 1, a grid even in time has more of its levels near pure noise, as larger pictures
        need: sigma = shift u / (1 + (shift - 1) u) at the share u = t / T of the way.

    Raises
    ------
    ValueError
        If `T` or `shift` is not positive.

    References
    ----------
    .. [1] Y. Lipman et al., "Flow Matching for Generative Modeling", 2022, arXiv:2210.02747.
    .. [2] P. Esser et al., "Scaling Rectified Flow Transformers for High-Resolution Image
       Synthesis", 2024, arXiv:2403.03206 (the shift).

    Examples
    --------
    >>> Flow().level(250)
    Level(t=250.0, signal=0.75, noise=0.25)
    >>> Flow(shift=3.0).level(250)
    Level(t=500.0, signal=0.5, noise=0.5)
    """

    T: int = 1000
    shift: float = 1.0

    def __post_init__(self):
        if not (0 < self.T < inf and 0 < self.shift < inf):
            raise ValueError(f"T={self.T!r}, shift={self.shift!r}: positive numbers are needed")

    def level(self, t):
        """Read the level at time `t` of an even grid, 0 to T, shifted."""
        u = time_in(t, self.T) / self.T
        whole = (1 - u) + self.shift * u                 # so added, exactly shift at u = 1
        sigma = self.shift * u / whole
        return Level(self.T * sigma, (1 - u) / whole, sigma)

    def at_lam(self, lam):
        """Find the level of half log-SNR ``lam = log((1 - sigma) / sigma)``."""
        sigma = 1 / (1 + exp(lam)) if lam < 700 else exp(-lam)
        return Level(self.T * sigma, 1 - sigma, sigma)

    def batch(self, t, like):
        """Read one level per picture, as `Schedule.batch` does."""
        return batch_of(self, t, like)
