"""Two-dimensional convolution: its definition as loops, a fast forward pass, and the derivative.

As in every deep-learning library, "convolution" does not flip the kernel::

    y[b,o,p,q] = bias[o] + sum_{c,i,j} x_padded[b, c, stride p + i, stride q + j] * weight[o,c,i,j]

The sum over (c, i, j) is one matrix product, once the windows of x stand side by side as the
columns of a matrix ("im2col").  That matrix holds KH * KW copies of x.  It is therefore built
block by block, in one buffer that stays in the processor's cache, and is never kept.
"""
import numpy as np

from tinydiff.backends.table import replaceable

COLUMNS = 512       # windows in one block: enough for a fast product, few enough for the L2 cache


def conv2d_definition(x, weight, bias=None, stride=1, padding=1):
    """Evaluate the formula at the top of this file, one output value at a time.

    Arguments and result are those of `conv2d_forward`, without the cache.
    """
    (top, bottom), (left, right) = _pairs(padding)
    O, _, KH, KW = weight.shape
    Ho, Wo = _output_size(x, weight, stride, _pairs(padding))
    x_padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    y = np.zeros((x.shape[0], O, Ho, Wo), x.dtype, like=x)
    for b, o, p, q in np.ndindex(y.shape):
        window = x_padded[b, :, stride * p:stride * p + KH, stride * q:stride * q + KW]
        y[b, o, p, q] = (window * weight[o]).sum() + (0.0 if bias is None else bias[o])
    return y


@replaceable
def conv2d_forward(x, weight, bias=None, stride=1, padding=1):
    """Convolve a batch of pictures with a bank of O kernels.

    Parameters
    ----------
    x : (B, C, H, W) ndarray
    weight : (O, C, KH, KW) ndarray
    bias : (O,) ndarray, optional
    stride : int, default 1
        Pixels between two windows, in both directions.
    padding : int or ((top, bottom), (left, right)), default 1
        Pixels of zeros around each picture.

    Returns
    -------
    y : (B, O, Ho, Wo) ndarray
        ``Ho = (H + top + bottom - KH) // stride + 1``, and likewise Wo.
    cache : tuple
        The arguments, for `conv2d_backward`.  The columns are not kept: reading KH * KW copies of
        x back from memory costs more than building them again.

    Raises
    ------
    ValueError
        If the channels of `x` and `weight` differ, the kernel exceeds the padded picture, or
        `stride` or `padding` is out of range.

    Examples
    --------
    >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
    >>> y, _ = conv2d_forward(x, np.ones((1, 1, 2, 2)), stride=1, padding=0)
    >>> y[0, 0]
    array([[ 8., 12.],
           [20., 24.]])
    """
    padding = _pairs(padding)
    O, C, KH, KW = weight.shape
    Ho, Wo = _output_size(x, weight, stride, padding)
    kernels = weight.reshape(O, C * KH * KW)
    shift = 0.0 if bias is None else bias[:, None, None]

    y = np.empty((x.shape[0], O, Ho, Wo), x.dtype, like=x)
    for pictures, rows, columns in _blocks(x, (KH, KW), stride, padding):
        out = y[pictures, :, rows]                                    # (n, O, m, Wo)
        np.add(_pictures_first(kernels @ columns, out.shape), shift, out=out)
    return y, (x, weight, bias is not None, stride, padding)


@replaceable
def conv2d_backward(dy, cache, needs_dx=True, needs_dweight=True):
    """Pull the gradient `dy` back through `conv2d_forward`.

    Parameters
    ----------
    dy : (B, O, Ho, Wo) ndarray
    cache : tuple
        From `conv2d_forward`.
    needs_dx, needs_dweight : bool, default True
        Set to False to skip that gradient's work; `needs_dweight` covers the bias too.

    Returns
    -------
    dx : (B, C, H, W) ndarray or None
    dweight : (O, C, KH, KW) ndarray or None
    dbias : (O,) ndarray or None

    Notes
    -----
    Each product ``x_padded[b,c,u,v] * weight[o,c,i,j]`` of the formula stands in the one output
    with ``u = stride p + i``, ``v = stride q + j``.  So, with sums over all that is not fixed::

        dweight[o,c,i,j]    = sum  dy[b,o,p,q] * x_padded[b, c, stride p + i, stride q + j]
        dx_padded[b,c,u,v]  = sum  dy[b,o,p,q] * weight[o, c, u - stride p, v - stride q]

    `_scatter` reads these as they stand: the columns of x, and windows of dx added up where they
    overlap.  With stride 1, dx is itself a convolution, of dy with the flipped kernels (p = u - i):
    `_gather` builds the columns of dy once, and both gradients are products with them.  That saves
    the overlapping additions, a third of the time, unless dy has many more channels than x.
    """
    x, weight, has_bias, stride, padding = cache
    O, C, KH, KW = weight.shape
    dbias = dy.sum(axis=(2, 3)).sum(axis=0) if has_bias and needs_dweight else None
    if not (needs_dx or needs_dweight):
        return None, None, dbias

    (top, bottom), (left, right) = padding
    inside = max(top, bottom) < KH and max(left, right) < KW       # else dy is cropped
    pull_back = _gather if stride == 1 and inside and O <= 2 * C else _scatter
    dx, dweight = pull_back(dy, x, weight, stride, padding, needs_dx, needs_dweight)
    return dx, dweight, dbias


