"""Transformer blocks of the U-Net: pictures attend to themselves, then to the text.

A. Vaswani et al., "Attention Is All You Need", 2017, arXiv:1706.03762, Sec. 3.2;
cross-attention to a text as in R. Rombach et al., "High-Resolution Image Synthesis
with Latent Diffusion Models", 2021, arXiv:2112.10752, Sec. 3.3; the gated feed-forward
layer as in N. Shazeer, "GLU Variants Improve Transformer", 2020, arXiv:2002.05202.

Every `backward` below is its `forward` read from the bottom up.
"""
from tinydiff import ops
from tinydiff.nn import (
    NO_TAPE,
    Attention,
    Conv2d,
    GroupNorm,
    LayerNorm,
    Linear,
    Module,
    Pointwise,
)
from tinydiff.nn.initialisers import zeros


class ProjectedAttention(Module):
    """Multi-head attention with its four projections; self-attention where `context` is None.

    Parameters
    ----------
    dim, context_dim : int
        Widths of the tokens that ask and of the tokens that answer.
    num_heads, head_dim : int
    bias : bool, default False
        Whether the three projections of the inputs add one; that of the output always does.
    in_fill, out_fill : callable, optional
        Initialisers of the three, and of the fourth.
    """

    def __init__(self, dim, context_dim, num_heads, head_dim, bias=False, in_fill=None,
                 out_fill=None):
        inner = num_heads * head_dim
        self.to_q = Linear(dim, inner, bias, in_fill)
        self.to_k = Linear(context_dim, inner, bias, in_fill)
        self.to_v = Linear(context_dim, inner, bias, in_fill)
        self.attention = Attention(num_heads)
        self.to_out = [Linear(inner, dim, fill=out_fill)]

    def forward(self, x, context=None, tape=NO_TAPE):
        """Map tokens (B, N, dim), asking tokens (B, M, context_dim), to (B, N, dim)."""
        context = x if context is None else context
        q = self.to_q.forward(x, tape)
        k = self.to_k.forward(context, tape)
        v = self.to_v.forward(context, tape)
        o = self.attention.forward(q, k, v, tape=tape)
        return self.to_out[0].forward(o, tape)

    def backward(self, do, tape):
        """Return dx and dcontext; in self-attention the caller adds the two."""
        do = self.to_out[0].backward(do, tape)
        dq, dk, dv = self.attention.backward(do, tape)
        dcontext_via_v = self.to_v.backward(dv, tape)
        dcontext_via_k = self.to_k.backward(dk, tape)
        dx = self.to_q.backward(dq, tape)
        return dx, dcontext_via_k + dcontext_via_v


class GatedProjection(Module):
    """GEGLU: project to twice the width; one half gates the other."""

    def __init__(self, dim, inner):
        self.proj = Linear(dim, 2 * inner)
        self.geglu = Pointwise(ops.geglu_forward, ops.geglu_backward)

    def forward(self, x, tape=NO_TAPE):
        """Map (B, N, dim) to (B, N, inner)."""
        h = self.proj.forward(x, tape)
        return self.geglu.forward(h, tape)

    def backward(self, dy, tape):
        """Return dx."""
        dh = self.geglu.backward(dy, tape)
        return self.proj.backward(dh, tape)


class FeedForward(Module):
    """Two linear layers with a gate between them, four times as wide inside."""

    def __init__(self, dim):
        # Place 1 is a dropout in the published files; it has no tensors and never acts.
        self.net = [GatedProjection(dim, 4 * dim), None, Linear(4 * dim, dim)]

    def forward(self, x, tape=NO_TAPE):
        """Map (B, N, dim) to (B, N, dim)."""
        h = self.net[0].forward(x, tape)
        return self.net[2].forward(h, tape)

    def backward(self, dy, tape):
        """Return dx."""
        dh = self.net[2].backward(dy, tape)
        return self.net[0].backward(dh, tape)


