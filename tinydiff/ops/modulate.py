"""What a condition does to the tokens of a picture: scale and shift them, or open a gate.

W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers", 2022, arXiv:2212.09748,
Sec. 3.2: adaptive layer norm (adaLN) and its gates.
"""


def modulate_forward(x, scale, shift):
    """Scale and shift every token of a picture alike: ``y = x (1 + scale) + shift``.

    Parameters
    ----------
    x : (B, N, D) ndarray
        N tokens of each picture, normalised.
    scale, shift : (B, D) ndarray
        One vector per picture; a scale of 0 changes nothing.

    Returns
    -------
    y : (B, N, D) ndarray
    cache : tuple
        ``(x, scale)``, for `modulate_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> modulate_forward(np.ones((1, 2, 1)), np.array([[2.0]]), np.array([[0.5]]))[0][0]
    array([[3.5],
           [3.5]])
    """
    y = x * (1 + scale)[:, None]                                      # (B, N, D)
    y += shift[:, None]
    return y, (x, scale)


def modulate_backward(dy, cache):
    """Pull the gradient `dy` back through `modulate_forward`.

    Returns
    -------
    dx : (B, N, D) ndarray
    dscale, dshift : (B, D) ndarray
        Sums over the tokens, which share them.
    """
    x, scale = cache
    dx = dy * (1 + scale)[:, None]
    dscale = (dy * x).sum(axis=1)
    dshift = dy.sum(axis=1)
    return dx, dscale, dshift


def gate_forward(x, gate):
    """Open a gate per picture and feature: ``y = gate x``.

    Parameters
    ----------
    x : (B, N, D) ndarray
    gate : (B, D) ndarray
        Zero shuts a branch off; adaLN-zero starts there.

    Returns
    -------
    y : (B, N, D) ndarray
    cache : tuple
        ``(x, gate)``, for `gate_backward`.

    Examples
    --------
    >>> import numpy as np
    >>> gate_forward(np.ones((1, 2, 2)), np.array([[0.0, 3.0]]))[0][0]
    array([[0., 3.],
           [0., 3.]])
    """
    return x * gate[:, None], (x, gate)


def gate_backward(dy, cache):
    """Pull the gradient `dy` back through `gate_forward`: each factor gets `dy` times the other.

    Returns
    -------
    dx : (B, N, D) ndarray
    dgate : (B, D) ndarray
    """
    x, gate = cache
    return dy * gate[:, None], (dy * x).sum(axis=1)
