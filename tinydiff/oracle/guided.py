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
    .. [1] J. Ho and T. Salimans, "Classifier-Free Diffusion Guidance", 2022,
       arXiv:2207.12598, Eq. 6 (whose w is this one less 1).

    Examples
    --------
    >>> right, both = (lambda x, t: (1.0, x - 1.0)), (lambda x, t: (0.5, x - 0.5))
    >>> guided_oracle(right, both, 3.0)(5.0, None)                    # 0.5 + 3 (1 - 0.5)
    (2.0, 3.0)
    """
    def denoise(x_t, t):
        pairs = zip(conditional(x_t, t), unconditional(x_t, t), strict=True)
        return tuple((1.0 - w) * free + w * bound for bound, free in pairs)
    return denoise
