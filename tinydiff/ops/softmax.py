"""Softmax along one axis, and its derivative."""
import numpy as np

from tinydiff.backends.table import replaceable


@replaceable
def softmax_forward(x, axis=-1, out=None):
    """Turn scores into probabilities: ``y = exp(x) / sum(exp(x))`` along `axis`.

    Parameters
    ----------
    x : (...) ndarray
        Scores; -inf means impossible.
    axis : int, default -1
    out : ndarray, optional
        Where to write y; may be `x` itself.

    Returns
    -------
    y : ndarray, the shape of `x`
        Sums to one along `axis`; all zeros where every score is -inf.
    cache : tuple
        ``(y, axis)``, for `softmax_backward`.

    Notes
    -----
    The largest score is subtracted first, which changes nothing but keeps ``exp`` in range.  The
    largest term is then ``exp(0) = 1``, so the sum is at least 1 unless every score is -inf;
    ``max(sum, 1)`` gives that row zeros (0 / 1) in place of 0 / 0.

    Examples
    --------
    >>> softmax_forward(np.array([0.0, np.log(3.0), -np.inf]))[0]
    array([0.25, 0.75, 0.  ])
    """
    # -inf - -inf would be NaN.  In x's dtype: NumPy 1.24 reads so large a Python float as float64.
    lowest = np.finfo(x.dtype).min
    y = np.subtract(x, np.maximum(x.max(axis=axis, keepdims=True), lowest), out=out)
    y = np.exp(y, out=y)
    y /= np.maximum(y.sum(axis=axis, keepdims=True), 1.0)
    return y, (y, axis)


@replaceable
def softmax_backward(dy, cache):
    """Pull the gradient `dy` back through `softmax_forward`.

    Notes
    -----
    ``dy_i/dx_j = y_i ([i == j] - y_j)``, so a score acts on its own probability directly and on
    all of them through the sum that normalises::

        dx = y * (dy  -  sum(dy * y))
                direct   via the sum
    """
    y, axis = cache
    via_sum = (dy * y).sum(axis=axis, keepdims=True)
    return y * (dy - via_sum)
