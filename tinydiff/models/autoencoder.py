"""The variational autoencoder: pictures to a few numbers, and back.

A diffusion model that works on these latents instead of on pixels has 48 times fewer numbers to
denoise in Stable Diffusion (R. Rombach et al., 2021, arXiv:2112.10752), whose architecture,
configuration fields and tensor names (``AutoencoderKL``) these are.

The encoder says, for every latent, a mean and a variance; the decoder is given a draw from that
Gaussian, so that it must cope with latents nearby (D. Kingma and M. Welling, "Auto-Encoding
Variational Bayes", 2013, arXiv:1312.6114).
"""
from typing import ClassVar, NamedTuple

import numpy as np

from tinydiff import ops
from tinydiff.backends.device import follow
from tinydiff.models.autoencoder_blocks import BottleneckBlock, DecoderBlock, EncoderBlock
from tinydiff.models.autoencoder_config import autoencoder_config
from tinydiff.models.pretrained import load_model, save_model
from tinydiff.models.unet_blocks import BlockConfig
from tinydiff.nn import NO_TAPE, Conv2d, GroupNormAct, Module

LOGVAR_RANGE = -30.0, 20.0          # as in the published models: its exp() is finite in float32


class Gaussian(NamedTuple):
    """What the encoder says of a picture's latents: independent Gaussians, (B, C, H, W) each."""

    mean: object
    logvar: object


class Reconstruction(NamedTuple):
    """What `Autoencoder.forward` returns."""

    x_hat: object                       # (B, out_channels, H, W)
    mean: object                        # (B, latent_channels, H / factor, W / factor)
    logvar: object


class Encoder(Module):
    """Pictures (B, in_channels, H, W) to moments (B, 2 latent_channels, H / f, W / f)."""

    def __init__(self, config, blocks):
        channels = config["block_out_channels"]
        last = len(channels) - 1
        self.conv_in = Conv2d(config["in_channels"], channels[0], 3, padding=1)
        self.down_blocks = [
            EncoderBlock(channels[max(i - 1, 0)], channels[i], config["layers_per_block"], blocks,
                         downsample=i < last) for i in range(len(channels))]
        self.mid_block = BottleneckBlock(channels[-1], blocks, config["mid_block_add_attention"])
        self.conv_norm_out = GroupNormAct(blocks.num_groups, channels[-1], blocks.eps, "silu")
        self.conv_out = Conv2d(channels[-1], 2 * config["latent_channels"], 3, padding=1)

    def forward(self, x, tape=NO_TAPE):
        """Return the moments, before `quant_conv`."""
        h = self.conv_in.forward(x, tape)
        for block in self.down_blocks:
            h = block.forward(h, tape)
        h = self.mid_block.forward(h, tape)
        h = self.conv_norm_out.forward(h, tape=tape)
        return self.conv_out.forward(h, tape)

    def backward(self, dy, tape, needs_dx=True):
        """Return dx, or None if nobody needs it."""
        dh = self.conv_out.backward(dy, tape)
        dh, _, _ = self.conv_norm_out.backward(dh, tape)
        dh = self.mid_block.backward(dh, tape)
        for block in reversed(self.down_blocks):
            dh = block.backward(dh, tape)
        return self.conv_in.backward(dh, tape, needs_dx)


class Decoder(Module):
    """Latents (B, latent_channels, H / f, W / f) to pictures (B, out_channels, H, W)."""

    def __init__(self, config, blocks):
        channels = config["block_out_channels"][::-1]                 # from the bottom up
        last = len(channels) - 1
        self.conv_in = Conv2d(config["latent_channels"], channels[0], 3, padding=1)
        self.mid_block = BottleneckBlock(channels[0], blocks, config["mid_block_add_attention"])
        self.up_blocks = [
            DecoderBlock(channels[max(i - 1, 0)], channels[i], config["layers_per_block"] + 1,
                         blocks, upsample=i < last) for i in range(len(channels))]
        self.conv_norm_out = GroupNormAct(blocks.num_groups, channels[-1], blocks.eps, "silu")
        self.conv_out = Conv2d(channels[-1], config["out_channels"], 3, padding=1)

    def forward(self, z, tape=NO_TAPE):
        """Return the pictures of latents that went through `post_quant_conv`."""
        h = self.conv_in.forward(z, tape)
        h = self.mid_block.forward(h, tape)
        for block in self.up_blocks:
            h = block.forward(h, tape)
        h = self.conv_norm_out.forward(h, tape=tape)
        return self.conv_out.forward(h, tape)

    def backward(self, dy, tape):
        """Return dz."""
        dh = self.conv_out.backward(dy, tape)
        dh, _, _ = self.conv_norm_out.backward(dh, tape)
        for block in reversed(self.up_blocks):
            dh = block.backward(dh, tape)
        dh = self.mid_block.backward(dh, tape)
        return self.conv_in.backward(dh, tape)


class MomentsToGaussian(Module):
    """Read the encoder's channels as mean | log-variance, the latter kept in `LOGVAR_RANGE`."""

    def forward(self, moments, tape=NO_TAPE):
        """Map (B, 2C, H, W) to a `Gaussian` of (B, C, H, W)."""
        C = moments.shape[1] // 2
        logvar, cache = ops.clamp_forward(moments[:, C:], *LOGVAR_RANGE)
        tape.save(self, cache)
        return Gaussian(moments[:, :C], logvar)

    def backward(self, dmean, dlogvar, tape):
        """Return dmoments."""
        dlogvar = ops.clamp_backward(dlogvar, tape.load(self))
        return np.concatenate([dmean, dlogvar], axis=1)


