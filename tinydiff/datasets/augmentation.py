"""Augmentation: small changes to a picture that leave its caption true."""
import numpy as np

from tinydiff.backends.random import generator

SHIFT = 0.08                            # of the side, in each direction
ZOOM = 0.15                             # a picture becomes up to so much larger or smaller
CONTRAST = 0.15                         # against white
TINT = 0.04                             # of each colour channel apart


def augment(x, seed, step, positions):
    """Shift, zoom and tint each picture a little, on white.

    Captions name directions and colours ("backhand index pointing left", "orange heart"), so
    nothing is mirrored and no hue is turned.

    Parameters
    ----------
    x : (B, C, S, S) ndarray in [-1, 1]
    seed, step : int
    positions : iterable of int
        Places in the batch: with seed and step, the key of each picture's random numbers.

    Returns
    -------
    (B, C, S, S) ndarray in [-1, 1]
    """
    u = np.stack([generator(seed, "augment", step, p).uniform(-1, 1, 7) for p in positions])
    u = np.array(u, x.dtype, like=x)                                  # (B, 7)
    S = x.shape[-1]
    zoom = (1 + ZOOM) ** u[:, 0]
    rows = _resample(S, SHIFT * S * u[:, 1], zoom)                    # (B, S, S)
    columns = _resample(S, SHIFT * S * u[:, 2], zoom)
    gain = (1 + CONTRAST * u[:, 3:4]) * (1 + TINT * u[:, 4:4 + x.shape[1]])         # (B, C)

    ink = rows[:, None] @ (x - 1) @ columns[:, None].swapaxes(2, 3)   # white is 0: none comes in
    return np.clip(1 + gain[:, :, None, None] * ink, -1, 1)


def _resample(S, shift, zoom):
    """Return (B, S, S) matrices: pixel i of the new row reads these shares of the old pixels.

    A pixel reads between its two neighbours, linearly, and nothing beyond the border.
    """
    place = np.arange(S, dtype=shift.dtype, like=shift)
    centre = (S - 1) / 2
    source = centre + (place - centre - shift[:, None]) / zoom[:, None]             # (B, S)
    return np.maximum(1 - abs(source[:, :, None] - place), 0)
