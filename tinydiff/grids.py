"""Time grids: the levels that a sampler walks down, from noise to clean data.

A grid is a falling list of Levels.  A network trained on T levels is sampled on N of them; the
three published spacings differ in which N, and in whether the walk begins at pure noise.
"""
import numpy as np

SPACINGS = ("trailing", "leading", "linspace")


def levels(schedule, steps, spacing="trailing", offset=0):
    """Choose the levels that a sampler visits: steps + 1 of them, falling to clean data.

    Parameters
    ----------
    schedule : Schedule
    steps : int
        N, the number of denoising steps; ``1 <= steps <= T``.  N asked are N done.
    spacing : {"trailing", "leading", "linspace"}
        Only "trailing" starts at T for every N; "leading" never does when N < T, so that the
        sampler starts from a level it believes less noisy than its pure noise.
    offset : int, default 0
        Moves "leading" up by so many t, the published `steps_offset` (Stable Diffusion has 1).

    Returns
    -------
    levels : list of N + 1 Level
        Strictly falling; the last is ``Level(0, 1, 0)``.

    Raises
    ------
    ValueError
        If `steps` is not an integer in 1..T, `spacing` is unknown, or `offset` leads out of 1..T.

    References
    ----------
    .. [1] S. Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023,
       arXiv:2305.08891, Table 2.  (Its "leading", arange(1, T + 1, T // N), has more than N
       entries where N does not divide T; the first N are meant.)

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
    """
    T, N = schedule.T, steps
    if not 1 <= N <= T or N != int(N):
        raise ValueError(f"steps={N}: an integer from 1 to {T} is needed, the schedule's steps")
    N = int(N)
    if spacing == "trailing":
        times = [round(T * k / N) for k in range(N, 0, -1)]
    elif spacing == "leading":
        times = [1 + offset + k * (T // N) for k in reversed(range(N))]
    elif spacing == "linspace":
        times = 1 + np.linspace(0, T - 1, N).round()[::-1]    # rounded as networks number the rows
    else:
        raise ValueError(f"unknown spacing {spacing!r}: choose one of {', '.join(SPACINGS)}")
    if not (0 < times[-1] and times[0] <= T):
        raise ValueError(f"offset={offset} moves a grid of {N} steps outside t = 1..{T}")
    return [schedule.level(t) for t in [*times, 0]]
