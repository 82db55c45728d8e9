"""Thin layers: each owns its parameters and calls one pair of `tinydiff.ops`.

Every layer has ``forward(x, tape=NO_TAPE)`` and ``backward(dy, tape)``, which
returns the gradient in `x` and adds to its parameters' gradients.
"""
import numpy as np

from tinydiff import ops
from tinydiff.backends.device import follow, on_host
from tinydiff.nn.activations import activation
from tinydiff.nn.initialisers import normal, ones, uniform_fan_in, zeros
from tinydiff.nn.module import Module, Parameter
from tinydiff.nn.tape import NO_TAPE


def _learns(layer):
    """Say whether the weight or the bias of a layer takes gradients."""
    return not (layer.weight.frozen and (layer.bias is None or layer.bias.frozen))


class Linear(Module):
    """``y = x Wᵀ + b`` over the last axis.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool, default True
    fill : callable, optional
        Initialiser of the weight; uniform on +-1/sqrt(in_features) by default.
    """

    def __init__(self, in_features, out_features, bias=True, fill=None):
        self.weight = Parameter((out_features, in_features), fill or uniform_fan_in())
        bias_fill = zeros() if fill else uniform_fan_in(in_features)
        self.bias = Parameter((out_features,), bias_fill) if bias else None

    def forward(self, x, tape=NO_TAPE):
        """Map (..., in_features) to (..., out_features)."""
        bias = None if self.bias is None else self.bias.value
        y, cache = ops.linear_forward(x, self.weight.value, bias)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Return dx, (..., in_features)."""
        dx, dweight, dbias = ops.linear_backward(
            dy, tape.load(self), needs_dweight=_learns(self))
        self.weight.accumulate(dweight)
        if self.bias is not None:
            self.bias.accumulate(dbias)
        return dx


class Embedding(Module):
    """A table of `num_embeddings` vectors, looked up by integer."""

    def __init__(self, num_embeddings, dim, std=1.0):
        self.weight = Parameter((num_embeddings, dim), normal(std))

    def place(self, ids):
        """Bring integers from the host to where the table lives, once they are seen to be rows."""
        if on_host(ids):
            ops.check_ids(ids, self.weight.shape[0])
        return follow(ids, self.weight.value)

    def forward(self, ids, tape=NO_TAPE):
        """Map integers (...) to vectors (..., dim)."""
        y, cache = ops.embedding_forward(ids, self.weight.value)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Add to the table's gradient; integers have none."""
        cache = tape.load(self)
        if not self.weight.frozen:
            self.weight.accumulate(ops.embedding_backward(dy, cache))


class Conv2d(Module):
    """Two-dimensional convolution of (B, C, H, W) pictures.

    Parameters
    ----------
    in_channels, out_channels, kernel_size : int
    stride : int, default 1
    padding : int or ((top, bottom), (left, right)), default 0
        Zeros added around each picture, in pixels.
    fill : callable, optional
        Initialiser of the weight; uniform on +-1/sqrt(fan_in) by default.
    """

    def __init__(self, in_channels, out_channels, kernel_size, stride=1, padding=0, fill=None):
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        self.weight = Parameter(shape, fill or uniform_fan_in())
        bias_fill = zeros() if fill else uniform_fan_in(in_channels * kernel_size**2)
        self.bias = Parameter((out_channels,), bias_fill)
        self.stride = stride
        self.padding = padding

    def forward(self, x, tape=NO_TAPE):
        """Map (B, in_channels, H, W) to (B, out_channels, Ho, Wo)."""
        y, cache = ops.conv2d_forward(
            x, self.weight.value, self.bias.value, self.stride, self.padding)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape, needs_dx=True):
        """Return dx, (B, in_channels, H, W); None if nobody needs it."""
        dx, dweight, dbias = ops.conv2d_backward(
            dy, tape.load(self), needs_dx, needs_dweight=_learns(self))
        self.weight.accumulate(dweight)
        self.bias.accumulate(dbias)
        return dx