class Draw(Module):
    """A draw from the Gaussian, given its noise."""

    def forward(self, mean, logvar, eps, tape=NO_TAPE):
        """Return z, the shape of all three."""
        z, cache = ops.reparameterise_forward(mean, logvar, eps)
        tape.save(self, cache)
        return z

    def backward(self, dz, tape):
        """Return dmean and dlogvar."""
        return ops.reparameterise_backward(dz, tape.load(self))


class Autoencoder(Module):
    """Encoder, Gaussian latents, decoder.

    Parameters
    ----------
    **config
        Fields of a published ``config.json``; see `tinydiff.models.autoencoder_config`.

    Attributes
    ----------
    config : dict
        Every supported field.
    factor : int
        Pixels per latent, in both directions.

    Raises
    ------
    ValueError
        Naming the field or the value that is not supported.

    Examples
    --------
    >>> autoencoder = Autoencoder(block_out_channels=[8, 16], norm_num_groups=4).initialise(seed=0)
    >>> x = np.zeros((2, 3, 16, 16), "float32")
    >>> autoencoder.encode(x).mean.shape
    (2, 4, 8, 8)
    >>> autoencoder.to_pictures(autoencoder.to_latents(x)).shape
    (2, 3, 16, 16)
    """

    weights_name = "diffusion_pytorch_model.safetensors"
    config_header: ClassVar = {"_class_name": "AutoencoderKL"}

    def __init__(self, **config):
        self.config = c = autoencoder_config(config)
        self.factor = 2 ** (len(c["block_out_channels"]) - 1)
        C = c["latent_channels"]
        blocks = BlockConfig(emb_dim=None, num_groups=c["norm_num_groups"], eps=1e-6,
                             act=c["act_fn"], dropout=0.0, scale_shift=False, downsample_padding=0)
        self.encoder = Encoder(c, blocks)
        self.quant_conv = Conv2d(2 * C, 2 * C, 1) if c["use_quant_conv"] else None
        self.gaussian = MomentsToGaussian()
        self.draw = Draw()
        self.post_quant_conv = Conv2d(C, C, 1) if c["use_post_quant_conv"] else None
        self.decoder = Decoder(c, blocks)

    # ---- the two passes ----

    def encode(self, x, tape=NO_TAPE):
        """Return the `Gaussian` of the latents of pictures (B, in_channels, H, W) in [-1, 1].

        Raises
        ------
        ValueError
            If `factor` does not divide height and width.
        """
        if x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(f"pictures of {x.shape[2]} x {x.shape[3]} pixels: this autoencoder "
                             f"needs multiples of {self.factor}")
        h = self.encoder.forward(x, tape)
        if self.quant_conv is not None:
            h = self.quant_conv.forward(h, tape)
        return self.gaussian.forward(h, tape)

    def encode_backward(self, dmean, dlogvar, tape, needs_dx=True):
        """Return dx, or None if nobody needs it."""
        dh = self.gaussian.backward(dmean, dlogvar, tape)
        if self.quant_conv is not None:
            dh = self.quant_conv.backward(dh, tape)
        return self.encoder.backward(dh, tape, needs_dx)

    def decode(self, z, tape=NO_TAPE):
        """Return the pictures (B, out_channels, H, W) of latents as `encode` gives them."""
        if self.post_quant_conv is not None:
            z = self.post_quant_conv.forward(z, tape)
        return self.decoder.forward(z, tape)

    def decode_backward(self, dx_hat, tape):
        """Return dz."""
        dz = self.decoder.backward(dx_hat, tape)
        if self.post_quant_conv is not None:
            dz = self.post_quant_conv.backward(dz, tape)
        return dz

    def forward(self, x, eps, tape=NO_TAPE):
        """Encode, draw, decode: what training sees.

        Parameters
        ----------
        x : (B, in_channels, H, W) ndarray
        eps : (B, latent_channels, H / factor, W / factor) ndarray
            Standard normal noise; zero to decode the mean.
        tape : Tape, optional

        Returns
        -------
        Reconstruction
        """
        mean, logvar = self.encode(x, tape)
        z = self.draw.forward(mean, logvar, eps, tape)
        return Reconstruction(self.decode(z, tape), mean, logvar)

    def backward(self, dx_hat, dmean, dlogvar, tape, needs_dx=True):
        """Pull the gradients of all three outputs back; return dx, or None if not asked for."""
        dz = self.decode_backward(dx_hat, tape)
        dmean_via_z, dlogvar_via_z = self.draw.backward(dz, tape)
        return self.encode_backward(dmean + dmean_via_z, dlogvar + dlogvar_via_z, tape, needs_dx)

    # ---- for a diffusion model ----

    def to_latents(self, x, batch=64):
        """Return the scaled latents of pictures: what a diffusion model is trained on.

        Parameters
        ----------
        x : (N, in_channels, H, W) ndarray in [-1, 1]
        batch : int, default 64
            Pictures encoded at a time.

        Returns
        -------
        (N, latent_channels, H / factor, W / factor) ndarray
            ``scaling_factor`` times the mean.
        """
        scale = self.config["scaling_factor"]
        return np.concatenate([scale * self.encode(follow(x[k:k + batch], self.like())).mean
                               for k in range(0, len(x), batch)])

    def to_pictures(self, latents, batch=64):
        """Return the pictures (N, out_channels, H, W) of scaled latents; they may leave [-1, 1]."""
        scale = 1 / self.config["scaling_factor"]
        return np.concatenate([self.decode(scale * follow(latents[k:k + batch], self.like()))
                               for k in range(0, len(latents), batch)])

    @classmethod
    def from_pretrained(cls, folder, dtype=np.float32):
        """Open a folder with ``config.json`` and a safetensors file."""
        return load_model(cls, folder, dtype)

    def save_pretrained(self, folder, dtype="float32"):
        """Write ``config.json`` and the weights, as the published files have them."""
        save_model(self, folder, dtype)
