"""Training losses: each returns its value and its gradient in the prediction."""
import numpy as np

from tinydiff.backends.device import scalar
from tinydiff.targets import KINDS


def mse(prediction, target, weight=None):
    """Mean squared error, with one weight per picture; unweighted it is L_simple.

    Parameters
    ----------
    prediction, target : (B, ...) ndarray
    weight : (B,) ndarray, optional
        Multiplies the squared errors of each picture; the mean is over all entries all the same.

    Returns
    -------
    value : float
        On a device an array of no axes, which ``float(value)`` waits for.
    dprediction : (B, ...) ndarray
        The gradient of `value` in `prediction`.

    Raises
    ------
    ValueError
        If the shapes differ (broadcasting would hide it), or `weight` is not one per picture.

    Notes
    -----
    With N entries in all, and b the picture of an entry::

        value       = sum(weight_b * (prediction - target)^2) / N
        dprediction = 2 * weight_b * (prediction - target) / N

    References
    ----------
    .. [1] J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020,
       arXiv:2006.11239, Eq. 14 (there summed over a picture's entries; here averaged).

    Examples
    --------
    >>> mse(np.array([[1.0, 2.0]]), np.array([[1.0, 0.0]]))
    (2.0, array([[0., 2.]]))
    """
    error = _difference(prediction, target)
    weighted = error
    if weight is not None:
        if weight.shape != error.shape[:1]:
            raise ValueError(f"weight has shape {weight.shape}, a batch of {len(error)} needs "
                             f"({len(error)},)")
        per_picture = (-1,) + (1,) * (error.ndim - 1)
        weighted = weight.astype(error.dtype).reshape(per_picture) * error
    return scalar((weighted * error).mean()), (2.0 / error.size) * weighted


def l1(prediction, target):
    """Mean absolute error: kinder than `mse` to a few large errors, so edges stay sharper.

    Parameters
    ----------
    prediction, target : (...) ndarray

    Returns
    -------
    value : float
    dprediction : (...) ndarray
        ``sign(prediction - target) / N``, and 0 where there is no error.

    Raises
    ------
    ValueError
        If the shapes differ.

    Examples
    --------
    >>> l1(np.array([1.0, 2.0]), np.array([1.0, 4.0]))
    (1.0, array([ 0. , -0.5]))
    """
    error = _difference(prediction, target)
    return scalar(np.abs(error).mean()), np.sign(error) / error.dtype.type(error.size)


def image_gradient(prediction, target):
    """Mean absolute error of the differences between neighbouring pixels: of edges alone.

    Parameters
    ----------
    prediction, target : (B, C, H, W) ndarray
        At least 2 pixels each way.

    Returns
    -------
    value : float
    dprediction : (B, C, H, W) ndarray

    Raises
    ------
    ValueError
        If the shapes differ, or a picture is too small to have differences.

    Notes
    -----
    With ``e = prediction - target``, and the mean over all pairs of neighbours of either kind::

        value = mean |e[i+1,j] - e[i,j]|  +  mean |e[i,j+1] - e[i,j]|

    Each pixel is the upper one of a pair (sign -) and the lower one of another (sign +).

    Examples
    --------
    >>> ramp = np.array([[[[0.0, 1.0], [0.0, 1.0]]]])                 # an edge where there is none
    >>> value, dprediction = image_gradient(ramp, np.zeros((1, 1, 2, 2)))
    >>> value, dprediction[0, 0].tolist()
    (1.0, [[-0.5, 0.5], [-0.5, 0.5]])
    """
    error = _difference(prediction, target)
    if min(error.shape[2:]) < 2:
        raise ValueError(f"pictures of {error.shape[2]} x {error.shape[3]} pixels have no "
                         "differences in both directions")
    down = error[:, :, 1:] - error[:, :, :-1]
    right = error[:, :, :, 1:] - error[:, :, :, :-1]
    ddown = np.sign(down) / down.dtype.type(down.size)
    dright = np.sign(right) / right.dtype.type(right.size)

    dprediction = np.zeros_like(error)
    dprediction[:, :, 1:] += ddown
    dprediction[:, :, :-1] -= ddown
    dprediction[:, :, :, 1:] += dright
    dprediction[:, :, :, :-1] -= dright
    return scalar(np.abs(down).mean() + np.abs(right).mean()), dprediction


