"""Blocks of the transformer that denoises: the condition scales, shifts and gates every layer.

W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers", 2022, arXiv:2212.09748,
Sec. 3.2.  In adaLN-zero one linear layer of the condition gives each block six vectors, and starts
at zero: all gates are shut, and the block is the identity.

Every `backward` below is its `forward` read from the bottom up.
"""
import numpy as np

from tinydiff import ops
from tinydiff.models.transformer_blocks import GatedProjection, ProjectedAttention
from tinydiff.models.unet import TimestepEmbedding
from tinydiff.nn import (
    NO_TAPE,
    Dropout,
    Embedding,
    LayerNorm,
    Linear,
    Module,
    activation,
)
from tinydiff.nn.initialisers import normal, xavier_uniform, zeros

FEED_FORWARDS = {                       # activation_fn: our name of it; None is the gated one
    "gelu-approximate": "gelu_pytorch_tanh",
    "gelu": "gelu",
    "geglu": None,
    "geglu-approximate": "quick_gelu",  # published under this name, and not gated
    "linear-silu": "silu",
}

TIME_FEATURES = 256                     # sines and cosines of a timestep, in every published file


class Modulate(Module):
    """Scale and shift all tokens of a picture alike."""

    def forward(self, x, scale, shift, tape=NO_TAPE):
        """Map tokens (B, N, D), given a scale and a shift (B, D), to the same shape."""
        y, cache = ops.modulate_forward(x, scale, shift)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Return dx, dscale and dshift."""
        return ops.modulate_backward(dy, tape.load(self))


class Gate(Module):
    """Open a branch as far as the condition says."""

    def forward(self, x, gate, tape=NO_TAPE):
        """Map tokens (B, N, D), given a gate (B, D), to the same shape."""
        y, cache = ops.gate_forward(x, gate)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Return dx and dgate."""
        return ops.gate_backward(dy, tape.load(self))


class LabelEmbedding(Module):
    """A vector for each class, and in the last row one for "no class"."""

    def __init__(self, num_classes, dim):
        self.embedding_table = Embedding(num_classes + 1, dim, std=0.02)

    def forward(self, labels, tape=NO_TAPE):
        """Map integers (B,) to (B, dim)."""
        return self.embedding_table.forward(labels, tape)

    def backward(self, dy, tape):
        """Add to the table's gradient; labels have none."""
        self.embedding_table.backward(dy, tape)


class Condition(Module):
    """Time and class as one vector: the published ``norm1.emb``, and the SiLU behind it."""

    def __init__(self, num_classes, dim):
        self.timestep_embedder = TimestepEmbedding(TIME_FEATURES, dim, "silu", fill=normal(0.02))
        self.class_embedder = LabelEmbedding(num_classes, dim)
        self.silu = activation("silu")

    def forward(self, sinusoid, labels, tape=NO_TAPE):
        """Map sinusoids (B, 256) of timesteps and labels (B,) to (B, dim)."""
        emb = self.timestep_embedder.forward(sinusoid, tape)
        emb = emb + self.class_embedder.forward(labels, tape)
        return self.silu.forward(emb, tape)

    def backward(self, dcondition, tape):
        """Add to the gradients of both embedders; neither timesteps nor labels have one."""
        demb = self.silu.backward(dcondition, tape)
        self.class_embedder.backward(demb, tape)
        self.timestep_embedder.backward(demb, tape)


class AdaLayerNormZero(Module):
    """The norm before attention, and the linear layer that reads all six vectors of a block.

    `emb` is where the published files have the embedders, in every block; this module's `forward`
    takes what they gave.
    """

    def __init__(self, dim, emb):
        self.emb = emb
        self.linear = Linear(dim, 6 * dim, fill=zeros())
        self.norm = LayerNorm(dim, eps=1e-6, affine=False)
        self.modulate = Modulate()

    def forward(self, x, condition, tape=NO_TAPE):
        """Map tokens (B, N, D), given a condition (B, D), to the same shape.

        The block's other four vectors (B, D) come too: the gate of attention; shift, scale and gate
        of the feed-forward layer.
        """
        B, _, D = x.shape
        six = self.linear.forward(condition, tape).reshape(B, 6, D)
        shift, scale, gate, shift_ff, scale_ff, gate_ff = (six[:, k] for k in range(6))
        h = self.norm.forward(x, tape)
        h = self.modulate.forward(h, scale, shift, tape)
        return h, gate, shift_ff, scale_ff, gate_ff

    def backward(self, dh, dgate, dshift_ff, dscale_ff, dgate_ff, tape):
        """Return dx and dcondition."""
        dh, dscale, dshift = self.modulate.backward(dh, tape)
        dx = self.norm.backward(dh, tape)
        dsix = np.concatenate([dshift, dscale, dgate, dshift_ff, dscale_ff, dgate_ff], axis=1)
        return dx, self.linear.backward(dsix, tape)


