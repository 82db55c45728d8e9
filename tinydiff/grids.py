"""Time grids: the levels that a sampler walks down, from noise to clean data.

A grid is a falling list of Levels.  A network trained on many levels is sampled on N of them;
the spacings differ in which N, and in whether the walk begins at pure noise.

===============  ==============================================  ==============================
spacing          the N noisy levels                              from
===============  ==============================================  ==============================
``trailing``     even in t, T first                              arXiv:2305.08891, Table 2
``leading``      even in t, level 1 last                         the same
``linspace``     even in t, both T and level 1                   the same
``quadratic``    even in sqrt(t), both T and level 1             arXiv:2010.02502, App. D.2
``logsnr``       even in half log-SNR (= in log sigma: what      arXiv:2206.00927, Sec. 3
                 published files call exponential sigmas)
``karras``       even in sigma^(1/rho), sigma = noise / signal   arXiv:2206.00364, Eq. 5
===============  ==============================================  ==============================
"""
from itertools import pairwise
from math import inf

import numpy as np

from tinydiff.diffusion import CLEAN

SPACINGS = ("trailing", "leading", "linspace", "quadratic", "logsnr", "karras")
BY_NOISE = ("logsnr", "karras")                      # these choose a noise, and t follows


def levels(schedule, steps, spacing="trailing", offset=0, *, whole=True, end=None, rho=7.0,
           clean=True):
    """Choose the levels that a sampler visits: steps + 1 of them, falling to clean data.

    Parameters
    ----------
    schedule : Schedule, EDM or Flow
    steps : int
        N, the number of denoising steps, 1 or more.  N asked are N done.
    spacing : str, default "trailing"
        One of `SPACINGS`.  "trailing" starts at T for every N; "leading" never does when
        N < T, so that the sampler starts from a level it believes less noisy than its pure noise.
    offset : int, default 0
        Moves "leading" up by so many t, the published `steps_offset` (Stable Diffusion has 1).
    whole : bool, default True
        Round times to the rows of a table, which its network was trained on; a table only.
    end : float, optional
        The time of the last noisy level, where the spacing names one; by default level 1 of a
        table, sigma_min of `EDM`, T / 1000 of `Flow`.
    rho : float, default 7
        For "karras": how much more densely the clean end is visited.
    clean : bool, default True
        Whether the last level is clean data; else it is `end`, for the spacings that name it.

    Returns
    -------
    levels : list of N + 1 Level
        Strictly falling in noise; the last is ``Level(0, 1, 0)`` unless ``clean=False``.

    Raises
    ------
    ValueError
        If `steps` is not an integer in range, `spacing` is unknown, the levels would not be
        distinct, an option leads out of the schedule, or a spacing in log-SNR meets a schedule
        that begins at pure noise.

    Notes
    -----
    "leading" is published as arange(1, T + 1, T // N), which has more than N entries where N does
    not divide T; the first N are meant.

    Examples
    --------
    >>> from tinydiff.schedules import Schedule
    >>> schedule = Schedule.make("linear")
    >>> [level.t for level in levels(schedule, 4)]
    [1000.0, 750.0, 500.0, 250.0, 0.0]
    >>> [level.t for level in levels(schedule, 4, "leading")]
    [751.0, 501.0, 251.0, 1.0, 0.0]
    >>> [level.t for level in levels(schedule, 4, "linspace")]
    [1000.0, 667.0, 334.0, 1.0, 0.0]
    >>> [round(level.t, 1) for level in levels(schedule, 4, "karras")]
    [1000.0, 776.1, 302.0, 1.0, 0.0]
    """
    table = hasattr(schedule, "alpha_bar")
    whole = whole and table and spacing not in BY_NOISE
    _check_steps(steps, schedule.T if whole else None)
    N = int(steps)
    if spacing not in SPACINGS:
        raise ValueError(f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}")
    if not clean and spacing in ("trailing", "leading"):
        raise ValueError(f"spacing {spacing!r} names no last noisy level: clean=False goes with "
                         "linspace, quadratic, logsnr and karras")
    if end is None:
        end = 1.0 if table else getattr(schedule, "sigma_min", schedule.T / 1000)
    if not 0 < end < schedule.T and N > 1:
        raise ValueError(f"end={end}: a time above 0 and below T={schedule.T} is needed")

    noisy = N if clean else N + 1                        # how many levels hold noise
    if spacing in BY_NOISE:
        found = by_noise(schedule, schedule.level(schedule.T), schedule.level(end), noisy, spacing,
                         rho)
    else:
        times = _by_time(schedule.T, noisy, spacing, offset, end, whole)
        found = [schedule.level(t) for t in times]
    found += [CLEAN] if clean else []
    if not all(s.lam > t.lam for t, s in pairwise(found)):
        raise ValueError(f"spacing {spacing!r} cannot give {N} distinct levels of this schedule"
                         + (": ask for fewer steps, or for whole=False" if whole else ""))
    return found


