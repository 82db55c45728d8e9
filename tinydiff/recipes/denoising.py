"""What every update of a denoiser has in common: the noise, its level, and the error's weight."""
from math import ceil

from tinydiff.backends.random import generator, normal, normal_there
from tinydiff.losses import min_snr_weight, mse
from tinydiff.targets import target


def training_noise(x0, seed, step, positions, there=False):
    """Draw an update's noise, of the shape (B, C, H, W) of `x0`, where `x0` lives.

    Parameters
    ----------
    x0 : (B, C, H, W) ndarray
    seed, step : int
    positions : sequence of B int
        Places in the batch: with seed and step, the key of each picture's noise.
    there : bool, default False
        Draw by the generator of that place; see `tinydiff.backends.random.normal_there`.
    """
    if there:
        return normal_there(x0.shape, seed, "train eps", step, x0)
    return normal(x0.shape[1:], seed, "train eps", step, positions, x0.dtype, x0)


def spread_row(T, power, seed, step, position, batch_size):
    """Choose a row of the schedule, 1..T: uniform at power 1, noisier rows more often above.

    A batch's rows are spread evenly from one random start, which makes the loss less noisy than
    rows drawn one by one (D. Kingma et al., "Variational Diffusion Models", 2021,
    arXiv:2107.00630).

    Examples
    --------
    >>> sorted(spread_row(1000, 1, 0, 0, k, 4) // 250 for k in range(4))
    [0, 1, 2, 3]
    """
    start = generator(seed, "t", step).random()
    u = 1 - (start + position / batch_size) % 1                       # in (0, 1]
    return ceil(T * u ** (1 / power))


def denoising_loss(prediction, kind, x0, eps, level, gamma):
    """Compare a prediction with what it should have been.

    Parameters
    ----------
    prediction, x0, eps : (B, C, H, W) ndarray
    kind : {"epsilon", "sample", "v_prediction"}
        What the network predicts.
    level : Level
        Of the batch.
    gamma : float
        Of `tinydiff.losses.min_snr_weight`; 0 weighs all errors alike.

    Returns
    -------
    value : float
    dprediction : (B, C, H, W) ndarray
    """
    weight = min_snr_weight(level.signal, level.noise, kind, gamma) if gamma else None
    return mse(prediction, target(kind, x0, eps, level), weight)
