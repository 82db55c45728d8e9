"""Tables of noise: how much is added at each of T steps, as the papers publish it.

In every table t runs 0..T with ``alpha_bar[0] == 1``: row 0 is clean data, and ``beta[0] == 0``.
(Published networks number their T training levels from 0: row t here is their timestep t - 1.)
`tinydiff.schedules.Schedule` turns a row, or a time between two rows, into a `Level`.
"""
from math import sqrt

import numpy as np


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


def sigmoid_beta(T, beta_start=1e-4, beta_end=0.02):
    """Variance added at each of T steps, rising along a sigmoid from -6 to 6.

    What published configurations call "sigmoid"; `sigmoid_alpha_bar` is another curve.

    Parameters
    ----------
    T : int
        Number of diffusion steps.
    beta_start, beta_end : float
        The sigmoid's two asymptotes: beta_1 lies 0.25 % of the way up.

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
    .. [1] M. Xu et al., "GeoDiff", 2022, arXiv:2203.02923, and its published code.

    Examples
    --------
    >>> sigmoid_beta(3, 0.1, 0.3).round(4)
    array([0.    , 0.1005, 0.2   , 0.2995])
    """
    _check_ends(T, beta_start, beta_end)
    rise = 1 / (1 + np.exp(-np.linspace(-6, 6, T)))                                     # (T,)
    return np.concatenate([[0.0], rise * (beta_end - beta_start) + beta_start])


def sigmoid_alpha_bar(T, start=-3.0, end=3.0, tau=1.0, beta_max=0.999):
    """Signal power left after each of T steps, falling along a piece of a sigmoid.

    Parameters
    ----------
    T : int
        Number of diffusion steps.
    start, end : float
        The piece of the curve that is used; ``start < end``.
    tau : float, default 1
        Temperature, above 0: less of it keeps the power longer and drops it faster.
    beta_max : float, default 0.999
        Upper limit on any single beta_t, as in `cosine_alpha_bar`.

    Returns
    -------
    alpha_bar : (T + 1,) ndarray
        Index it with the paper's t: ``alpha_bar[0] == 1`` is clean data.

    Raises
    ------
    ValueError
        If T < 1, ``start >= end`` or ``tau <= 0``.

    References
    ----------
    .. [1] A. Jabri et al., "Scalable Adaptive Computation for Iterative Generation", 2022,
       arXiv:2212.11972 (the sigmoid schedule).

    Examples
    --------
    >>> sigmoid_alpha_bar(4).round(3)
    array([1.   , 0.851, 0.5  , 0.149, 0.   ])
    """
    _check_T(T)
    if not (start < end and tau > 0):
        raise ValueError(f"start={start!r}, end={end!r}, tau={tau!r}: start < end and tau > 0 "
                         "are needed")
    fall = 1 / (1 + np.exp((np.arange(T + 1) / T * (end - start) + start) / tau))       # (T + 1,)
    f = (fall - fall[-1]) / (fall[0] - fall[-1])
    beta = np.minimum(1.0 - f[1:] / f[:-1], beta_max)                                   # (T,)
    return cumulative(np.concatenate([[0.0], beta]))


def zero_terminal_snr(alpha_bar):
    """Stretch a table so that nothing of the picture is left at T.

    Parameters
    ----------
    alpha_bar : (T + 1,) ndarray
        With T of 2 or more: row 1 keeps its value, row T becomes 0.

    Returns
    -------
    alpha_bar : (T + 1,) ndarray

    Raises
    ------
    ValueError
        If the table has fewer than two steps.

    Notes
    -----
    The signal sqrt(alpha_bar) is shifted so that it ends at 0, then scaled so that its first
    value is the old one::

        signal_t  <-  (signal_t - signal_T) * signal_1 / (signal_1 - signal_T)

    References
    ----------
    .. [1] S. Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023,
       arXiv:2305.08891, Algorithm 1.

    Examples
    --------
    >>> zero_terminal_snr(np.array([1.0, 0.81, 0.36, 0.01])).round(4)
    array([1.    , 0.81  , 0.3164, 0.    ])
    """
    if len(alpha_bar) < 3:
        raise ValueError("zero terminal SNR needs a schedule of 2 steps or more")
    signal = np.sqrt(alpha_bar)
    first, last = signal[1], signal[-1]
    stretched = (signal[1:] - last) * (first / (first - last))
    return np.concatenate([[1.0], stretched**2])


TABLES = {                                           # by the published name of `beta_schedule`
    "linear": lambda T, start, end: cumulative(linear_beta(T, start, end)),
    "scaled_linear": lambda T, start, end: cumulative(scaled_linear_beta(T, start, end)),
    "sigmoid": lambda T, start, end: cumulative(sigmoid_beta(T, start, end)),
    "squaredcos_cap_v2": lambda T, start, end: cosine_alpha_bar(T),      # it has no ends to choose
}