def kl_to_normal(mean, logvar):
    """Divergence KL(N(mean, exp(logvar)) || N(0, 1)), averaged over the latents.

    Parameters
    ----------
    mean, logvar : (...) ndarray

    Returns
    -------
    value : float
        In nats per latent.
    dmean, dlogvar : (...) ndarray

    Raises
    ------
    ValueError
        If the shapes differ.

    Notes
    -----
    With N latents in all::

        value   = sum(mean^2 + exp(logvar) - 1 - logvar) / 2N
        dmean   = mean / N
        dlogvar = (exp(logvar) - 1) / 2N

    References
    ----------
    .. [1] D. Kingma and M. Welling, "Auto-Encoding Variational Bayes", 2013, arXiv:1312.6114,
       App. B (there summed over the latents).

    Examples
    --------
    >>> kl_to_normal(np.array([3.0]), np.array([0.0]))
    (4.5, array([3.]), array([0.]))
    """
    if mean.shape != logvar.shape:
        raise ValueError(f"mean has shape {mean.shape}, logvar {logvar.shape}")
    n = mean.size
    variance_less_1 = np.expm1(logvar)                                # e^h - 1, exact near h = 0
    value = scalar((mean * mean + variance_less_1 - logvar).mean()) / 2
    return value, mean / mean.dtype.type(n), variance_less_1 / mean.dtype.type(2 * n)


def hinge(real, fake):
    """Loss of a discriminator that should answer above 1 to what is real, and below -1 to the rest.

    Parameters
    ----------
    real, fake : (...) ndarray
        Its logits.

    Returns
    -------
    value : float
    dreal, dfake : (...) ndarray
        Zero where an answer is clear enough.

    Notes
    -----
    ::

        value = mean max(0, 1 - real)  +  mean max(0, 1 + fake)

    References
    ----------
    .. [1] J. Lim and J. Ye, "Geometric GAN", 2017, arXiv:1705.02894.

    Examples
    --------
    >>> hinge(np.array([2.0, 0.5]), np.array([-3.0, 0.0]))
    (0.75, array([ 0. , -0.5]), array([0. , 0.5]))
    """
    unsure, fooled = np.maximum(1 - real, 0), np.maximum(1 + fake, 0)
    dreal = np.where(unsure > 0, -1, 0).astype(real.dtype) / real.dtype.type(real.size)
    dfake = np.where(fooled > 0, 1, 0).astype(fake.dtype) / fake.dtype.type(fake.size)
    return scalar(unsure.mean() + fooled.mean()), dreal, dfake


def _difference(prediction, target):
    """Subtract, without broadcasting."""
    if prediction.shape != target.shape:
        raise ValueError(f"prediction has shape {prediction.shape}, target {target.shape}")
    return prediction - target


def min_snr_weight(signal, noise, kind, gamma=5.0):
    """Weight of each picture's error that treats the noise levels as tasks of equal worth.

    Parameters
    ----------
    signal, noise : (B,) or (B, 1, 1, 1) ndarray
        The batch's levels, with SNR = signal^2 / noise^2.
    kind : str
        One of `tinydiff.targets.KINDS`: the same loss in x0, written for its own target.
    gamma : float, default 5
        The SNR above which a level counts no more; must be positive.

    Returns
    -------
    weight : (B,) ndarray, the dtype of `signal`

    Raises
    ------
    ValueError
        If `kind` is none of them, or `gamma` is not a positive number.

    Notes
    -----
    Written in powers a = signal^2, b = noise^2, so that nothing divides by zero::

        kind          formula                      in a and b                  SNR 0   SNR inf
        sample        min(SNR, gamma)              a / max(b, a / gamma)       0       gamma
        epsilon       min(SNR, gamma) / SNR        gamma b / max(a, gamma b)   1       0
        v_prediction  min(SNR, gamma) / (SNR + 1)  min(a, gamma b) / (a + b)   0       0

    and for the last two, whose error in x0 is noise / (signal + noise) and noise^2 / signal times
    their own: min(a, gamma b) / (signal + noise)^2, and gamma b^2 / max(a, gamma b).

    References
    ----------
    .. [1] T. Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy", 2023,
       arXiv:2303.09556, Sec. 3.4.

    Examples
    --------
    >>> min_snr_weight(np.array([0.0, 0.6, 1.0]), np.array([1.0, 0.8, 0.0]), "epsilon")
    array([1., 1., 0.])
    """
    if not 0 < gamma < np.inf:
        raise ValueError(f"min-SNR gamma={gamma}: a positive number is needed, usually 5")
    gamma = float(gamma)
    a, b = signal * signal, noise * noise
    if kind == "sample":
        weight = a / np.maximum(b, a / gamma)
    elif kind == "epsilon":
        weight = gamma * b / np.maximum(a, gamma * b)
    elif kind == "v_prediction":
        weight = np.minimum(a, gamma * b) / (a + b)
    elif kind == "flow_prediction":
        weight = np.minimum(a, gamma * b) / (signal + noise) ** 2
    elif kind == "score":
        weight = gamma * b * b / np.maximum(a, gamma * b)
    else:
        raise ValueError(f"unknown prediction kind {kind!r}: choose one of {', '.join(KINDS)}")
    return weight.reshape(-1)