class ActivatedProjection(Module):
    """A linear layer and an activation, under the published name ``proj``."""

    def __init__(self, dim, inner, act):
        self.proj = Linear(dim, inner, fill=xavier_uniform())
        self.act = activation(act)

    def forward(self, x, tape=NO_TAPE):
        """Map (B, N, dim) to (B, N, inner)."""
        h = self.proj.forward(x, tape)
        return self.act.forward(h, tape)

    def backward(self, dy, tape):
        """Return dx."""
        dh = self.act.backward(dy, tape)
        return self.proj.backward(dh, tape)


class FeedForward(Module):
    """Two linear layers, four times as wide inside."""

    def __init__(self, dim, activation_fn, dropout):
        act = FEED_FORWARDS[activation_fn]
        first = ActivatedProjection(dim, 4 * dim, act) if act else GatedProjection(dim, 4 * dim)
        self.net = [first, Dropout(dropout), Linear(4 * dim, dim, fill=xavier_uniform())]

    def forward(self, x, tape=NO_TAPE):
        """Map (B, N, dim) to (B, N, dim)."""
        h = self.net[0].forward(x, tape)
        h = self.net[1].forward(h, tape)
        return self.net[2].forward(h, tape)

    def backward(self, dy, tape):
        """Return dx."""
        dh = self.net[2].backward(dy, tape)
        dh = self.net[1].backward(dh, tape)
        return self.net[0].backward(dh, tape)


class DiTBlock(Module):
    """Self-attention and a feed-forward layer, each normed, modulated and gated by the condition.

    Parameters
    ----------
    config : dict
        A complete configuration, as `tinydiff.models.dit_config` makes it.
    emb : Condition
        What the file holds in this block; shared by all of them while they are tied.
    """

    def __init__(self, config, emb):
        c, heads, head_dim = config, config["num_attention_heads"], config["attention_head_dim"]
        dim = heads * head_dim
        self.norm1 = AdaLayerNormZero(dim, emb)
        # The published code draws the first three projections as one matrix of 3 dim rows.
        self.attn1 = ProjectedAttention(
            dim, dim, heads, head_dim, c["attention_bias"],
            in_fill=xavier_uniform(fan_out=3 * dim), out_fill=xavier_uniform())
        self.drop1 = Dropout(c["dropout"])
        self.gate1 = Gate()
        self.norm3 = LayerNorm(dim, c["norm_eps"], affine=c["norm_elementwise_affine"])
        self.modulate3 = Modulate()
        self.ff = FeedForward(dim, c["activation_fn"], c["dropout"])
        self.gate3 = Gate()

    def forward(self, x, condition, tape=NO_TAPE):
        """Map tokens (B, N, D), given a condition (B, D), to the same shape."""
        h, gate, shift_ff, scale_ff, gate_ff = self.norm1.forward(x, condition, tape)
        h = self.attn1.forward(h, tape=tape)
        h = self.drop1.forward(h, tape)
        x = x + self.gate1.forward(h, gate, tape)
        h = self.norm3.forward(x, tape)
        h = self.modulate3.forward(h, scale_ff, shift_ff, tape)
        h = self.ff.forward(h, tape)
        return x + self.gate3.forward(h, gate_ff, tape)

    def backward(self, dx, tape):
        """Return dx and dcondition."""
        dh, dgate_ff = self.gate3.backward(dx, tape)
        dh = self.ff.backward(dh, tape)
        dh, dscale_ff, dshift_ff = self.modulate3.backward(dh, tape)
        dx = dx + self.norm3.backward(dh, tape)
        dh, dgate = self.gate1.backward(dx, tape)
        dh = self.drop1.backward(dh, tape)
        dh_via_q, dh_via_kv = self.attn1.backward(dh, tape)
        dh, dcondition = self.norm1.backward(
            dh_via_q + dh_via_kv, dgate, dshift_ff, dscale_ff, dgate_ff, tape)
        return dx + dh, dcondition