def by_noise(schedule, first, last, N, spacing, rho=7.0):
    """Choose N levels from one down to another, both included, by their noise.

    Parameters
    ----------
    schedule : Schedule, EDM or Flow
    first, last : Level
        `first` has signal and more noise than `last`.
    N : int
        1 is `first` alone.
    spacing : {"logsnr", "karras"}
    rho : float, default 7
        See `levels`.

    Returns
    -------
    levels : list of N Level

    Raises
    ------
    ValueError
        If `first` is pure noise, or `rho` is not positive.

    References
    ----------
    .. [1] arXiv:2206.00364, Eq. 5 (karras); arXiv:2206.00927, Sec. 3 (logsnr).

    Examples
    --------
    >>> from tinydiff.schedules import EDM
    >>> middle = by_noise(EDM(), EDM().level(16), EDM().level(1), 3, "karras", rho=2)[1]
    >>> round(middle.noise, 9)                                        # ((4 + 1) / 2)^2
    6.25
    """
    if first.signal == 0:
        raise ValueError(f"spacing {spacing!r}: this schedule begins at pure noise, where log-SNR "
                         "and sigma are infinite; choose trailing or linspace")
    if not 0 < rho < inf:
        raise ValueError(f"rho={rho}: a positive number is needed, usually 7")
    if spacing == "logsnr":
        lams = np.linspace(first.lam, last.lam, N)
    else:
        high, low = np.exp(-first.lam / rho), np.exp(-last.lam / rho)  # sigma^(1/rho), both ends
        lams = -rho * np.log(np.linspace(high, low, N))
    # Both ends exactly, not by way of their logarithm.
    return [first, *map(schedule.at_lam, lams[1:-1].tolist()), *([last] if N > 1 else [])]


def _check_steps(steps, most):
    """Refuse a number of steps that is no integer from 1 to `most`."""
    if not isinstance(steps, (int, np.integer)) or not 1 <= steps <= (most or inf):
        upper = f"an integer from 1 to {most} is needed, the schedule's steps" if most else \
            "an integer, 1 or more, is needed"
        raise ValueError(f"steps={steps}: {upper}")


def _by_time(T, N, spacing, offset, end, whole):
    """Return N falling times in (0, T]; whole ones are rounded as networks number the rows."""
    falling = np.arange(N, 0, -1)
    if spacing == "trailing":
        times = T * falling / N
        times[0] = T                                     # exactly: T * N / N may exceed T
        times = times.round() if whole else times
    elif spacing == "leading":
        stride, last = (T // N, 1) if whole else (T / N, min(end, T / N))
        times = last + offset + stride * (falling - 1)
        times = times if offset else np.minimum(times, T)
    elif N == 1:                                         # the published linspace of one: its end
        times = np.array([end if whole else T])
    else:
        power = 0.5 if spacing == "quadratic" else 1.0   # linspace
        times = np.linspace(end**power, T**power, N)[::-1] ** (1 / power)
        times[0], times[-1] = T, end                     # exactly: a root squared may exceed T
        times = 1 + (times - 1).round() if whole else times
    if not (0 < times[-1] and times[0] <= T):
        raise ValueError(f"offset={offset} moves a grid of {N} steps outside t = 1..{T}")
    return times.tolist()
