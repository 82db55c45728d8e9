"""Guidance: pushing a sample towards its condition, and keeping it from being pushed too far.

=====================  ==========================================================  ================
function               what it changes                                             from
=====================  ==========================================================  ================
`classifier_free`      extrapolates from "no prompt" through "prompt"              arXiv:2207.12598
`rescaled`             takes back the contrast that extrapolation adds             arXiv:2305.08891
`weight_within`        guides at middle noise only                                 arXiv:2404.07724
`by_gradient`          adds the gradient of a classifier, or of CLIP               arXiv:2105.05233
`dynamic_threshold`    squeezes pixels that left [-1, 1] back into it              arXiv:2205.11487
=====================  ==========================================================  ================
"""
from math import inf, isfinite

import numpy as np


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
    >>> classifier_free(np.array([1.0]), np.array([2.0]), 3.0)
    array([4.])
    """
    w = float(w)
    if not isfinite(w):
        raise ValueError(f"guidance weight {w}: a finite number is needed (1 is no guidance)")
    return (1.0 - w) * prediction_null + w * prediction_text          # Eq. 6, with w - 1 for w


def rescaled(prediction, prediction_text, phi):
    """Give a guided prediction part of the standard deviation that the unguided one had.

    Parameters
    ----------
    prediction : (B, ...) ndarray
        What guidance made.
    prediction_text : (B, ...) ndarray
        The conditional prediction alone.
    phi : float
        0 changes nothing, 1 restores each picture's standard deviation; the paper's is 0.7.

    Returns
    -------
    prediction : (B, ...) ndarray

    Raises
    ------
    ValueError
        If `phi` is outside [0, 1].

    References
    ----------
    .. [1] S. Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed", 2023,
       arXiv:2305.08891 (rescaling guidance).

    Examples
    --------
    >>> rescaled(np.array([[4.0, -4.0]]), np.array([[1.0, -1.0]]), 1.0)
    array([[ 1., -1.]])
    """
    phi = float(phi)
    if not 0 <= phi <= 1:
        raise ValueError(f"guidance rescale {phi}: a number from 0 (off) to 1 is needed")
    axes = tuple(range(1, prediction.ndim))
    ratio = (prediction_text.std(axis=axes, keepdims=True)
             / prediction.std(axis=axes, keepdims=True))
    return phi * ratio * prediction + (1.0 - phi) * prediction


def weight_within(w, level, interval=(0.0, inf)):
    """Return the guidance weight at a level: `w` inside an interval of sigma, 1 outside.

    Parameters
    ----------
    w : float
    level : Level
    interval : (float, float)
        ``low < sigma <= high`` with sigma = noise / signal; early guidance costs variety, late
        guidance does nothing but cost time.

    Returns
    -------
    weight : float

    Raises
    ------
    ValueError
        If the interval is empty or not two numbers.

    References
    ----------
    .. [1] T. Kynkäänniemi et al., "Applying Guidance in a Limited Interval Improves Sample and
       Distribution Quality in Diffusion Models", 2024, arXiv:2404.07724.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> weight_within(3.0, Level(1.0, 0.6, 0.8), (0.2, 1.0))          # sigma is 4/3
    1.0
    """
    low, high = interval
    if not 0 <= low < high:
        raise ValueError(f"guidance interval {interval}: 0 <= low < high is needed, in sigma")
    sigma = level.noise / level.signal if level.signal > 0 else inf
    return w if low < sigma <= high else 1.0


def by_gradient(x0_hat, eps_hat, gradient, level, scale=1.0):
    """Shift a prediction along the gradient of log p(condition | x_t).

    Parameters
    ----------
    x0_hat, eps_hat : (B, ...) ndarray
        The two halves of the unguided prediction.
    gradient : (B, ...) ndarray
        Of the log probability that a classifier gives to the condition, in x_t; or of any score
        that is to rise, such as CLIP's similarity.
    level : Level
        With signal.
    scale : float, default 1
        1 samples from p(x | condition) if the classifier is right; above 1 exaggerates it.

    Returns
    -------
    x0_hat, eps_hat : (B, ...) ndarray
        They still make up the same x_t.

    Notes
    -----
    The score of p(x_t | c) is the score of p(x_t) plus the gradient, and eps = -noise * score::

        eps_hat  <-  eps_hat - noise * scale * gradient
        x0_hat   <-  x0_hat + noise^2 / signal * scale * gradient

    References
    ----------
    .. [1] P. Dhariwal and A. Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021,
       arXiv:2105.05233, Algorithm 2.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> by_gradient(0.0, 1.0, 0.5, Level(1.0, 0.6, 0.8))
    (0.5333333333333334, 0.6)
    """
    return (x0_hat + scale * level.noise**2 / level.signal * gradient,
            eps_hat - scale * level.noise * gradient)


def dynamic_threshold(x0_hat, ratio=0.995, largest=inf):
    """Squeeze each picture into [-1, 1] by its own spread, instead of cutting it off.

    Parameters
    ----------
    x0_hat : (B, ...) ndarray
        Predicted pixels.
    ratio : float, default 0.995
        The share of a picture's entries that keep their proportions; the rest is cut off.
    largest : float, default inf
        The most that a picture is squeezed (published files have ``sample_max_value``).

    Returns
    -------
    x0_hat : (B, ...) ndarray
        Unchanged where the share lies within [-1, 1] already.

    Raises
    ------
    ValueError
        If `ratio` is outside (0, 1] or `largest` is below 1.

    References
    ----------
    .. [1] C. Saharia et al., "Photorealistic Text-to-Image Diffusion Models with Deep Language
       Understanding", 2022, arXiv:2205.11487 (dynamic thresholding).

    Examples
    --------
    >>> dynamic_threshold(np.array([[0.5, -1.0, 2.0]]), ratio=1.0)
    array([[ 0.25, -0.5 ,  1.  ]])
    """
    if not (0 < ratio <= 1 and largest >= 1):
        raise ValueError(f"dynamic threshold: ratio={ratio}, largest={largest}: a share in (0, 1] "
                         "and a number from 1 are needed")
    flat = np.abs(x0_hat).reshape(len(x0_hat), -1)
    spread = np.clip(np.quantile(flat, ratio, axis=1), 1.0, largest).astype(x0_hat.dtype)
    spread = spread.reshape(-1, *(1,) * (x0_hat.ndim - 1))
    return np.clip(x0_hat, -spread, spread) / spread
