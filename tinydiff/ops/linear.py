"""The affine map of a fully connected layer, and its derivative."""
from tinydiff.backends.table import replaceable


@replaceable
def linear_forward(x, weight, bias=None):
    """Map the last axis of `x` from I to O features: ``y = x weight^T + bias``.

    Parameters
    ----------
    x : (..., I) ndarray
    weight : (O, I) ndarray
        One row per output feature, as the field's files store it.
    bias : (O,) ndarray, optional

    Returns
    -------
    y : (..., O) ndarray
    cache : tuple
        ``(x, weight, whether there is a bias)``, for `linear_backward`.

    Raises
    ------
    ValueError
        If the last axis of `x` is not I.

    Examples
    --------
    >>> import numpy as np
    >>> y, _ = linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0], [0.0, 1.0]]))
    >>> y
    array([[11.,  2.]])
    """
    O, I = weight.shape
    if x.shape[-1] != I:
        raise ValueError(f"x has {x.shape[-1]} features in its last axis, the weight takes {I}")

    rows = x.reshape(-1, I)                                           # (N, I): one large product
    y = rows @ weight.T                                               # (N, O)
    if bias is not None:
        y += bias
    return y.reshape(*x.shape[:-1], O), (x, weight, bias is not None)


@replaceable
def linear_backward(dy, cache, needs_dx=True, needs_dweight=True):
    """Pull the gradient `dy` back through `linear_forward`.

    Parameters
    ----------
    dy : (..., O) ndarray
    cache : tuple
        From `linear_forward`.
    needs_dx, needs_dweight : bool, default True
        Set to False to skip that gradient's work; `needs_dweight` covers the bias too.

    Returns
    -------
    dx : (..., I) ndarray or None
    dweight : (O, I) ndarray or None
    dbias : (O,) ndarray or None

    Notes
    -----
    With one row of x per position n::

        y[n,o] = sum_i x[n,i] weight[o,i] + bias[o]

        dx[n,i]      = sum_o dy[n,o] weight[o,i]
        dweight[o,i] = sum_n dy[n,o] x[n,i]
        dbias[o]     = sum_n dy[n,o]
    """
    x, weight, has_bias = cache
    O, I = weight.shape
    dy_rows = dy.reshape(-1, O)                                       # (N, O)

    dx = (dy_rows @ weight).reshape(x.shape) if needs_dx else None
    dweight = dy_rows.T @ x.reshape(-1, I) if needs_dweight else None
    dbias = dy_rows.sum(axis=0) if needs_dweight and has_bias else None
    return dx, dweight, dbias
