"""Group normalisation, a scale and shift from the timestep, and SiLU: one operation.

It stands before every convolution of a residual block.  Here it is the sequence of its parts; a
fast implementation does all of it while the numbers are at hand.
"""
from tinydiff.backends.table import replaceable
from tinydiff.ops.activations import silu_backward, silu_forward
from tinydiff.ops.norm import group_norm_backward, group_norm_forward


@replaceable
def group_norm_silu_forward(x, weight, bias, num_groups, eps=1e-5, scale=None, shift=None):
    """Compute ``y = silu(h (1 + scale) + shift)`` with ``h = group_norm(x)``.

    Parameters
    ----------
    x : (B, C, ...) ndarray
    weight, bias : (C,) ndarray
        Per-channel scale and shift of the normalisation.
    num_groups : int
        Must divide C.
    eps : float, default 1e-5
        Added to the variance.
    scale, shift : (B, C) ndarray or None
        Each picture's own, usually made from its timestep; both or none.

    Returns
    -------
    y : (B, C, ...) ndarray
    cache : tuple
        For `group_norm_silu_backward`.

    References
    ----------
    .. [1] P. Dhariwal and A. Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021,
       arXiv:2105.05233, Eq. 11 ("adaptive group normalization").
    """
    h, norm_cache = group_norm_forward(x, weight, bias, num_groups, eps)
    u = h
    if scale is not None:
        scale, shift = (a.reshape(a.shape + (1,) * (x.ndim - 2)) for a in (scale, shift))
        u = h * (1 + scale) + shift
    y, silu_cache = silu_forward(u)
    return y, (norm_cache, h, scale, silu_cache)


@replaceable
def group_norm_silu_backward(dy, cache, needs_dweight=True):
    """Pull `dy` back through `group_norm_silu_forward`.

    Returns
    -------
    dx : (B, C, ...) ndarray
    dweight, dbias : (C,) ndarray or None
        None if `needs_dweight` is False.
    dscale, dshift : (B, C) ndarray or None
        None if there were no scale and shift.

    Notes
    -----
    Each of scale and shift is shared by the pixels of one channel, so its gradient is a sum over
    them.
    """
    norm_cache, h, scale, silu_cache = cache
    du = silu_backward(dy, silu_cache)
    dh, dscale, dshift = du, None, None
    if scale is not None:
        pixels = tuple(range(2, du.ndim))
        dshift = du.sum(axis=pixels)
        dscale = (du * h).sum(axis=pixels)
        dh = du * (1 + scale)
    dx, dweight, dbias = group_norm_backward(dh, norm_cache, needs_dweight)
    return dx, dweight, dbias, dscale, dshift
