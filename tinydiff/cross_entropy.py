"""The loss of a classifier, beside those of `tinydiff.losses`: its value and its gradient."""
import numpy as np

from tinydiff.backends.device import follow, on_host, scalar


def cross_entropy(logits, labels):
    """Mean negative log probability of the right class, under a softmax.

    Parameters
    ----------
    logits : (B, K) ndarray
        Unnormalised log probabilities of K classes.
    labels : (B,) ndarray of int
        The right ones, ``0 <= labels < K``.

    Returns
    -------
    value : float
        In nats; log K where all classes are equally likely.  On a device an array of no axes.
    dlogits : (B, K) ndarray
        The gradient of `value` in `logits`.  That of each picture's own log probability, which
        classifier guidance climbs, is ``-B dlogits``.

    Raises
    ------
    ValueError
        If there is not one label per picture, or one is no class.  Labels on a device are not
        looked at.

    Notes
    -----
    With p the softmax of a row and y its label::

        value   = -mean(log p_y)
        dlogits = (p - [k == y]) / B

    Examples
    --------
    >>> value, dlogits = cross_entropy(np.zeros((1, 4)), np.array([2]))
    >>> round(value, 4), dlogits
    (1.3863, array([[ 0.25,  0.25, -0.75,  0.25]]))
    """
    B, K = logits.shape
    if labels.shape != (B,):
        raise ValueError(f"labels have shape {labels.shape}: {B} pictures need ({B},)")
    if on_host(labels) and B and not 0 <= labels.min() <= labels.max() < K:
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}, classes from 0 to "
                         f"{K - 1}")
    right = follow(labels, logits)[:, None] == np.arange(K, like=logits)  # (B, K), one True a row
    z = logits - logits.max(axis=1, keepdims=True)                    # so that exp stays in range
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    value = -scalar((right * log_p).sum()) / B
    return value, (np.exp(log_p) - right) / B
