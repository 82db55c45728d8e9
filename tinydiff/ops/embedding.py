"""Table lookup: row number in, learned vector out."""
import numpy as np

from tinydiff.backends.device import on_host


def embedding_forward(ids, weight):
    """Look up one row of `weight` for every entry of `ids`.

    Parameters
    ----------
    ids : (...) ndarray of int
        Row numbers, ``0 <= ids < V``.
    weight : (V, D) ndarray

    Returns
    -------
    y : (..., D) ndarray
    cache : tuple
        ``(ids, weight)``, for `embedding_backward`.

    Raises
    ------
    ValueError
        If an id is not a row of the table.  (A negative one would silently count from the end.)
        Ids on a device are not looked at, which would wait for it: whoever brings them there does.

    Examples
    --------
    >>> y, _ = embedding_forward(np.array([2, 0]), np.array([[0.0, 0.5], [1.0, 1.5], [2.0, 2.5]]))
    >>> y
    array([[2. , 2.5],
           [0. , 0.5]])
    """
    if on_host(ids):
        check_ids(ids, weight.shape[0])
    return weight[ids], (ids, weight)


def embedding_backward(dy, cache):
    """Pull the gradient `dy` back through `embedding_forward`.

    Returns
    -------
    dweight : (V, D) ndarray

    Notes
    -----
    The lookup is linear: ``y[n] = sum_v [ids[n] == v] weight[v]``.  So a row used twice collects
    twice, ``dweight[v] = sum over the n with ids[n] == v of dy[n]``, and the integers `ids` have no
    gradient.
    """
    ids, weight = cache
    dweight = np.zeros_like(weight)
    np.add.at(dweight, ids.reshape(-1), dy.reshape(-1, weight.shape[1]))
    return dweight


def check_ids(ids, V):
    """Refuse integers on the host that are not rows of a table of V.

    Raises
    ------
    ValueError
        Naming the least and the largest.
    """
    least, most = (int(ids.min()), int(ids.max())) if ids.size else (0, 0)
    if least < 0 or most >= V:
        raise ValueError(f"ids run from {least} to {most}, the table has rows 0 to {V - 1}")
