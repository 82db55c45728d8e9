"""Group and layer normalisation: the forward passes and their derivatives, side by side."""
from tinydiff.backends.table import replaceable


@replaceable
def group_norm_forward(x, weight, bias, num_groups, eps=1e-5):
    """Normalise each group of channels to zero mean and unit variance.

    Parameters
    ----------
    x : (B, C, ...) ndarray
        Pictures (B, C, H, W), or any other axes after the channels.
    weight, bias : (C,) ndarray
        Per-channel scale and shift.
    num_groups : int
        G, the number of groups; must divide C.
    eps : float, default 1e-5
        Added to the variance, in units of x squared.

    Returns
    -------
    y : (B, C, ...) ndarray
    cache : tuple
        ``(centred, rstd, weight)``, for `group_norm_backward`.

    Raises
    ------
    ValueError
        If `num_groups` does not divide C.

    Notes
    -----
    Within one group of N = (C / G) * H * W entries::

        centred = x - mean(x)
        rstd    = (mean(centred^2) + eps) ** -0.5
        y       = weight * x_hat + bias,    x_hat = centred * rstd

    The variance is taken after centring, so that a mean far above the deviation costs no digits.
    `weight * rstd` is one number per picture and channel: x_hat itself is never formed.

    References
    ----------
    .. [1] Y. Wu and K. He, "Group Normalization", 2018, arXiv:1803.08494, Eq. 1-2, 6-7.
    """
    B, C = x.shape[:2]
    if C % num_groups:
        raise ValueError(f"num_groups={num_groups} does not divide C={C}")

    groups = x.reshape(B, num_groups, -1)                             # (B, G, N)
    centred = groups - groups.mean(axis=2, keepdims=True)             # (B, G, N)
    var = _inner(centred, centred) / centred.shape[2]                 # (B, G, 1)
    rstd = (var + eps) ** -0.5                                        # (B, G, 1)

    centred = centred.reshape(B, C, -1)                               # (B, C, M), M pixels
    y = centred * (weight.reshape(num_groups, -1) * rstd).reshape(B, C, 1)
    y += bias[:, None]
    return y.reshape(x.shape), (centred, rstd, weight)


@replaceable
def group_norm_backward(dy, cache, needs_dweight=True):
    """Pull the gradient `dy` back through `group_norm_forward`.

    Returns
    -------
    dx : (B, C, ...) ndarray
    dweight, dbias : (C,) ndarray or None
        None if `needs_dweight` is False.

    Notes
    -----
    `x` reaches the loss along three paths: directly, through the mean, and through the standard
    deviation.  With ``dx_hat = weight * dy`` and all means taken over the N entries of one group::

        dx = rstd * (dx_hat  -  mean(dx_hat)  -  x_hat * mean(dx_hat * x_hat))
                     direct     via the mean     via the standard deviation

    `weight` is constant within a channel, so both means follow from two sums over each channel's
    pixels, the same two that give `dbias` and `dweight`.
    """
    centred, rstd, weight = cache
    B, C, M = centred.shape
    G = rstd.shape[1]
    N = C // G * M
    dy_pixels = dy.reshape(B, C, M)

    sum_dy = dy_pixels.sum(axis=2).reshape(B, G, -1)                  # (B, G, C / G)
    sum_dy_x_hat = _inner(dy_pixels, centred).reshape(B, G, -1) * rstd
    dbias = sum_dy.sum(axis=0).reshape(C) if needs_dweight else None
    dweight = sum_dy_x_hat.sum(axis=0).reshape(C) if needs_dweight else None

    weight = weight.reshape(G, -1)                                    # (G, C / G)
    via_mean = (weight * sum_dy).sum(axis=2, keepdims=True) / N       # (B, G, 1)
    via_std = (weight * sum_dy_x_hat).sum(axis=2, keepdims=True) / N  # (B, G, 1), times x_hat
    dx = dy_pixels * (rstd * weight).reshape(B, C, 1)                 # direct
    dx = dx.reshape(B, G, N)
    dx -= centred.reshape(B, G, N) * (rstd * rstd * via_std)          # x_hat = centred * rstd
    dx -= rstd * via_mean
    return dx.reshape(dy.shape), dweight, dbias


@replaceable
def layer_norm_forward(x, weight, bias, eps=1e-5):
    """Normalise each vector, the last axis of `x`, to zero mean and unit variance.

    Parameters
    ----------
    x : (..., D) ndarray
    weight, bias : (D,) ndarray
        Per-feature scale and shift.
    eps : float, default 1e-5
        Added to the variance, in units of x squared.

    Returns
    -------
    y : (..., D) ndarray
    cache : tuple
        ``(x_hat, rstd, weight)``, for `layer_norm_backward`.

    References
    ----------
    .. [1] J. L. Ba, J. R. Kiros and G. E. Hinton, "Layer Normalization", 2016, arXiv:1607.06450,
       Eq. 3-4.
    """
    x_hat = x - x.mean(axis=-1, keepdims=True)                        # (..., D), centred so far
    rstd = (_inner(x_hat, x_hat) / x.shape[-1] + eps) ** -0.5         # (..., 1)
    x_hat *= rstd
    y = x_hat * weight
    y += bias
    return y, (x_hat, rstd, weight)


@replaceable
def layer_norm_backward(dy, cache, needs_dweight=True):
    """Pull the gradient `dy` back through `layer_norm_forward`.

    Returns
    -------
    dx : (..., D) ndarray
    dweight, dbias : (D,) ndarray or None
        None if `needs_dweight` is False.

    Notes
    -----
    The three paths of `group_norm_backward`, with means over one vector::

        dx = rstd * (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat)),   dx_hat = weight * dy
    """
    x_hat, rstd, weight = cache
    D = weight.shape[0]
    dbias = dweight = None
    if needs_dweight:
        dbias = dy.reshape(-1, D).sum(axis=0)
        dweight = (dy * x_hat).reshape(-1, D).sum(axis=0)

    dx_hat = weight * dy
    via_mean = dx_hat.mean(axis=-1, keepdims=True)                    # (..., 1)
    via_std = _inner(dx_hat, x_hat) / D                               # (..., 1), times x_hat
    dx = dx_hat                                                       # direct
    dx -= via_mean
    dx -= x_hat * via_std
    dx *= rstd
    return dx, dweight, dbias


def _inner(a, b):
    """Sum ``a * b`` over the last axis, which stays as 1, without an array for the products."""
    return (a[..., None, :] @ b[..., None])[..., 0]
