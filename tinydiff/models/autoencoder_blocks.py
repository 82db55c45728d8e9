"""The blocks of the autoencoder: those of the U-Net, without time, text and skips.

Every `backward` below is its `forward` read from the bottom up.
"""
from tinydiff.models.transformer_blocks import ProjectedAttention, pixels, tokens
from tinydiff.models.unet_blocks import Downsample, ResnetBlock, Upsample
from tinydiff.nn import NO_TAPE, GroupNorm, Module


class PictureAttention(ProjectedAttention):
    """Pixels attend to all pixels of their picture, around a residual; one head of all channels."""

    def __init__(self, channels, config):
        super().__init__(channels, channels, num_heads=1, head_dim=channels, bias=True)
        self.group_norm = GroupNorm(config.num_groups, channels, config.eps)

    def forward(self, x, tape=NO_TAPE):
        """Map (B, C, H, W) to the same shape."""
        _, _, H, W = x.shape
        h = self.group_norm.forward(x, tape)
        h = super().forward(tokens(h), tape=tape)                     # (B, H*W, C)
        return x + pixels(h, H, W)

    def backward(self, dy, tape):
        """Return dx."""
        _, _, H, W = dy.shape
        dh_asking, dh_answering = super().backward(tokens(dy), tape)
        dh = pixels(dh_asking + dh_answering, H, W)
        return dy + self.group_norm.backward(dh, tape)


class EncoderBlock(Module):
    """Residual blocks, then half the size."""

    def __init__(self, in_channels, out_channels, num_layers, config, downsample):
        self.resnets = [ResnetBlock(in_channels if i == 0 else out_channels, out_channels, config)
                        for i in range(num_layers)]
        self.downsamplers = ([Downsample(out_channels, config.downsample_padding)]
                             if downsample else [])

    def forward(self, x, tape=NO_TAPE):
        """Map (B, C, H, W) to half the height and width, if it downsamples."""
        for resnet in self.resnets:
            x = resnet.forward(x, tape=tape)
        for downsampler in self.downsamplers:
            x = downsampler.forward(x, tape)
        return x

    def backward(self, dx, tape):
        """Return dx."""
        for downsampler in reversed(self.downsamplers):
            dx = downsampler.backward(dx, tape)
        for resnet in reversed(self.resnets):
            dx, _ = resnet.backward(dx, tape)
        return dx


class BottleneckBlock(Module):
    """The middle of the encoder and of the decoder: residual, attention if asked for, residual."""

    def __init__(self, channels, config, attention):
        self.attentions = [PictureAttention(channels, config)] if attention else []
        self.resnets = [ResnetBlock(channels, channels, config) for _ in range(2)]

    def forward(self, x, tape=NO_TAPE):
        """Map (B, C, H, W) to the same shape."""
        x = self.resnets[0].forward(x, tape=tape)
        for attention in self.attentions:
            x = attention.forward(x, tape)
        return self.resnets[1].forward(x, tape=tape)

    def backward(self, dx, tape):
        """Return dx."""
        dx, _ = self.resnets[1].backward(dx, tape)
        for attention in self.attentions:
            dx = attention.backward(dx, tape)
        dx, _ = self.resnets[0].backward(dx, tape)
        return dx


class DecoderBlock(Module):
    """Residual blocks, then twice the size."""

    def __init__(self, in_channels, out_channels, num_layers, config, upsample):
        self.resnets = [ResnetBlock(in_channels if i == 0 else out_channels, out_channels, config)
                        for i in range(num_layers)]
        self.upsamplers = [Upsample(out_channels)] if upsample else []

    def forward(self, x, tape=NO_TAPE):
        """Map (B, C, H, W) to twice the height and width, if it upsamples."""
        for resnet in self.resnets:
            x = resnet.forward(x, tape=tape)
        for upsampler in self.upsamplers:
            x = upsampler.forward(x, tape=tape)
        return x

    def backward(self, dx, tape):
        """Return dx."""
        for upsampler in reversed(self.upsamplers):
            dx = upsampler.backward(dx, tape)
        for resnet in reversed(self.resnets):
            dx, _ = resnet.backward(dx, tape)
        return dx
