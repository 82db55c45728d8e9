"""A classifier of pictures that may be noisy: for guidance, and for features to measure in.

P. Dhariwal and A. Nichol, "Diffusion Models Beat GANs on Image Synthesis", 2021, arXiv:2105.05233,
Sec. 4: trained on noisy pictures and told the time, its gradient guides the sampling.  The network
is the down path of a U-Net, a mean over the pixels, and one linear layer.

No published file has this layout: configuration and names are this project's own, in the style of
the others.

Every `backward` below is its `forward` read from the bottom up.
"""
from typing import ClassVar, NamedTuple

import numpy as np

from tinydiff import ops
from tinydiff.models.pretrained import check_config, load_model, save_model
from tinydiff.models.unet import TimestepEmbedding
from tinydiff.models.unet_blocks import BlockConfig, Downsample, ResnetBlock
from tinydiff.nn import ACTIVATIONS, NO_TAPE, Conv2d, Dropout, GroupNormAct, Linear, Module

SUPPORTED = {                           # field: its default
    "in_channels": 1,
    "num_classes": 10,
    "block_out_channels": (32, 64, 128),
    "layers_per_block": 1,
    "norm_num_groups": 8,
    "norm_eps": 1e-5,
    "act_fn": "silu",
    "dropout": 0.0,
}
WHOLE = ("in_channels", "num_classes", "layers_per_block", "norm_num_groups")


class Classification(NamedTuple):
    """What `Classifier.forward` returns."""

    logits: object                      # (B, num_classes), unnormalised log probabilities
    features: object                    # (B, block_out_channels[-1]), what the last layer reads


class MeanPool(Module):
    """The mean of each channel over all pixels."""

    def forward(self, x, tape=NO_TAPE):
        """Map (B, C, H, W) to (B, C)."""
        tape.save(self, x.shape)
        return x.mean(axis=(2, 3))

    def backward(self, dy, tape):
        """Return dx (B, C, H, W): each pixel gets an equal share."""
        B, C, H, W = tape.load(self)
        share = dy[:, :, None, None] / (H * W)
        return np.broadcast_to(share, (B, C, H, W)).copy()            # which others may write to


class ClassifierBlock(Module):
    """One resolution: residual blocks that know the time, then half the size if it is not the last.

    Parameters
    ----------
    in_channels, out_channels, num_layers : int
    config : BlockConfig
    downsample : bool
    """

    def __init__(self, in_channels, out_channels, num_layers, config, downsample):
        self.resnets = [ResnetBlock(in_channels if i == 0 else out_channels, out_channels, config)
                        for i in range(num_layers)]
        self.downsamplers = ([Downsample(out_channels, config.downsample_padding)]
                             if downsample else [])

    def forward(self, x, emb, tape=NO_TAPE):
        """Map (B, C, H, W), given `emb` (B, emb_dim), to half the size."""
        for resnet in self.resnets:
            x = resnet.forward(x, emb, tape)
        for downsampler in self.downsamplers:
            x = downsampler.forward(x, tape)
        return x

    def backward(self, dx, tape):
        """Return dx and demb."""
        demb = 0
        for downsampler in reversed(self.downsamplers):
            dx = downsampler.backward(dx, tape)
        for resnet in reversed(self.resnets):
            dx, demb_resnet = resnet.backward(dx, tape)
            demb = demb + demb_resnet
        return dx, demb


