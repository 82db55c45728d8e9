"""The blocks of the U-Net, some of them the autoencoder's too: residual, down, middle, up.

O. Ronneberger et al., "U-Net", 2015, arXiv:1505.04597; with residual blocks and time
embedding as in J. Ho et al., "Denoising Diffusion Probabilistic Models", 2020,
arXiv:2006.11239, App. B, and attention as in arXiv:2112.10752.

Skip connections are a stack.  Forward, the down path pushes and the up path pops;
backward, the up path pushes the gradients and the down path pops them.
"""
from dataclasses import dataclass

import numpy as np

from tinydiff.nn import (
    NO_TAPE,
    Concat,
    Conv2d,
    Dropout,
    GroupNormAct,
    Linear,
    Module,
    UpsampleNearest,
    activation,
)
from tinydiff.nn.initialisers import zeros


@dataclass(frozen=True)
class BlockConfig:
    """What all blocks of one U-Net share."""

    emb_dim: int | None             # width of the time embedding; None: blocks know no time
    num_groups: int
    eps: float
    act: str
    dropout: float
    scale_shift: bool               # resnet_time_scale_shift == "scale_shift"
    downsample_padding: int


class ResnetBlock(Module):
    """Two convolutions around a residual, told the time between them if there is one.

    Parameters
    ----------
    in_channels, out_channels : int
    config : BlockConfig
    output_scale : float, default 1
        The sum of the two branches is divided by it.
    """

    def __init__(self, in_channels, out_channels, config, output_scale=1.0):
        self.scale_shift = config.scale_shift
        self.output_scale = output_scale
        self.norm1 = GroupNormAct(config.num_groups, in_channels, config.eps, config.act)
        self.conv1 = Conv2d(in_channels, out_channels, 3, padding=1)
        self.time_emb_proj = None
        if config.emb_dim is not None:
            self.act_emb = activation(config.act)
            self.time_emb_proj = Linear(config.emb_dim, out_channels * (1 + config.scale_shift))
        self.norm2 = GroupNormAct(config.num_groups, out_channels, config.eps, config.act)
        self.dropout = Dropout(config.dropout)
        self.conv2 = Conv2d(out_channels, out_channels, 3, padding=1, fill=zeros())
        self.conv_shortcut = (Conv2d(in_channels, out_channels, 1)
                              if in_channels != out_channels else None)

    def forward(self, x, emb=None, tape=NO_TAPE):
        """Map (B, in_channels, H, W) to (B, out_channels, H, W), given `emb` (B, emb_dim)."""
        h = self.norm1.forward(x, tape=tape)
        h = self.conv1.forward(h, tape)
        scale = shift = None
        if self.time_emb_proj is not None:
            C = h.shape[1]
            e = self.act_emb.forward(emb, tape)
            e = self.time_emb_proj.forward(e, tape)                   # (B, C), or scale | shift
            if self.scale_shift:
                scale, shift = e[:, :C], e[:, C:]
            else:
                h += e[:, :, None, None]                              # conv1 keeps its input only
        h = self.norm2.forward(h, scale, shift, tape)
        h = self.dropout.forward(h, tape)
        h = self.conv2.forward(h, tape)
        if self.conv_shortcut is not None:
            x = self.conv_shortcut.forward(x, tape)
        h += x                                                        # conv2 keeps its input only
        return h if self.output_scale == 1 else h / self.output_scale

    def backward(self, dy, tape):
        """Return dx and demb; demb is None without a time."""
        dx = dh = dy if self.output_scale == 1 else dy / self.output_scale
        if self.conv_shortcut is not None:
            dx = self.conv_shortcut.backward(dx, tape)
        dh = self.conv2.backward(dh, tape)
        dh = self.dropout.backward(dh, tape)
        dh, dscale, dshift = self.norm2.backward(dh, tape)
        demb = None
        if self.time_emb_proj is not None:
            if self.scale_shift:
                de = np.concatenate([dscale, dshift], axis=1)         # (B, 2C)
            else:
                de = dh.sum(axis=(2, 3))                              # (B, C)
            de = self.time_emb_proj.backward(de, tape)
            demb = self.act_emb.backward(de, tape)
        dh = self.conv1.backward(dh, tape)
        dh, _, _ = self.norm1.backward(dh, tape)
        dh += dx
        return dh, demb


class Downsample(Module):
    """Halve height and width by a convolution of stride 2.

    With padding 0 a single row and column of zeros is added below and to the right.
    """

    def __init__(self, channels, padding):
        around = padding if padding else ((0, 1), (0, 1))
        self.conv = Conv2d(channels, channels, 3, stride=2, padding=around)

    def forward(self, x, tape=NO_TAPE):
        """Map (B, C, H, W) to (B, C, H/2, W/2)."""
        return self.conv.forward(x, tape)

    def backward(self, dy, tape):
        """Return dx."""
        return self.conv.backward(dy, tape)


class Upsample(Module):
    """Double height and width (or reach `size`) by repeating pixels, then smooth."""

    def __init__(self, channels):
        self.nearest = UpsampleNearest()
        self.conv = Conv2d(channels, channels, 3, padding=1)

    def forward(self, x, size=None, tape=NO_TAPE):
        """Map (B, C, H, W) to (B, C, 2H, 2W) or (B, C, *size)."""
        h = self.nearest.forward(x, size, tape)
        return self.conv.forward(h, tape)

    def backward(self, dy, tape):
        """Return dx."""
        dh = self.conv.backward(dy, tape)
        return self.nearest.backward(dh, tape)