class BasicTransformerBlock(Module):
    """Self-attention, cross-attention to the text, feed-forward; each around a residual.

    With `only_cross_attention` the first attention looks at the text as well.
    """

    def __init__(self, dim, context_dim, num_heads, head_dim, only_cross_attention):
        self.only_cross_attention = only_cross_attention
        first_dim = context_dim if only_cross_attention else dim
        self.norm1 = LayerNorm(dim)
        self.attn1 = ProjectedAttention(dim, first_dim, num_heads, head_dim)
        self.norm2 = LayerNorm(dim)
        self.attn2 = ProjectedAttention(dim, context_dim, num_heads, head_dim)
        self.norm3 = LayerNorm(dim)
        self.ff = FeedForward(dim)

    def forward(self, x, context, tape=NO_TAPE):
        """Map tokens (B, N, dim) to (B, N, dim), given the text (B, M, context_dim)."""
        h = self.norm1.forward(x, tape)
        x = x + self.attn1.forward(h, context if self.only_cross_attention else None, tape)
        h = self.norm2.forward(x, tape)
        x = x + self.attn2.forward(h, context, tape)
        h = self.norm3.forward(x, tape)
        return x + self.ff.forward(h, tape)

    def backward(self, dx, tape):
        """Return dx and dcontext."""
        dh = self.ff.backward(dx, tape)
        dx = dx + self.norm3.backward(dh, tape)
        dh, dcontext = self.attn2.backward(dx, tape)
        dx = dx + self.norm2.backward(dh, tape)
        dh, dcontext_first = self.attn1.backward(dx, tape)
        if self.only_cross_attention:
            dcontext = dcontext + dcontext_first
        else:
            dh = dh + dcontext_first
        dx = dx + self.norm1.backward(dh, tape)
        return dx, dcontext


class Transformer2D(Module):
    """Turn each pixel of a feature map into a token, run transformer blocks, turn it back.

    Parameters
    ----------
    channels, context_dim, num_heads, num_layers, num_groups : int
    use_linear_projection : bool
        Project tokens (True) or, the same numbers in another shape of tensor, pixels (False).
    only_cross_attention : bool
    """

    def __init__(self, channels, context_dim, num_heads, *, num_layers, num_groups,
                 use_linear_projection, only_cross_attention):
        head_dim = channels // num_heads
        inner = num_heads * head_dim
        self.use_linear_projection = use_linear_projection
        project = Linear if use_linear_projection else _pixelwise
        self.norm = GroupNorm(num_groups, channels, eps=1e-6)
        self.proj_in = project(channels, inner)
        self.transformer_blocks = [
            BasicTransformerBlock(inner, context_dim, num_heads, head_dim,
                                  only_cross_attention) for _ in range(num_layers)]
        self.proj_out = project(inner, channels, fill=zeros())

    def forward(self, x, context, tape=NO_TAPE):
        """Map (B, C, H, W) to (B, C, H, W), given the text (B, M, context_dim)."""
        _, _, H, W = x.shape
        h = self.norm.forward(x, tape)
        if self.use_linear_projection:
            h = self.proj_in.forward(tokens(h), tape)                # (B, H*W, inner)
        else:
            h = tokens(self.proj_in.forward(h, tape))                # (B, H*W, inner)
        for block in self.transformer_blocks:
            h = block.forward(h, context, tape)
        if self.use_linear_projection:
            h = pixels(self.proj_out.forward(h, tape), H, W)         # (B, C, H, W)
        else:
            h = self.proj_out.forward(pixels(h, H, W), tape)         # (B, C, H, W)
        h += x                                            # proj_out keeps its input only
        return h

    def backward(self, dy, tape):
        """Return dx and dcontext."""
        _, _, H, W = dy.shape
        if self.use_linear_projection:
            dh = self.proj_out.backward(tokens(dy), tape)
        else:
            dh = tokens(self.proj_out.backward(dy, tape))
        dcontext = 0
        for block in reversed(self.transformer_blocks):
            dh, dcontext_block = block.backward(dh, tape)
            dcontext = dcontext + dcontext_block
        if self.use_linear_projection:
            dh = pixels(self.proj_in.backward(dh, tape), H, W)
        else:
            dh = self.proj_in.backward(pixels(dh, H, W), tape)
        dx = dy + self.norm.backward(dh, tape)
        return dx, dcontext


def _pixelwise(in_channels, out_channels, fill=None):
    """Return a 1x1 convolution: the linear layer of pixels."""
    return Conv2d(in_channels, out_channels, kernel_size=1, fill=fill)


def tokens(x):
    """Turn (B, C, H, W) pixels into (B, H*W, C) tokens."""
    B, C, H, W = x.shape
    return ops.transpose_forward(x.reshape(B, C, H * W))[0]


def pixels(h, H, W):
    """Turn (B, H*W, C) tokens into (B, C, H, W) pixels."""
    B, _, C = h.shape
    return ops.transpose_forward(h)[0].reshape(B, C, H, W)