class Classifier(Module):
    """A residual convolutional network that tells classes at every noise level.

    Parameters
    ----------
    **config
        The fields of `SUPPORTED`.

    Attributes
    ----------
    config : dict
        Every field.

    Raises
    ------
    ValueError
        Naming the field or the value that is not supported.

    Examples
    --------
    >>> classifier = Classifier(block_out_channels=[8, 16], norm_num_groups=4).initialise(seed=0)
    >>> answer = classifier.forward(np.zeros((2, 1, 28, 28), np.float32), 0)
    >>> answer.logits.shape, answer.features.shape
    ((2, 10), (2, 16))
    """

    weights_name = "diffusion_pytorch_model.safetensors"
    config_header: ClassVar = {"_class_name": "Classifier"}

    def __init__(self, **config):
        self.config = c = classifier_config(config)
        channels = c["block_out_channels"]
        blocks = BlockConfig(
            emb_dim=4 * channels[0], num_groups=c["norm_num_groups"], eps=c["norm_eps"],
            act=c["act_fn"], dropout=c["dropout"], scale_shift=True, downsample_padding=1)
        self.conv_in = Conv2d(c["in_channels"], channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], blocks.emb_dim, c["act_fn"])
        self.down_blocks = [
            ClassifierBlock(channels[max(i - 1, 0)], out_channels, c["layers_per_block"], blocks,
                            downsample=i < len(channels) - 1)
            for i, out_channels in enumerate(channels)]
        self.conv_norm_out = GroupNormAct(c["norm_num_groups"], channels[-1], c["norm_eps"],
                                          c["act_fn"])
        self.pool = MeanPool()
        self.dropout = Dropout(c["dropout"])
        self.classifier = Linear(channels[-1], c["num_classes"])

    def forward(self, sample, timestep, tape=NO_TAPE):
        """Classify pictures, noisy or clean.

        Parameters
        ----------
        sample : (B, in_channels, H, W) ndarray
            Of any size; in [-1, 1] where clean.
        timestep : float or (B,) ndarray
            As the denoiser's own: a DDPM table's row t is the network's t - 1, so clean pictures
            have -1.
        tape : Tape, optional

        Returns
        -------
        Classification

        Raises
        ------
        ValueError
            If the pictures have another number of channels.
        """
        if sample.shape[1] != self.config["in_channels"]:
            raise ValueError(f"pictures of {sample.shape[1]} channels: this classifier takes "
                             f"{self.config['in_channels']}")
        t = np.zeros(sample.shape[0], sample.dtype, like=sample) + timestep
        sinusoid = ops.timestep_embedding(
            t, self.config["block_out_channels"][0], flip_sin_to_cos=True, freq_shift=0,
            dtype=self.conv_in.weight.value.dtype)
        emb = self.time_embedding.forward(sinusoid, tape)
        x = self.conv_in.forward(sample, tape)
        for block in self.down_blocks:
            x = block.forward(x, emb, tape)
        x = self.conv_norm_out.forward(x, tape=tape)
        features = self.pool.forward(x, tape)
        h = self.dropout.forward(features, tape)
        return Classification(self.classifier.forward(h, tape), features)

    def backward(self, dlogits, dfeatures=None, *, tape, needs_dsample=True):
        """Add to every parameter's gradient, and return the pictures'.

        Parameters
        ----------
        dlogits : (B, num_classes) ndarray
        dfeatures : (B, block_out_channels[-1]) ndarray, optional
        tape : Tape
            The one that `forward` was given.
        needs_dsample : bool, default True

        Returns
        -------
        dsample : (B, in_channels, H, W) ndarray or None
        """
        demb = 0
        dh = self.classifier.backward(dlogits, tape)
        dh = self.dropout.backward(dh, tape)
        dh = dh if dfeatures is None else dh + dfeatures
        dx = self.pool.backward(dh, tape)
        dx, _, _ = self.conv_norm_out.backward(dx, tape)
        for block in reversed(self.down_blocks):
            dx, demb_block = block.backward(dx, tape)
            demb = demb + demb_block
        dsample = self.conv_in.backward(dx, tape, needs_dsample)
        self.time_embedding.backward(demb, tape)
        return dsample

    @classmethod
    def from_pretrained(cls, folder, dtype=np.float32):
        """Open a folder with ``config.json`` and a safetensors file."""
        return load_model(cls, folder, dtype)

    def save_pretrained(self, folder, dtype="float32"):
        """Write ``config.json`` and the weights."""
        save_model(self, folder, dtype)


def classifier_config(given):
    """Complete and check the fields of a classifier.

    Raises
    ------
    ValueError
        Naming the field that is not supported.
    """
    config = check_config(given, SUPPORTED, owner="Classifier")
    channels = config["block_out_channels"]
    values = [(field, config[field]) for field in WHOLE]
    values += [("block_out_channels", c) for c in channels or [0]]
    for field, value in values:
        if type(value) is not int or value < 1:
            raise ValueError(f"Classifier config: {field}={config[field]!r}: whole numbers from 1 "
                             "are needed")
    if config["act_fn"] not in ACTIVATIONS:
        raise ValueError(f"Classifier config: act_fn={config['act_fn']!r} is not supported; "
                         f"known: {', '.join(ACTIVATIONS)}")
    if not 0 <= config["dropout"] < 1:
        raise ValueError(f"Classifier config: dropout={config['dropout']} should be from 0 to "
                         "below 1")
    return config
