"""What reading a level has in common for all families: a time's range, and a batch of times."""
import numpy as np

from tinydiff.diffusion import Level


def time_in(t, last):
    """Return `t` as a Python float, or say that it is out of range."""
    t = float(t)
    if not 0 <= t <= last:
        raise ValueError(f"t={t} is outside this schedule's range, 0 to {last}")
    return t


def batch_of(schedule, t, like):
    """One level per picture: times (B,), signal and noise shaped to multiply `like`."""
    columns = zip(*(schedule.level(t_i) for t_i in t), strict=True)
    times, signal, noise = (np.array(column, like.dtype, like=like) for column in columns)
    per_picture = (-1,) + (1,) * (like.ndim - 1)
    return Level(times, signal.reshape(per_picture), noise.reshape(per_picture))
