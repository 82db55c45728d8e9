"""A discriminator of patches: it says which parts of a picture are real, and which were decoded.

P. Isola et al., "Image-to-Image Translation with Conditional Adversarial Networks", 2016,
arXiv:1611.07004, Section 3.2.2: convolutions alone, so each logit judges the patch that it sees.
There batch norm and leaky ReLU; here group norm, by which no picture is judged by its batch, and
SiLU.

It lives while an autoencoder is trained, and no file holds it.

Every `backward` below is its `forward` read from the bottom up.
"""
from itertools import pairwise

from tinydiff.nn import NO_TAPE, Conv2d, GroupNormAct, Module, activation


class PatchDiscriminator(Module):
    """Convolutions that halve the picture, and one that reads a logit off each place.

    Parameters
    ----------
    in_channels : int
    block_out_channels : sequence of int
        One entry for each halving.  By the default two a logit sees 18 pixels each way.
    norm_num_groups : int

    Notes
    -----
    The first convolution is not followed by a norm: how bright and how sharp a patch is must count.

    Examples
    --------
    >>> import numpy as np
    >>> judge = PatchDiscriminator(3).initialise(seed=0)
    >>> judge.forward(np.zeros((2, 3, 16, 16), np.float32)).shape
    (2, 1, 4, 4)
    """

    def __init__(self, in_channels, block_out_channels=(32, 64), norm_num_groups=8):
        widths = [in_channels, *block_out_channels]
        self.convs = [Conv2d(a, b, 4, stride=2, padding=1)
                      for a, b in pairwise(widths)]
        self.act = activation("silu")
        self.norms = [GroupNormAct(norm_num_groups, c, 1e-5, "silu")
                      for c in block_out_channels[1:]]
        self.conv_out = Conv2d(widths[-1], 1, 3, padding=1)

    def forward(self, x, tape=NO_TAPE):
        """Map pictures (B, C, H, W) to logits (B, 1, h, w): above 0 where a patch looks real."""
        x = self.convs[0].forward(x, tape)
        x = self.act.forward(x, tape)
        for conv, norm in zip(self.convs[1:], self.norms, strict=True):
            x = conv.forward(x, tape)
            x = norm.forward(x, tape=tape)
        return self.conv_out.forward(x, tape)

    def backward(self, dlogits, tape, needs_dx=True):
        """Return dx, the pictures' shape; None if nobody needs it."""
        dx = self.conv_out.backward(dlogits, tape)
        for conv, norm in zip(self.convs[:0:-1], self.norms[::-1], strict=True):
            dx, _, _ = norm.backward(dx, tape)
            dx = conv.backward(dx, tape)
        dx = self.act.backward(dx, tape)
        return self.convs[0].backward(dx, tape, needs_dx)
