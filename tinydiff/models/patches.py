"""From pictures to tokens and back: patches, and where each one stands.

A. Dosovitskiy et al., "An Image is Worth 16x16 Words", 2020, arXiv:2010.11929, Section 3.1.

Every `backward` below is its `forward` read from the bottom up.
"""
import numpy as np

from tinydiff import ops
from tinydiff.nn import NO_TAPE, Module, Parameter
from tinydiff.nn.initialisers import zeros


class PatchEmbedding(Module):
    """A vector for each patch: the published convolution whose stride is its side.

    Parameters
    ----------
    channels, dim, patch_size : int
    fill : callable
        Initialiser of the weight.
    bias : bool, default True
    """

    def __init__(self, channels, dim, patch_size, fill, bias=True):
        self.weight = Parameter((dim, channels, patch_size, patch_size), fill)
        self.bias = Parameter((dim,), zeros()) if bias else None
        self.patch_size = patch_size

    def forward(self, x, tape=NO_TAPE):
        """Map pictures (B, C, H, W) to (B, N, dim)."""
        patches, cut = ops.patchify_forward(x, self.patch_size)       # (B, N, C P P)
        weight = self.weight.value
        bias = None if self.bias is None else self.bias.value
        y, cache = ops.linear_forward(patches, weight.reshape(len(weight), -1), bias)
        tape.save(self, (cut, cache))
        return y

    def backward(self, dy, tape, needs_dx=True):
        """Return dx, the pictures' shape; None if nobody needs it."""
        cut, cache = tape.load(self)
        dpatches, dweight, dbias = ops.linear_backward(
            dy, cache, needs_dx, needs_dweight=not self.weight.frozen)
        if dweight is not None:
            self.weight.accumulate(dweight.reshape(self.weight.shape))
        if dbias is not None:
            self.bias.accumulate(dbias)
        return ops.patchify_backward(dpatches, cut) if needs_dx else None


class Unpatchify(Module):
    """Tokens put together to pictures: each holds a patch, channels last."""

    def __init__(self, patch_size):
        self.patch_size = patch_size

    def forward(self, x, rows, tape=NO_TAPE):
        """Map tokens (B, N, P P C), in `rows` rows, to pictures (B, C, H, W)."""
        y, cache = ops.unpatchify_forward(x, self.patch_size, rows)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Return dx, the tokens' shape."""
        return ops.unpatchify_backward(dy, tape.load(self))


def sincos_positions(rows, columns, dim, side, like):
    """Say where each patch stands: sines and cosines of its column, then of its row.

    Parameters
    ----------
    rows, columns : int
        Of patches, in the picture at hand.
    dim : int
        Length D of a vector; a multiple of 4.
    side : int
        Rows and columns of the pictures that the network was made for: others are squeezed or
        stretched onto the same span, ``0 <= position < side``.
    like : ndarray
        Whose dtype and device to use.

    Returns
    -------
    (rows * columns, D) ndarray
        Fixed: no gradient.

    Notes
    -----
    The two axes of a picture are embedded as timesteps are, `tinydiff.ops.timestep_embedding` with
    ``freq_shift=0``, and each takes half of the vector.

    Examples
    --------
    >>> sincos_positions(1, 2, 4, side=2, like=np.zeros(1)).round(3)
    array([[0.   , 1.   , 0.   , 1.   ],
           [0.841, 0.54 , 0.   , 1.   ]])
    """
    def axis(n):
        position = np.arange(n, like=like) * (side / n)               # (n,)
        return ops.timestep_embedding(position, dim // 2, freq_shift=0, dtype=like.dtype)

    shape = (rows, columns, dim // 2)
    halves = [np.broadcast_to(axis(columns)[None], shape),
              np.broadcast_to(axis(rows)[:, None], shape)]
    return np.concatenate(halves, axis=2).reshape(rows * columns, dim)
