"""Noise schedules: how much signal and how much noise there is at each time t.

In every table t runs 0..T with ``alpha_bar[0] == 1``: row 0 is clean data, and ``beta[0] == 0``.
(Published networks number their T training levels from 0: row t here is their timestep t - 1.)
A schedule turns a t into a `Level`; `tinydiff.grids` chooses which levels a sampler visits.
"""
from dataclasses import dataclass, field
from math import sqrt

import numpy as np

from tinydiff.diffusion import Level

# ---- tables ----


def linear_beta(T, beta_start=1e-4, beta_end=0.02):
    """Variance added at each of T steps, rising in a straight line.

    Parameters
    ----------
    T : int
        Number of diffusion steps.
    beta_start, beta_end : float
        beta_1 and beta_T; ``0 < beta_start <= beta_end < 1``.

    Returns
    -------
    beta : (T + 1,) ndarray
        Index it with the paper's t; ``beta[0] == 0``.

    Raises
    ------
    ValueError
        If T < 1, or the two ends are not in that order.

    References
    ----------
    .. [1] J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020, arXiv:2006.11239, Sec. 4.

    Examples
    --------
    >>> linear_beta(4, 0.1, 0.4)
    array([0. , 0.1, 0.2, 0.3, 0.4])
    """
    _check_ends(T, beta_start, beta_end)
    return np.concatenate([[0.0], np.linspace(beta_start, beta_end, T)])


def scaled_linear_beta(T, beta_start=0.00085, beta_end=0.012):
    """Variance added at each of T steps, its square root rising in a straight line.

    Latent diffusion's schedule, which that code base calls "linear".

    Parameters
    ----------
    T : int
        Number of diffusion steps.
    beta_start, beta_end : float
        beta_1 and beta_T; the defaults are Stable Diffusion's.

    Returns
    -------
    beta : (T + 1,) ndarray
        Index it with the paper's t; ``beta[0] == 0``.

    Raises
    ------
    ValueError
        If T < 1, or not ``0 < beta_start <= beta_end < 1``.

    References
    ----------
    .. [1] R. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021,
       arXiv:2112.10752, and its published code.

    Examples
    --------
    >>> scaled_linear_beta(3, 0.01, 0.09).round(4)
    array([0.  , 0.01, 0.04, 0.09])
    """
    _check_ends(T, beta_start, beta_end)
    return np.concatenate([[0.0], np.linspace(sqrt(beta_start), sqrt(beta_end), T) ** 2])


def _check_T(T):  # noqa: N802 - the paper's letter
    if type(T) is not int or T < 1:
        raise ValueError(f"num_train_timesteps={T!r}: a number of steps, 1 or more, is needed")


def _check_ends(T, beta_start, beta_end):
    _check_T(T)
    numbers = all(isinstance(end, int | float) for end in (beta_start, beta_end))
    if not numbers or not 0 < beta_start <= beta_end < 1:
        raise ValueError(f"beta_start={beta_start!r}, beta_end={beta_end!r}: "
                         "0 < beta_start <= beta_end < 1 is needed")


def cumulative(beta):
    """Multiply up what each step leaves: alpha_bar_t = prod over r <= t of (1 - beta_r).

    References
    ----------
    .. [1] arXiv:2006.11239, Eq. 4.

    Examples
    --------
    >>> cumulative(np.array([0.0, 0.5, 0.5]))
    array([1.  , 0.5 , 0.25])
    """
    return np.cumprod(1.0 - beta)


def cosine_alpha_bar(T, offset=0.008, beta_max=0.999):
    """Signal power left after each of T steps, decreasing along a squared cosine.

    Parameters
    ----------
    T : int
        Number of diffusion steps.
    offset : float, default 0.008
        Keeps beta_1 from vanishing; about the size of one pixel quantum.
    beta_max : float, default 0.999
        Upper limit on any single beta_t.

    Returns
    -------
    alpha_bar : (T + 1,) ndarray
        Index it with the paper's t: ``alpha_bar[0] == 1`` is clean data.

    Raises
    ------
    ValueError
        If T < 1.

    References
    ----------
    .. [1] A. Nichol and P. Dhariwal, "Improved DDPM", 2021, arXiv:2102.09672, Eq. 17.

    Examples
    --------
    >>> cosine_alpha_bar(1000)[[0, 500, 1000]].round(4)
    array([1.    , 0.4938, 0.    ])
    """
    _check_T(T)
    f = np.cos((np.arange(T + 1) / T + offset) / (1 + offset) * (np.pi / 2)) ** 2       # (T + 1,)
    beta = np.minimum(1.0 - f[1:] / f[:-1], beta_max)                                   # (T,)
    return cumulative(np.concatenate([[0.0], beta]))


TABLES = {                                           # by the published name of `beta_schedule`
    "linear": lambda T, start, end: cumulative(linear_beta(T, start, end)),
    "scaled_linear": lambda T, start, end: cumulative(scaled_linear_beta(T, start, end)),
    "squaredcos_cap_v2": lambda T, start, end: cosine_alpha_bar(T),      # it has no ends to choose
}

# ---- from t to a level ----