def _gather(dy, x, weight, stride, padding, needs_dx, needs_dweight):
    """Give dx and dweight as products with the columns of dy; stride 1 only."""
    (top, bottom), (left, right) = padding
    O, C, KH, KW = weight.shape
    flipped = weight[:, :, ::-1, ::-1].swapaxes(0, 1).reshape(C, O * KH * KW)
    opposite = (KH - 1 - top, KH - 1 - bottom), (KW - 1 - left, KW - 1 - right)

    dx = np.empty_like(x) if needs_dx else None
    dflipped = np.zeros_like(flipped) if needs_dweight else None
    for pictures, rows, columns in _blocks(dy, (KH, KW), stride, opposite):
        x_block = x[pictures, :, rows]                                # (n, C, m, W)
        if needs_dx:
            dx[pictures, :, rows] = _pictures_first(flipped @ columns, x_block.shape)
        if needs_dweight:
            dflipped += x_block.swapaxes(0, 1).reshape(C, -1) @ columns.T
    if needs_dweight:
        dweight = dflipped.reshape(C, O, KH, KW).swapaxes(0, 1)[:, :, ::-1, ::-1].copy()
    return dx, dweight if needs_dweight else None


def _scatter(dy, x, weight, stride, padding, needs_dx, needs_dweight):
    """Give dweight from the columns of x, and dx by adding windows where they overlap."""
    (top, bottom), (left, right) = padding
    B, C, H, W = x.shape
    O, _, KH, KW = weight.shape
    Wo = dy.shape[3]
    kernels = weight.reshape(O, C * KH * KW)

    dweight = np.zeros_like(kernels) if needs_dweight else None
    if needs_dx:
        dx_padded = np.zeros((C, B, H + top + bottom, W + left + right), x.dtype, like=x)
    for pictures, rows, columns in _blocks(x, (KH, KW), stride, padding):
        dy_block = dy[pictures, :, rows]                              # (n, O, m, Wo)
        n, _, m, _ = dy_block.shape
        dy_block = dy_block.swapaxes(0, 1).reshape(O, n * m * Wo)
        if needs_dweight:
            dweight += dy_block @ columns.T
        if needs_dx:
            windows = (kernels.T @ dy_block).reshape(C, KH, KW, n, m, Wo)
            for i, j in np.ndindex(KH, KW):
                u, v = i + stride * rows.start, j
                dx_padded[:, pictures, u:u + stride * m:stride, v:v + stride * Wo:stride] += (
                    windows[:, i, j])
    dx = dx_padded[:, :, top:top + H, left:left + W].swapaxes(0, 1).copy() if needs_dx else None
    return dx, dweight.reshape(weight.shape) if needs_dweight else None


def _blocks(x, kernel, stride, padding):
    """Yield ``pictures, rows, columns``: two slices of the output, and the windows of x they need.

    `columns` is (C * KH * KW, n * m * Wo) for n pictures and m rows of the output.  Small pictures
    share a block, large ones are cut into bands of rows.  The next block overwrites it.
    """
    B, C, H, W = x.shape
    KH, KW = kernel
    (top, bottom), (left, right) = padding
    Hp, Wp = H + top + bottom, W + left + right
    Ho, Wo = (Hp - KH) // stride + 1, (Wp - KW) // stride + 1
    if (KH, KW, stride, Hp, Wp) == (1, 1, 1, H, W):                   # its own columns
        for b in range(B):
            yield slice(b, b + 1), slice(0, H), x[b].reshape(C, H * W)
        return

    pictures = min(B, max(1, COLUMNS // (Ho * Wo)))
    rows = min(Ho, max(1, COLUMNS // Wo))
    x_padded = np.zeros((C, pictures, Hp, Wp), x.dtype, like=x)       # the border stays zero
    buffer = np.empty(C * KH * KW * pictures * rows * Wo, x.dtype, like=x)
    for b in range(0, B, pictures):
        n = min(pictures, B - b)
        x_padded[:, :n, top:top + H, left:left + W] = x[b:b + n].swapaxes(0, 1)
        for p in range(0, Ho, rows):
            m = min(rows, Ho - p)
            columns = buffer[:C * KH * KW * n * m * Wo].reshape(C, KH, KW, n, m, Wo)
            for i, j in np.ndindex(KH, KW):
                u = i + stride * p
                columns[:, i, j] = x_padded[:, :n, u:u + stride * m:stride,
                                            j:j + stride * Wo:stride]
            yield slice(b, b + n), slice(p, p + m), columns.reshape(C * KH * KW, n * m * Wo)


def _pictures_first(product, shape):
    """View a product (O, n * m * Wo) as a block of pictures, `shape` = (n, O, m, Wo)."""
    n, O, m, Wo = shape
    return product.reshape(O, n, m, Wo).swapaxes(0, 1)


def _pairs(padding):
    """Spell a padding out as ((top, bottom), (left, right))."""
    pairs = ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding
    (top, bottom), (left, right) = pairs
    if min(top, bottom, left, right) < 0:
        raise ValueError(f"padding={padding} is negative")
    return (top, bottom), (left, right)


def _output_size(x, weight, stride, padding):
    """Give (Ho, Wo), or say what does not fit."""
    (top, bottom), (left, right) = padding
    _, C, H, W = x.shape
    _, weight_C, KH, KW = weight.shape
    if C != weight_C:
        raise ValueError(f"x has {C} channels, the kernels have {weight_C}")
    if stride < 1:
        raise ValueError(f"stride={stride} is less than 1")
    Hp, Wp = H + top + bottom, W + left + right
    if KH > Hp or KW > Wp:
        raise ValueError(f"a {KH}x{KW} kernel does not fit a padded picture of {Hp}x{Wp}")
    return (Hp - KH) // stride + 1, (Wp - KW) // stride + 1
