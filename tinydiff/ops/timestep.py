"""The sinusoidal embedding that tells a network which timestep it looks at."""
from math import log

import numpy as np


def timestep_embedding(t, dim, flip_sin_to_cos=False, freq_shift=1, max_period=10000,
                       dtype=np.float32):
    """Embed each timestep as sines and cosines of geometrically falling frequencies.

    Parameters
    ----------
    t : (B,) ndarray
        Timesteps, in steps; may be fractional.
    dim : int
        Length of one embedding.
    flip_sin_to_cos : bool, default False
        Put the cosines before the sines.
    freq_shift : float, default 1
        With 1 the last frequency is exactly ``1 / max_period``; with 0 it stops one short.
    max_period : float, default 10000
    dtype : default float32
        Of the result.  Angles are always computed in float64: at t = 1000 a float32 angle is
        already off by 3e-5.

    Returns
    -------
    emb : (B, dim) ndarray
        No gradient: a timestep is not learned.

    Raises
    ------
    ValueError
        If `t` is not one-dimensional, or `dim` leaves no frequency to spread.

    Notes
    -----
    With half = dim // 2 and i = 0 .. half - 1, and a zero at the end if `dim` is odd::

        frequency_i = max_period ** (-i / (half - freq_shift))
        emb         = [sin(t frequency), cos(t frequency)]

    References
    ----------
    .. [1] A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, Sec. 3.5
       (there with sines and cosines interleaved, and half in place of ``half - freq_shift``).

    Examples
    --------
    >>> timestep_embedding(np.array([0.0, 1.0]), 4, max_period=100).round(3)
    array([[0.   , 0.   , 1.   , 1.   ],
           [0.841, 0.01 , 0.54 , 1.   ]], dtype=float32)
    """
    half = dim // 2
    if t.ndim != 1:
        raise ValueError(f"t has shape {t.shape}: one timestep per picture is needed, (B,)")
    if half < 1 or half == freq_shift:
        raise ValueError(f"dim={dim} with freq_shift={freq_shift} leaves no frequency to spread")

    i = np.arange(half, dtype=np.float64, like=t)
    frequency = np.exp(-log(max_period) / (half - freq_shift) * i)    # (half,)
    angle = t.astype(np.float64)[:, None] * frequency                 # (B, half)
    parts = [np.sin(angle), np.cos(angle)]
    if flip_sin_to_cos:
        parts.reverse()
    if dim % 2:
        parts.append(np.zeros((t.shape[0], 1), np.float64, like=t))
    return np.concatenate(parts, axis=1).astype(dtype)
