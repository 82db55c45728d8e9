"""What reading a level has in common for all families: a time's range, and a batch of times."""
import numpy as np

from tinydiff.diffusion import Level


def time_in(t, last):
    """Return `t` as a Python float, or say that it is out of range.

    Examples
    --------
    >>> time_in(np.float64(3), 10)
    3.0
    """
    t = float(t)
    if not 0 <= t <= last:
        raise ValueError(f"t={t} is outside this schedule's range, 0 to {last}")
    return t


def batch_of(schedule, t, like):
    """Return one level per picture: times (B,), signal and noise shaped to multiply `like`.

    Examples
    --------
    >>> from tinydiff.schedules import Flow
    >>> batch_of(Flow(), [250, 500], np.zeros((2, 1))).noise.tolist()
    [[0.25], [0.5]]
    """
    columns = zip(*(schedule.level(t_i) for t_i in t), strict=True)
    times, signal, noise = (np.array(column, like.dtype, like=like) for column in columns)
    per_picture = (-1,) + (1,) * (like.ndim - 1)
    return Level(times, signal.reshape(per_picture), noise.reshape(per_picture))