@dataclass(frozen=True, eq=False)
class Schedule:
    """A variance-preserving table of noise levels, read at any time t in [0, T].

    Attributes
    ----------
    alpha_bar : (T + 1,) ndarray
        Signal power; starts at 1 and falls strictly, at most down to 0.
    published : dict, optional
        The scheduler_config.json fields it was made of; `make` and `from_config` fill it in.

    Raises
    ------
    ValueError
        If the table does not start at 1, does not fall strictly, or falls below 0.

    Examples
    --------
    >>> schedule = Schedule.make("linear")
    >>> schedule.T, schedule.level(0)
    (1000, Level(t=0.0, signal=1.0, noise=0.0))
    >>> round(schedule.level(1000).signal, 4)
    0.0064
    """

    alpha_bar: np.ndarray
    published: dict = field(default_factory=dict)

    def __post_init__(self):
        alpha_bar = np.array(self.alpha_bar, np.float64)
        falls = alpha_bar.ndim == 1 and len(alpha_bar) > 1 and (np.diff(alpha_bar) < 0).all()
        if not falls or alpha_bar[0] != 1 or alpha_bar[-1] < 0:
            raise ValueError("alpha_bar must be a list of T + 1 numbers that starts at 1 and falls "
                             "strictly, at most to 0")
        alpha_bar.setflags(write=False)
        object.__setattr__(self, "alpha_bar", alpha_bar)

    @classmethod
    def make(cls, beta_schedule, T=1000, beta_start=1e-4, beta_end=0.02):
        """Build a schedule by its published name: linear, scaled_linear or squaredcos_cap_v2."""
        if beta_schedule not in list(TABLES):            # a list: compares what cannot be hashed
            raise ValueError(f"beta_schedule {beta_schedule!r} is not supported: "
                             f"choose one of {', '.join(TABLES)}")
        published = {"num_train_timesteps": T, "beta_schedule": beta_schedule,
                     "beta_start": beta_start, "beta_end": beta_end}
        return cls(TABLES[beta_schedule](T, beta_start, beta_end), published)

    @property
    def T(self):  # noqa: N802 - the paper's letter
        """Number of diffusion steps."""
        return len(self.alpha_bar) - 1

    def level(self, t):
        """Read the level at time `t`, integer or fractional.

        Parameters
        ----------
        t : float
            ``0 <= t <= T``.

        Returns
        -------
        level : Level
            Python floats.  Exactly the table's at integers.

        Raises
        ------
        ValueError
            If `t` is outside [0, T].

        Notes
        -----
        Between rows log alpha_bar is linear in t: beta(t) of the continuous-time process is
        constant over each step.  This stays finite at t = 0, where the log-SNR does not.  Where a
        table ends at 0, its last step is linear in alpha_bar itself.

        References
        ----------
        .. [1] Y. Song et al., "Score-Based Generative Modeling through SDEs", 2020,
           arXiv:2011.13456, Eq. 11: d log alpha_bar / dt = -beta(t).
        """
        t = float(t)
        if not 0 <= t <= self.T:
            raise ValueError(f"t={t} is outside this schedule's range, 0 to {self.T}")
        row = int(t)
        alpha_bar, fraction = float(self.alpha_bar[row]), t - row
        if fraction:
            below = float(self.alpha_bar[row + 1])
            alpha_bar *= (below / alpha_bar) ** fraction if below else 1 - fraction
        return Level(t, sqrt(alpha_bar), sqrt(1 - alpha_bar))

    def batch(self, t, like):
        """Read one level per picture, shaped and typed to multiply a batch.

        Parameters
        ----------
        t : sequence of B numbers
            ``0 <= t <= T``.
        like : (B, ...) ndarray
            The batch: its dtype, its number of axes, and where it lives are followed.

        Returns
        -------
        level : Level
            Its `t` is (B,), its `signal` and `noise` are (B, 1, 1, 1) for pictures.

        Examples
        --------
        >>> x0 = np.zeros((2, 3, 8, 8), np.float32)
        >>> level = Schedule.make("linear").batch([1, 1000], x0)
        >>> level.t.shape, level.signal.shape, level.signal.dtype.name
        ((2,), (2, 1, 1, 1), 'float32')
        """
        columns = zip(*(self.level(t_i) for t_i in t), strict=True)
        times, signal, noise = (np.array(column, like.dtype, like=like) for column in columns)
        per_picture = (-1,) + (1,) * (like.ndim - 1)
        return Level(times, signal.reshape(per_picture), noise.reshape(per_picture))

    @classmethod
    def from_config(cls, config):
        """Build the schedule that a published scheduler_config.json describes.

        Reads the fields that define the process; the file's other fields belong to
        `tinydiff.scheduler_config.SchedulerConfig`, which checks every one of them.
        """
        for name in ("trained_betas", "rescale_betas_zero_snr"):
            if config.get(name):
                raise ValueError(f"scheduler config: {name}={config[name]!r} is not supported")
        return cls.make(config.get("beta_schedule", "linear"),
                        config.get("num_train_timesteps", 1000),
                        config.get("beta_start", 1e-4), config.get("beta_end", 0.02))

    def to_config(self):
        """Return the published fields of this schedule, as a dict."""
        if not self.published:
            raise ValueError("this schedule was made from a table: it has no published fields")
        return dict(self.published)
