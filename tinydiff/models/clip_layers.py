"""The transformer layers of CLIP: self-attention and an MLP, normed first, around residuals.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021, arXiv:2103.00020, Section 2.4; the activation ``x sigmoid(1.702 x)`` that CLIP's configs
call ``quick_gelu`` from D. Hendrycks and K. Gimpel, "Gaussian Error Linear Units (GELUs)",
2016, arXiv:1606.08415, Section 2.

Every `backward` below is its `forward` read from the bottom up.
"""
import numpy as np

from tinydiff.nn import NO_TAPE, Attention, LayerNorm, Linear, Module, activation
from tinydiff.nn.initialisers import normal


class SelfAttention(Module):
    """Multi-head self-attention; the projections have biases.

    Parameters
    ----------
    dim, num_heads : int
    in_std, out_std : float
        Initial standard deviation of the projections that read, and that write, the tokens.
    """

    def __init__(self, dim, num_heads, in_std, out_std):
        self.q_proj = Linear(dim, dim, fill=normal(in_std))
        self.k_proj = Linear(dim, dim, fill=normal(in_std))
        self.v_proj = Linear(dim, dim, fill=normal(in_std))
        self.attention = Attention(num_heads)
        self.out_proj = Linear(dim, dim, fill=normal(out_std))

    def forward(self, x, mask, tape=NO_TAPE):
        """Map tokens (B, N, dim) to the same shape; `mask` (N, N) is added to the scores."""
        q = self.q_proj.forward(x, tape)
        k = self.k_proj.forward(x, tape)
        v = self.v_proj.forward(x, tape)
        o = self.attention.forward(q, k, v, mask, tape)
        return self.out_proj.forward(o, tape)

    def backward(self, do, tape):
        """Return dx."""
        do = self.out_proj.backward(do, tape)
        dq, dk, dv = self.attention.backward(do, tape)
        dx = self.v_proj.backward(dv, tape)
        dx = dx + self.k_proj.backward(dk, tape)
        return dx + self.q_proj.backward(dq, tape)


class MLP(Module):
    """Two linear layers with an activation between them."""

    def __init__(self, dim, inner, act, std1, std2):
        self.fc1 = Linear(dim, inner, fill=normal(std1))
        self.activation_fn = activation(act)
        self.fc2 = Linear(inner, dim, fill=normal(std2))

    def forward(self, x, tape=NO_TAPE):
        """Map (B, N, dim) to the same shape."""
        h = self.fc1.forward(x, tape)
        h = self.activation_fn.forward(h, tape)
        return self.fc2.forward(h, tape)

    def backward(self, dy, tape):
        """Return dx."""
        dh = self.fc2.backward(dy, tape)
        dh = self.activation_fn.backward(dh, tape)
        return self.fc1.backward(dh, tape)


class EncoderLayer(Module):
    """Self-attention and an MLP, each behind a norm and around a residual."""

    def __init__(self, config):
        D, eps = config["hidden_size"], config["layer_norm_eps"]
        factor = config["initializer_factor"]
        # Branches that write to the residual start smaller, the deeper the model.
        residual_std = (2 * D * config["num_hidden_layers"]) ** -0.5 * factor
        self.layer_norm1 = LayerNorm(D, eps)
        self.self_attn = SelfAttention(
            D, config["num_attention_heads"], in_std=residual_std, out_std=D**-0.5 * factor)
        self.layer_norm2 = LayerNorm(D, eps)
        self.mlp = MLP(D, config["intermediate_size"], config["hidden_act"],
                       std1=(2 * D) ** -0.5 * factor, std2=residual_std)

    def forward(self, x, mask, tape=NO_TAPE):
        """Map tokens (B, N, D) to the same shape."""
        h = self.layer_norm1.forward(x, tape)
        x = x + self.self_attn.forward(h, mask, tape)
        h = self.layer_norm2.forward(x, tape)
        return x + self.mlp.forward(h, tape)

    def backward(self, dx, tape):
        """Return dx."""
        dh = self.mlp.backward(dx, tape)
        dx = dx + self.layer_norm2.backward(dh, tape)
        dh = self.self_attn.backward(dx, tape)
        return dx + self.layer_norm1.backward(dh, tape)


class Encoder(Module):
    """The stack of layers."""

    def __init__(self, config):
        self.layers = [EncoderLayer(config) for _ in range(config["num_hidden_layers"])]

    def forward(self, x, mask, tape=NO_TAPE):
        """Map tokens (B, N, D) to the last layer's output and its input, the same shape."""
        for layer in self.layers:
            penultimate = x
            x = layer.forward(x, mask, tape)
        return x, penultimate

    def backward(self, dx, dpenultimate, tape):
        """Return the gradient in the first layer's input; `dpenultimate` may be None."""
        dx = self.layers[-1].backward(dx, tape)
        if dpenultimate is not None:
            dx = dx + dpenultimate
        for layer in reversed(self.layers[:-1]):
            dx = layer.backward(dx, tape)
        return dx


class TakeToken(Module):
    """Take one token out of each row."""

    def forward(self, hidden, place, tape=NO_TAPE):
        """Map tokens (B, N, D), given a place (B,) in each row, to (B, D)."""
        here = np.arange(hidden.shape[1], like=place) == place[:, None]
        tape.save(self, here)                                         # (B, N), one True a row
        return np.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]

    def backward(self, dy, tape):
        """Return dhidden (B, N, D): `dy` at the place, zero elsewhere."""
        here = tape.load(self)
        return here[:, :, None] * dy[:, None, :]
