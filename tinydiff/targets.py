"""What a network may predict: noise, clean picture, v, velocity or score; and the way between them.

===================  ==================================  =================================
kind                 target                              from
===================  ==================================  =================================
``epsilon``          eps                                 arXiv:2006.11239, Eq. 14
``sample``           x0                                  arXiv:2006.11239, Sec. 3.2
``v_prediction``     v = signal * eps - noise * x0       arXiv:2202.00512, Sec. 4
``flow_prediction``  u = eps - x0                        arXiv:2210.02747, the straight path
``score``            -eps / noise, the gradient of       arXiv:2011.13456
                     log q(x_t | x0) in x_t
===================  ==================================  =================================

The kinds carry the names of the published `prediction_type` field.  Samplers take the pair
``(x0_hat, eps_hat)``, so nothing downstream divides by the signal.
"""
import numpy as np

KINDS = ("epsilon", "sample", "v_prediction", "flow_prediction", "score")


def target(kind, x0, eps, level):
    """Say what the network should have predicted, given the truth.

    Parameters
    ----------
    kind : str
        One of `KINDS`.
    x0, eps : (B, C, H, W) ndarray
        The clean pictures and the noise that was mixed into them.
    level : Level
        Its `signal` and `noise` are floats, or (B, 1, 1, 1) arrays of the dtype of `x0`.

    Returns
    -------
    target : (B, C, H, W) ndarray

    Raises
    ------
    ValueError
        If `kind` is none of them, or "score" at noise 0, where it is infinite.

    References
    ----------
    .. [1] T. Salimans and J. Ho, "Progressive Distillation", 2022, arXiv:2202.00512, Sec. 4
       and App. D: v = alpha_t eps - sigma_t x.

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> target("v_prediction", np.array([1.0]), np.array([0.5]), Level(1.0, 0.6, 0.8))
    array([-0.5])
    """
    if kind == "epsilon":
        return eps
    if kind == "sample":
        return x0
    if kind == "v_prediction":
        return level.signal * eps - level.noise * x0
    if kind == "flow_prediction":
        return eps - x0
    if kind == "score":
        if np.any(level.noise == 0):
            raise ValueError(f"prediction kind 'score' at t={level.t}: infinite without noise")
        return -eps / level.noise
    raise _unknown(kind)


def to_x0_eps(prediction, x_t, level, kind):
    """Split `x_t` into the clean picture and the noise that a prediction implies.

    Parameters
    ----------
    prediction, x_t : (B, C, H, W) ndarray
        The network's output, and the noisy pictures it saw.
    level : Level
        The level of `x_t`; floats, or (B, 1, 1, 1) arrays of the dtype of `x_t`.
    kind : str
        One of `KINDS`.

    Returns
    -------
    x0_hat, eps_hat : (B, C, H, W) ndarray
        ``x_t == level.signal * x0_hat + level.noise * eps_hat``.

    Raises
    ------
    ValueError
        If `kind` is none of them; or "epsilon" or "score" at signal 0, where the noise says
        nothing about the picture.

    Notes
    -----
    For v, invert the rotation (x0, eps) -> (x_t, v) of a variance-preserving level; dividing by
    signal^2 + noise^2, which is 1 there, makes it exact at every other level too::

        x0_hat  = (signal * x_t - noise * v) / (signal^2 + noise^2)
        eps_hat = (noise * x_t + signal * v) / (signal^2 + noise^2)

    For the velocity u, in the same way::

        x0_hat  = (x_t - noise * u) / (signal + noise)
        eps_hat = (x_t + signal * u) / (signal + noise)

    At noise 0 a "sample" prediction leaves the noise undetermined: eps_hat is then 0, its mean.

    References
    ----------
    .. [1] arXiv:2006.11239, Eq. 15 (epsilon); arXiv:2202.00512, Sec. 4 (v).

    Examples
    --------
    >>> from tinydiff.diffusion import Level
    >>> to_x0_eps(np.array([-0.5]), np.array([1.0]), Level(1.0, 0.6, 0.8), "v_prediction")
    (array([1.]), array([0.5]))
    """
    signal, noise = level.signal, level.noise
    if kind in ("epsilon", "score"):
        if np.any(signal == 0):
            raise ValueError(f"prediction kind {kind!r} at t={level.t}: no signal is left there, "
                             "so x0 cannot be found; train with 'v_prediction' or 'sample'")
        eps_hat = prediction if kind == "epsilon" else -noise * prediction
        return (x_t - noise * eps_hat) / signal, eps_hat
    if kind == "sample":
        inv_noise = (noise != 0) / (noise + (noise == 0))        # 1 / noise, and 0 at noise 0
        return prediction, inv_noise * (x_t - signal * prediction)
    if kind == "v_prediction":
        power = signal * signal + noise * noise
        return (signal / power * x_t - noise / power * prediction,
                noise / power * x_t + signal / power * prediction)
    if kind == "flow_prediction":
        whole = signal + noise                                        # 1 on the straight path
        return (x_t - noise * prediction) / whole, (x_t + signal * prediction) / whole
    raise _unknown(kind)


def _unknown(kind):
    return ValueError(f"unknown prediction kind {kind!r}: choose one of {', '.join(KINDS)}")
