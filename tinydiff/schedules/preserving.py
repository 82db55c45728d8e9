"""Variance-preserving schedules: a table of alpha_bar, read at any time and at any log-SNR."""
from dataclasses import dataclass, field
from math import exp, inf, isfinite, log1p, sqrt

import numpy as np

from tinydiff.diffusion import CLEAN, Level
from tinydiff.schedules.reading import batch_of, time_in
from tinydiff.schedules.tables import TABLES, zero_terminal_snr


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

    References
    ----------
    .. [1] J. Ho et al., 2020, arXiv:2006.11239, Eq. 4, for alpha_bar; the tables' own papers stand
       in `tinydiff.schedules.tables`.

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
    def make(cls, beta_schedule, T=1000, beta_start=1e-4, beta_end=0.02, zero_snr=False):
        """Build a schedule by its published name.

        Parameters
        ----------
        beta_schedule : {"linear", "scaled_linear", "sigmoid", "squaredcos_cap_v2"}
        T : int, default 1000
        beta_start, beta_end : float
            "squaredcos_cap_v2", the cosine, has no ends to choose.
        zero_snr : bool, default False
            Stretch the table to end at pure noise: `tinydiff.schedules.tables.zero_terminal_snr`.

        Raises
        ------
        ValueError
            Naming the argument that is wrong and what would be right.
        """
        if beta_schedule not in list(TABLES):            # a list: compares what cannot be hashed
            raise ValueError(f"beta_schedule {beta_schedule!r} is not supported: "
                             f"choose one of {', '.join(TABLES)}")
        if not isinstance(zero_snr, bool):
            raise ValueError(f"rescale_betas_zero_snr={zero_snr!r}: true or false is needed")
        alpha_bar = TABLES[beta_schedule](T, beta_start, beta_end)
        published = {"num_train_timesteps": T, "beta_schedule": beta_schedule,
                     "beta_start": beta_start, "beta_end": beta_end,
                     "rescale_betas_zero_snr": zero_snr}
        return cls(zero_terminal_snr(alpha_bar) if zero_snr else alpha_bar, published)

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
        t = time_in(t, self.T)
        row = int(t)
        alpha_bar, fraction = float(self.alpha_bar[row]), t - row
        if fraction:
            below = float(self.alpha_bar[row + 1])
            alpha_bar *= (below / alpha_bar) ** fraction if below else 1 - fraction
        return Level(t, sqrt(alpha_bar), sqrt(1 - alpha_bar))

    def at_lam(self, lam):
        """Find the level of half log-SNR `lam`: `level` backwards.

        Parameters
        ----------
        lam : float
            log(signal / noise), from that of row T up to inf (clean data).

        Returns
        -------
        level : Level
            Its signal and noise are those of `lam`, its `t` lies between two rows.

        Raises
        ------
        ValueError
            If `lam` is below the schedule's noisiest level.

        Examples
        --------
        >>> schedule = Schedule.make("linear")
        >>> round(schedule.at_lam(schedule.level(17.25).lam).t, 9)
        17.25
        """
        lam, floor = float(lam), self.level(self.T).lam
        if not lam >= floor - 1e-12:
            raise ValueError(f"half log-SNR {lam}: this schedule has none below {floor:.6g}")
        if lam == inf:
            return CLEAN
        if lam <= floor:
            return self.level(self.T)
        signal, noise = _preserving(lam)
        log_power = -log1p(exp(-2 * lam)) if lam > 0 else 2 * lam - log1p(exp(2 * lam))
        with np.errstate(divide="ignore"):
            logs = np.log(self.alpha_bar)                             # (T + 1,), 0 down, -inf last
        row = min(int(np.searchsorted(-logs, -log_power, side="right")) - 1, self.T - 1)
        here, below = float(logs[row]), float(logs[row + 1])
        fraction = ((log_power - here) / (below - here) if isfinite(below)
                    else 1 - exp(log_power - here))
        return Level(row + fraction, signal, noise)

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
        return batch_of(self, t, like)

    @classmethod
    def from_config(cls, config):
        """Build the schedule that a published scheduler_config.json describes.

        Reads the fields that define the process; the file's other fields belong to
        `tinydiff.scheduler_config.SchedulerConfig`, which checks every one of them.
        """
        if config.get("trained_betas"):
            raise ValueError(f"scheduler config: trained_betas={config['trained_betas']!r} is not "
                             "supported")
        return cls.make(config.get("beta_schedule", "linear"),
                        config.get("num_train_timesteps", 1000),
                        config.get("beta_start", 1e-4), config.get("beta_end", 0.02),
                        config.get("rescale_betas_zero_snr", False))

    def to_config(self):
        """Return the published fields of this schedule, as a dict."""
        if not self.published:
            raise ValueError("this schedule was made from a table: it has no published fields")
        return dict(self.published)


def _preserving(lam):
    """Signal and noise of half log-SNR `lam`, with signal^2 + noise^2 = 1."""
    small = exp(-abs(lam))
    larger = 1 / sqrt(1 + small**2)
    return (larger, small * larger) if lam > 0 else (small * larger, larger)
