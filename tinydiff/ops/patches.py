"""Pictures cut into square patches, and put together again: the tokens of a vision transformer."""


def patchify_forward(x, patch_size):
    """Cut pictures into patches, row by row.

    Parameters
    ----------
    x : (B, C, H, W) ndarray
    patch_size : int
        P, in pixels; must divide H and W.

    Returns
    -------
    y : (B, N, C * P * P) ndarray
        N = (H / P) * (W / P).  A patch's numbers stand in the order of a convolution's weight, so a
        convolution of side P and stride P is a linear map of each patch.
    cache : tuple
        ``(the shape of x, P)``, for `patchify_backward`.

    Raises
    ------
    ValueError
        If P does not divide H and W.

    Examples
    --------
    >>> import numpy as np
    >>> patchify_forward(np.arange(16).reshape(1, 1, 4, 4), 2)[0][0, 1]
    array([2, 3, 6, 7])
    """
    B, C, H, W = x.shape
    P = patch_size
    if H % P or W % P:
        raise ValueError(f"patch_size={P} does not divide pictures of {H} x {W}")
    y = x.reshape(B, C, H // P, P, W // P, P).transpose(0, 2, 4, 1, 3, 5)
    return y.reshape(B, H // P * (W // P), C * P * P), ((B, C, H, W), P)


def patchify_backward(dy, cache):
    """Put patches (B, N, C * P * P) together to pictures (B, C, H, W).

    Notes
    -----
    Every number moves and none is added to another, so the derivative's transpose is the inverse.
    """
    (B, C, H, W), P = cache
    dx = dy.reshape(B, H // P, W // P, C, P, P).transpose(0, 3, 1, 4, 2, 5)
    return dx.reshape(B, C, H, W)


def unpatchify_forward(x, patch_size, rows):
    """Put tokens together to pictures, where each token holds its pixels, channels last.

    Parameters
    ----------
    x : (B, N, P * P * C) ndarray
        A token's numbers stand in the order (P, P, C) of DiT's files, where `patchify_forward` has
        (C, P, P).
    patch_size : int
        P, in pixels.
    rows : int
        How many rows of patches a picture has; must divide N.

    Returns
    -------
    y : (B, C, rows * P, N / rows * P) ndarray
    cache : tuple
        ``(the shape of y, P)``, for `unpatchify_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> unpatchify_forward(np.arange(8).reshape(1, 2, 4), 2, rows=1)[0][0, 0]
    array([[0, 1, 4, 5],
           [2, 3, 6, 7]])
    """
    B, N, numbers = x.shape
    P, columns, C = patch_size, N // rows, numbers // patch_size**2
    y = x.reshape(B, rows, columns, P, P, C).transpose(0, 5, 1, 3, 2, 4)
    y = y.reshape(B, C, rows * P, columns * P)
    return y, (y.shape, P)


def unpatchify_backward(dy, cache):
    """Cut pictures (B, C, H, W) into tokens (B, N, P * P * C), channels last.

    Notes
    -----
    Every number moves, as in `patchify_backward`: the transpose is the inverse.
    """
    (B, C, H, W), P = cache
    dx = dy.reshape(B, C, H // P, P, W // P, P).transpose(0, 2, 4, 3, 5, 1)
    return dx.reshape(B, H // P * (W // P), P * P * C)
