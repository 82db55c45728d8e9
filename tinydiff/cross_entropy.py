"""Losses of choosing: a picture's class, and CLIP's pairs; each with its gradient."""
from math import exp

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


def contrastive(image, text, logit_scale, alike=None):
    """Symmetric cross-entropy: each picture picks its caption, each caption its picture.

    Parameters
    ----------
    image, text : (B, P) ndarray
        Unit vectors; row i of both belongs together.
    logit_scale : float
        t; similarities, -1 to 1, are multiplied by e^t.
    alike : (B, B) ndarray of bool, optional
        Symmetric, and true on the diagonal: pictures i and j have the same caption, so each is a
        right answer for the other, and they share the target.  The identity if not given.

    Returns
    -------
    value : float
        log B where every pair is equally likely.
    dimage, dtext : (B, P) ndarray
    dlogit_scale : float

    Raises
    ------
    ValueError
        If the shapes differ.

    Notes
    -----
    With s = e^t image text^T, rows of pictures and columns of captions, and p the targets::

        value = (CE(p, softmax over each row) + CE(p, softmax over each column)) / 2,
                each the mean over its B rows or columns

        ds           = (softmax_rows - p_rows + softmax_columns - p_columns) / (2 B)
        dimage       = e^t ds text
        dtext        = e^t ds^T image
        dlogit_scale = sum(ds * s)

    References
    ----------
    .. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language
       Supervision", 2021, arXiv:2103.00020, Figure 3.

    Examples
    --------
    >>> one = np.eye(4)
    >>> round(contrastive(one, one, 0.0)[0], 4)                 # log(1 + 3 / e)
    0.7437
    """
    if image.shape != text.shape:
        raise ValueError(f"image has shape {image.shape}, text {text.shape}")
    B, scale = len(image), exp(logit_scale)
    place = np.arange(B, like=image)
    target = (place[:, None] == place).astype(image.dtype)            # the identity
    if alike is not None:
        target = alike / alike.sum(axis=1, dtype=image.dtype)[:, None]
    s = scale * (image @ text.T)                                      # (B, B)

    value, ds = 0.0, np.zeros_like(s)
    for axis, p in ((1, target), (0, target.T)):                      # rows, columns
        z = s - s.max(axis=axis, keepdims=True)
        log_softmax = z - np.log(np.exp(z).sum(axis=axis, keepdims=True))
        value = value - scalar((p * log_softmax).sum()) / (2 * B)
        ds += (np.exp(log_softmax) - p) / (2 * B)

    return value, scale * (ds @ text), scale * (ds.T @ image), scalar((ds * s).sum())
