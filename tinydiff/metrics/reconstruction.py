"""How much of a picture survives being encoded and decoded."""
from math import inf, log10

import numpy as np


def psnr(prediction, target):
    """Peak signal-to-noise ratio of pictures in [-1, 1], in decibels.

    Parameters
    ----------
    prediction, target : (B, C, H, W) ndarray
        What leaves [-1, 1] in the prediction is clipped first: no screen shows it.

    Returns
    -------
    decibels : float
        ``10 log10(2^2 / mse)``, of the mean squared error over all pictures; 2 is the whole range.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> round(psnr(np.full((1, 1, 2, 2), 0.2), np.zeros((1, 1, 2, 2))), 9)
    20.0
    """
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, target {target.shape}")
    error = np.clip(prediction, -1, 1).astype(np.float64) - target
    mse = float((error**2).mean())
    return 10 * log10(4 / mse) if mse else inf
