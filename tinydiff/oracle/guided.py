"""Guidance between two oracles: what it does to a distribution, with no network in the way."""


def guided_oracle(conditional, unconditional, w):
    """Exact classifier-free guidance: extrapolate between two oracles.

    Parameters
    ----------
    conditional, unconditional : callable
        ``(x_t, t) -> (x0_hat, eps_hat)``.
    w : float
        0 is unconditional, 1 conditional; above 1 the result is no data set's denoiser any more,
        which is what guidance distorts.

    Returns
    -------
    denoise : callable

    References
    ----------
    .. [1] J. Ho and T. Salimans, "Classifier-Free Diffusion Guidance", 2022, arXiv:2207.12598.
    """
    def denoise(x_t, t):
        pairs = zip(conditional(x_t, t), unconditional(x_t, t), strict=True)
        return tuple((1.0 - w) * free + w * bound for bound, free in pairs)
    return denoise