class GroupNorm(Module):
    """Normalise each of `num_groups` groups of channels, then scale and shift each channel."""

    def __init__(self, num_groups, channels, eps=1e-5):
        if channels % num_groups:
            raise ValueError(f"norm_num_groups={num_groups} does not divide {channels} channels")
        self.num_groups = num_groups
        self.eps = eps
        self.weight = Parameter((channels,), ones())
        self.bias = Parameter((channels,), zeros())

    def forward(self, x, tape=NO_TAPE):
        """Map (B, channels, ...) to the same shape."""
        y, cache = ops.group_norm_forward(
            x, self.weight.value, self.bias.value, self.num_groups, self.eps)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Return dx, the shape of x."""
        dx, dweight, dbias = ops.group_norm_backward(
            dy, tape.load(self), needs_dweight=_learns(self))
        self.weight.accumulate(dweight)
        self.bias.accumulate(dbias)
        return dx


class LayerNorm(Module):
    """Normalise each vector of `dim` entries, then scale and shift each entry, if `affine`."""

    def __init__(self, dim, eps=1e-5, affine=True):
        self.eps = eps
        self.weight = Parameter((dim,), ones()) if affine else None
        self.bias = Parameter((dim,), zeros()) if affine else None

    def forward(self, x, tape=NO_TAPE):
        """Map (..., dim) to the same shape."""
        if self.weight is None:
            bias = np.zeros(x.shape[-1:], x.dtype, like=x)
            weight = bias + 1
        else:
            weight, bias = self.weight.value, self.bias.value
        y, cache = ops.layer_norm_forward(x, weight, bias, self.eps)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Return dx, (..., dim)."""
        learns = self.weight is not None and _learns(self)
        dx, dweight, dbias = ops.layer_norm_backward(dy, tape.load(self), needs_dweight=learns)
        if learns:
            self.weight.accumulate(dweight)
            self.bias.accumulate(dbias)
        return dx


class GroupNormAct(GroupNorm):
    """Group normalisation, then a scale and shift for each picture if given, then an activation.

    Parameters
    ----------
    num_groups, channels : int
    eps : float
    act : str
        A name of `ACTIVATIONS`; "silu" and "swish" run as one operation, which reads and writes
        the pictures once.
    """

    def __init__(self, num_groups, channels, eps, act):
        super().__init__(num_groups, channels, eps)
        self.act = None if act in ("silu", "swish") else activation(act)

    def forward(self, x, scale=None, shift=None, tape=NO_TAPE):
        """Map (B, channels, H, W) to the same shape; `scale` and `shift` are (B, channels)."""
        if self.act is None:
            y, cache = ops.group_norm_silu_forward(
                x, self.weight.value, self.bias.value, self.num_groups, self.eps, scale, shift)
            tape.save(self, cache)
            return y
        h = super().forward(x, tape)
        tape.save(self, (h, scale))
        if scale is not None:
            h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return self.act.forward(h, tape)

    def backward(self, dy, tape):
        """Return dx, dscale and dshift; None for what was not given."""
        if self.act is None:
            dx, dweight, dbias, dscale, dshift = ops.group_norm_silu_backward(
                dy, tape.load(self), needs_dweight=_learns(self))
            self.weight.accumulate(dweight)
            self.bias.accumulate(dbias)
            return dx, dscale, dshift
        dh = self.act.backward(dy, tape)
        h, scale = tape.load(self)
        dscale = dshift = None
        if scale is not None:
            dscale, dshift = (dh * h).sum(axis=(2, 3)), dh.sum(axis=(2, 3))
            dh = dh * (1 + scale[:, :, None, None])
        return super().backward(dh, tape), dscale, dshift


class Dropout(Module):
    """Zero a share `rate` of the entries while training, and scale up the rest.

    It acts only where the tape carries a generator: sampling and plain gradient
    checks are untouched.
    """

    def __init__(self, rate):
        self.rate = rate

    def forward(self, x, tape=NO_TAPE):
        """Return `x`, or `x` with some entries dropped."""
        if tape.generator is None or self.rate == 0:
            tape.save(self, None)
            return x
        uniform = follow(tape.generator.random(x.shape, dtype="float32"), x)
        y, cache = ops.dropout_forward(x, self.rate, uniform)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Return dx: zero where the entry was dropped."""
        cache = tape.load(self)
        return dy if cache is None else ops.dropout_backward(dy, cache)


class Attention(Module):
    """Scaled dot-product attention of several heads; the projections are the caller's."""

    def __init__(self, num_heads):
        self.num_heads = num_heads

    def forward(self, q, k, v, mask=None, tape=NO_TAPE):
        """Map q (B, N, D), k (B, M, D), v (B, M, Dv) to (B, N, Dv)."""
        o, cache = ops.attention_forward(q, k, v, self.num_heads, mask)
        tape.save(self, cache)
        return o

    def backward(self, do, tape):
        """Return dq, dk, dv."""
        return ops.attention_backward(do, tape.load(self))


class Concat(Module):
    """Join two arrays along the channel axis."""

    def forward(self, a, b, tape=NO_TAPE):
        """Map (B, Ca, ...) and (B, Cb, ...) to (B, Ca + Cb, ...)."""
        y, cache = ops.concat_forward(a, b)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Return da, db."""
        return ops.concat_backward(dy, tape.load(self))


class UpsampleNearest(Module):
    """Repeat each pixel: twice in both directions, or to a given size."""

    def forward(self, x, size=None, tape=NO_TAPE):
        """Map (B, C, H, W) to (B, C, 2H, 2W), or to (B, C, *size)."""
        y, cache = ops.upsample_nearest_forward(x, size=size)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Return dx, (B, C, H, W)."""
        return ops.upsample_nearest_backward(dy, tape.load(self))
