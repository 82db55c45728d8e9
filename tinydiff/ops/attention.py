"""Scaled dot-product attention with several heads, its masks, and its derivative.

A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, Eq. 1 and Sec. 3.2.2.
"""
from typing import NamedTuple

import numpy as np

from tinydiff.backends.table import replaceable
from tinydiff.ops.softmax import softmax_forward


class AttentionCache(NamedTuple):
    """What `attention_backward` needs; the probabilities are also what attention maps show."""

    q: np.ndarray                  # (B, h, N, d), already multiplied by the scale
    k: np.ndarray                  # (B, h, M, d)
    v: np.ndarray                  # (B, h, M, dv)
    probabilities: np.ndarray      # (B, h, N, M)
    scale: float


@replaceable
def attention_forward(q, k, v, num_heads, mask=None, scale=None):
    """Let each of N queries read a weighted mean of M values, in each head apart.

    Parameters
    ----------
    q : (B, N, D) ndarray
    k : (B, M, D) ndarray
    v : (B, M, Dv) ndarray
        Head number i holds features ``i * d`` to ``(i + 1) * d - 1``, d = D / num_heads.
    num_heads : int
        h; must divide D and Dv.
    mask : ndarray, broadcastable to (B, h, N, M), optional
        Added to the scores: 0 lets a query read, -inf forbids.  See `causal_mask`, `padding_mask`.
    scale : float, optional
        ``d ** -0.5`` if not given.

    Returns
    -------
    o : (B, N, Dv) ndarray
        A query that may read nothing gets zeros.
    cache : AttentionCache

    Raises
    ------
    ValueError
        If `num_heads` does not divide D or Dv.

    Notes
    -----
    Per head::

        s = scale * q k^T + mask          scores
        p = softmax(s)                    probabilities, over the M keys
        o = p v
    """
    D, Dv = q.shape[-1], v.shape[-1]
    if D % num_heads or Dv % num_heads:
        raise ValueError(f"num_heads={num_heads} does not divide D={D} and Dv={Dv}")
    scale = float(scale) if scale is not None else (D // num_heads) ** -0.5

    q = _split_heads(q * scale, num_heads)                            # N d products, not N M
    k, v = _split_heads(k, num_heads), _split_heads(v, num_heads)
    s = q @ k.swapaxes(2, 3)                                          # (B, h, N, M)
    if mask is not None:
        s += mask
    p, _ = softmax_forward(s, out=s)
    o = _join_heads(p @ v)                                            # (B, N, Dv)
    return o, AttentionCache(q, k, v, p, scale)


@replaceable
def attention_backward(dy, cache):
    """Pull the gradient `dy` of the output back through `attention_forward`.

    Returns
    -------
    dq : (B, N, D) ndarray
    dk : (B, M, D) ndarray
    dv : (B, M, Dv) ndarray

    Notes
    -----
    The three forward lines from the bottom up, per head, with ``do = dy``::

        o = p v                  dv = p^T do,    dp = do v^T
        p = softmax(s)           ds = p * (dp - sum_m(dp * p))
        s = scale q k^T + mask   dq = scale ds k,    dk = ds^T (scale q)

    The cache holds ``scale q``, so only dq still needs the factor.
    """
    q, k, v, p, scale = cache
    do = _split_heads(dy, q.shape[1])                                 # (B, h, N, dv)

    dv = p.swapaxes(2, 3) @ do                                        # (B, h, M, dv)
    ds = do @ v.swapaxes(2, 3)                                        # (B, h, N, M), dp at first
    ds -= np.einsum("bhnm,bhnm->bhn", ds, p)[..., None]
    ds *= p
    dq = ds @ k                                                       # (B, h, N, d)
    dq *= scale
    dk = ds.swapaxes(2, 3) @ q                                        # (B, h, M, d)
    return _join_heads(dq), _join_heads(dk), _join_heads(dv)


def causal_mask(N, dtype=np.float32, like=None):
    """Forbid each of N positions to read later ones: (N, N), -inf above the diagonal.

    Examples
    --------
    >>> causal_mask(3)
    array([[  0., -inf, -inf],
           [  0.,   0., -inf],
           [  0.,   0.,   0.]], dtype=float32)
    """
    position = np.arange(N, like=like)
    return np.where(position[None, :] > position[:, None], -np.inf, 0.0).astype(dtype)


def padding_mask(keep, dtype=np.float32):
    """Forbid reading the keys that are padding: (B, M) truths to a (B, 1, 1, M) mask."""
    return np.where(keep, 0.0, -np.inf).astype(dtype)[:, None, None, :]


def _split_heads(x, num_heads):
    """View (B, N, D) as (B, h, N, d)."""
    B, N, D = x.shape
    return x.reshape(B, N, num_heads, D // num_heads).swapaxes(1, 2)


def _join_heads(x):
    """Write (B, h, N, d) as (B, N, D)."""
    B, h, N, d = x.shape
    return x.swapaxes(1, 2).reshape(B, N, h * d)