class DownBlock(Module):
    """Residual blocks, each with its transformer if the level has any; then half the size.

    Parameters
    ----------
    in_channels, out_channels, num_layers : int
    config : BlockConfig
    transformer : callable or None
        ``transformer() -> Transformer2D``; None for a level without attention.
    downsample : bool
    """

    def __init__(self, in_channels, out_channels, num_layers, config, transformer, downsample):
        self.resnets = [ResnetBlock(in_channels if i == 0 else out_channels, out_channels, config)
                        for i in range(num_layers)]
        self.attentions = [transformer() for _ in range(num_layers)] if transformer else []
        self.downsamplers = ([Downsample(out_channels, config.downsample_padding)]
                             if downsample else [])

    def forward(self, x, skips, emb, context, tape=NO_TAPE):
        """Map (B, C, H, W) to half the size, and push a skip after each layer."""
        for i, resnet in enumerate(self.resnets):
            x = resnet.forward(x, emb, tape)
            if self.attentions:
                x = self.attentions[i].forward(x, context, tape)
            skips.append(x)
        for downsampler in self.downsamplers:
            x = downsampler.forward(x, tape)
            skips.append(x)
        return x

    def backward(self, dx, dskips, tape):
        """Return dx, demb, dcontext; pop the gradient of each skip."""
        demb = dcontext = 0
        for downsampler in reversed(self.downsamplers):
            dx = dx + dskips.pop()
            dx = downsampler.backward(dx, tape)
        for i, resnet in reversed(list(enumerate(self.resnets))):
            dx = dx + dskips.pop()
            if self.attentions:
                dx, dcontext_i = self.attentions[i].backward(dx, tape)
                dcontext = dcontext + dcontext_i
            dx, demb_i = resnet.backward(dx, tape)
            demb = demb + demb_i
        return dx, demb, dcontext


class MidBlock(Module):
    """The bottom of the U: a residual block; then, with attention, a transformer and another."""

    def __init__(self, channels, config, transformer, output_scale):
        num_resnets = 2 if transformer else 1
        self.attentions = [transformer()] if transformer else []
        self.resnets = [ResnetBlock(channels, channels, config, output_scale)
                        for _ in range(num_resnets)]

    def forward(self, x, emb, context, tape=NO_TAPE):
        """Map (B, C, H, W) to the same shape."""
        x = self.resnets[0].forward(x, emb, tape)
        if self.attentions:
            x = self.attentions[0].forward(x, context, tape)
            x = self.resnets[1].forward(x, emb, tape)
        return x

    def backward(self, dx, tape):
        """Return dx, demb, dcontext."""
        demb = dcontext = 0
        if self.attentions:
            dx, demb = self.resnets[1].backward(dx, tape)
            dx, dcontext = self.attentions[0].backward(dx, tape)
        dx, demb_first = self.resnets[0].backward(dx, tape)
        return dx, demb + demb_first, dcontext


class UpBlock(Module):
    """Residual blocks that each take one skip, with transformers; then twice the size.

    Parameters
    ----------
    in_channels : int
        Channels that come from below.
    skip_channels : list of int
        Channels of each skip, in the order in which they are popped.
    out_channels : int
    config : BlockConfig
    transformer : callable or None
    upsample : bool
    """

    def __init__(self, in_channels, skip_channels, out_channels, config, transformer, upsample):
        x_channels = [in_channels] + [out_channels] * (len(skip_channels) - 1)
        self.concat = Concat()
        self.resnets = [ResnetBlock(x + skip, out_channels, config)
                        for x, skip in zip(x_channels, skip_channels, strict=True)]
        self.attentions = [transformer() for _ in skip_channels] if transformer else []
        self.upsamplers = [Upsample(out_channels)] if upsample else []

    def forward(self, x, skips, emb, context, tape=NO_TAPE):
        """Map (B, C, H, W) to twice the size (that of the next skip), popping the skips."""
        for i, resnet in enumerate(self.resnets):
            x = self.concat.forward(x, skips.pop(), tape)
            x = resnet.forward(x, emb, tape)
            if self.attentions:
                x = self.attentions[i].forward(x, context, tape)
        for upsampler in self.upsamplers:
            x = upsampler.forward(x, skips[-1].shape[2:], tape)
        return x

    def backward(self, dx, dskips, tape):
        """Return dx, demb, dcontext; push the gradient of each skip."""
        demb = dcontext = 0
        for upsampler in reversed(self.upsamplers):
            dx = upsampler.backward(dx, tape)
        for i, resnet in reversed(list(enumerate(self.resnets))):
            if self.attentions:
                dx, dcontext_i = self.attentions[i].backward(dx, tape)
                dcontext = dcontext + dcontext_i
            dx, demb_i = resnet.backward(dx, tape)
            demb = demb + demb_i
            dx, dskip = self.concat.backward(dx, tape)
            dskips.append(dskip)
        return dx, demb, dcontext
