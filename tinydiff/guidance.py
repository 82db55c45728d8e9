"""Guidance: pushing a sample towards its condition."""
from math import isfinite


def classifier_free(prediction_null, prediction_text, w):
    """Extrapolate from the unconditional prediction through the conditional one.

    Parameters
    ----------
    prediction_null, prediction_text : (B, C, H, W) ndarray
        The network's outputs for the null prompt and for the prompt; any prediction kind.
    w : float
        0 is unconditional, 1 is conditional, above 1 exaggerates the prompt.  (The paper's w
        is this one minus 1: it writes (1 + w) eps(z, c) - w eps(z).)

    Returns
    -------
    prediction : (B, C, H, W) ndarray
        Exactly one of the two at w = 0 and at w = 1.

    Raises
    ------
    ValueError
        If `w` is NaN or infinite.

    References
    ----------
    .. [1] J. Ho and T. Salimans, "Classifier-Free Diffusion Guidance", 2022,
       arXiv:2207.12598, Eq. 6.

    Examples
    --------
    >>> import numpy as np
    >>> classifier_free(np.array([1.0]), np.array([2.0]), 3.0)
    array([4.])
    """
    w = float(w)
    if not isfinite(w):
        raise ValueError(f"guidance weight {w}: a finite number is needed (1 is no guidance)")
    return (1.0 - w) * prediction_null + w * prediction_text          # Eq. 6, with w - 1 for w
