"""The U-Net that denoises: picture, time and text in, noise (or x0, or v) out.

The architecture, the configuration fields and the tensor names are those of the
published ``UNet2DConditionModel`` files, so this one class is both the teaching model
and the network of Stable Diffusion (R. Rombach et al., 2021, arXiv:2112.10752).

`forward` goes down the U, through the middle and up again; `backward` is the same
path read from the bottom up.
"""
from functools import partial
from typing import ClassVar, NamedTuple

import numpy as np

from tinydiff import ops
from tinydiff.models.pretrained import load_model, save_model
from tinydiff.models.transformer_blocks import Transformer2D
from tinydiff.models.unet_blocks import BlockConfig, DownBlock, MidBlock, UpBlock
from tinydiff.models.unet_config import has_cross_attention, unet_config
from tinydiff.nn import (
    NO_TAPE,
    Concat,
    Conv2d,
    Embedding,
    GroupNormAct,
    Linear,
    Module,
    activation,
)
from tinydiff.nn.initialisers import zeros


class UNetGradients(NamedTuple):
    """What `UNet.backward` returns; None where the input was not given or has no gradient."""

    sample: object                      # (B, in_channels, H, W), or None if not asked for
    context: object = None              # (B, M, cross_attention_dim)
    class_labels: object = None         # (B, P), with class_embed_type "projection"
    text_embeds: object = None          # (B, E), with addition_embed_type "text_time"


class TimestepEmbedding(Module):
    """Two linear layers that turn a sinusoid into the embedding all blocks share."""

    def __init__(self, in_dim, emb_dim, act, fill=None):
        self.linear_1 = Linear(in_dim, emb_dim, fill=fill)
        self.act = activation(act)
        self.linear_2 = Linear(emb_dim, emb_dim, fill=fill)

    def forward(self, x, tape=NO_TAPE):
        """Map (B, in_dim) to (B, emb_dim)."""
        h = self.linear_1.forward(x, tape)
        h = self.act.forward(h, tape)
        return self.linear_2.forward(h, tape)

    def backward(self, dy, tape):
        """Return dx."""
        dh = self.linear_2.backward(dy, tape)
        dh = self.act.backward(dh, tape)
        return self.linear_1.backward(dh, tape)


class UNet(Module):
    """A denoising U-Net, conditioned on time and, as configured, on text and class.

    Parameters
    ----------
    **config
        Fields of a published ``config.json``; see `tinydiff.models.unet_config` for
        the supported ones.  Missing fields take the published defaults.

    Attributes
    ----------
    config : dict
        Every supported field.

    Raises
    ------
    ValueError
        Naming the field or the value that is not supported.

    Examples
    --------
    >>> unet = UNet(in_channels=3, out_channels=3, block_out_channels=[8, 16], layers_per_block=1,
    ...             down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"],
    ...             up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"], norm_num_groups=4,
    ...             cross_attention_dim=12, attention_head_dim=2).initialise(seed=0)
    >>> x_t, context = np.ones((2, 3, 8, 8), "float32"), np.ones((2, 5, 12), "float32")
    >>> unet.forward(x_t, 999, context).shape
    (2, 3, 8, 8)
    """

    weights_name = "diffusion_pytorch_model.safetensors"
    config_header: ClassVar = {"_class_name": "UNet2DConditionModel"}

    def __init__(self, **config):
        self.config = c = unet_config(config)
        self.needs_context = has_cross_attention(c)
        channels = c["block_out_channels"]
        blocks = BlockConfig(
            emb_dim=4 * channels[0], num_groups=c["norm_num_groups"], eps=c["norm_eps"],
            act=c["act_fn"], dropout=c["dropout"],
            scale_shift=c["resnet_time_scale_shift"] == "scale_shift",
            downsample_padding=c["downsample_padding"])

        self.conv_in = Conv2d(c["in_channels"], channels[0], 3, padding=1)
        self.time_embedding = TimestepEmbedding(channels[0], blocks.emb_dim, c["act_fn"])
        self._build_conditions(blocks.emb_dim)
        skip_channels = self._build_down(blocks)
        self._build_middle(blocks)
        self._build_up(blocks, skip_channels)
        self.conv_norm_out = GroupNormAct(c["norm_num_groups"], channels[0], c["norm_eps"],
                                          c["act_fn"])
        self.conv_out = Conv2d(channels[0], c["out_channels"], 3, padding=1, fill=zeros())

    # ---- construction ----

    def _build_conditions(self, emb_dim):
        """Class embedding (a table, a second time, or a projection) and SDXL's sizes."""
        c = self.config
        if c["class_embed_type"] == "timestep":
            self.class_embedding = TimestepEmbedding(
                c["block_out_channels"][0], emb_dim, c["act_fn"])
        elif c["class_embed_type"] == "projection":
            self.class_embedding = TimestepEmbedding(
                c["projection_class_embeddings_input_dim"], emb_dim, "silu")
        elif c["num_class_embeds"] is not None:
            self.class_embedding = Embedding(c["num_class_embeds"], emb_dim)
        else:
            self.class_embedding = None
        self.add_embedding = None
        if c["addition_embed_type"]:
            self.join_text_time = Concat()
            self.add_embedding = TimestepEmbedding(
                c["projection_class_embeddings_input_dim"], emb_dim, "silu")

    def _transformer(self, i, only_cross_attention):
        """Return a function that makes one transformer for level `i`."""
        c = self.config
        return partial(
            Transformer2D, c["block_out_channels"][i], c["cross_attention_dim"][i],
            c["attention_head_dim"][i], num_layers=c["transformer_layers_per_block"][i],
            num_groups=c["norm_num_groups"], use_linear_projection=c["use_linear_projection"],
            only_cross_attention=only_cross_attention)

    def _build_down(self, blocks):
        """Build the down path; return the channels of every skip it will push."""
        c = self.config
        channels = c["block_out_channels"]
        skip_channels = [channels[0]]                                 # conv_in's own
        self.down_blocks = []
        for i, kind in enumerate(c["down_block_types"]):
            transformer = self._transformer(i, c["only_cross_attention"][i])
            last = i == len(channels) - 1
            self.down_blocks.append(DownBlock(
                channels[max(i - 1, 0)], channels[i], c["layers_per_block"][i], blocks,
                transformer if kind.startswith("CrossAttn") else None, downsample=not last))
            skip_channels += [channels[i]] * (c["layers_per_block"][i] + (not last))
        return skip_channels

    def _build_middle(self, blocks):
        c = self.config
        transformer = self._transformer(-1, only_cross_attention=False)
        self.mid_block = None
        if c["mid_block_type"] is not None:
            self.mid_block = MidBlock(
                c["block_out_channels"][-1], blocks,
                transformer if c["mid_block_type"].endswith("CrossAttn") else None,
                c["mid_block_scale_factor"])

    def _build_up(self, blocks, skip_channels):
        """Build the up path: the levels in reverse, one layer more on each."""
        c = self.config
        channels = c["block_out_channels"]
        n = len(channels)
        skips = skip_channels[::-1]
        self.up_blocks = []
        for i, kind in zip(reversed(range(n)), c["up_block_types"], strict=True):
            transformer = self._transformer(i, c["only_cross_attention"][i])
            num_layers = c["layers_per_block"][i] + 1
            self.up_blocks.append(UpBlock(
                channels[min(i + 1, n - 1)], skips[:num_layers], channels[i], blocks,
                transformer if kind.startswith("CrossAttn") else None, upsample=i > 0))
            skips = skips[num_layers:]

    # ---- the two passes ----

    def forward(self, sample, timestep, context=None, class_labels=None, added=None,
                tape=NO_TAPE):
        """Predict the noise (or x0, or v, whatever it was trained for) in `sample`.

        Parameters
        ----------
        sample : (B, in_channels, H, W) ndarray
        timestep : float or (B,) ndarray
            The network's own timestep; a DDPM table's row t is the network's t - 1.
        context : (B, M, cross_attention_dim) ndarray, optional
            The encoded text; needed where any block has cross-attention.
        class_labels : (B,) int or float ndarray, or (B, P) ndarray, optional
            As `class_embed_type` and `num_class_embeds` ask; not looked at without either.
        added : dict, optional
            ``text_embeds`` (B, E) and ``time_ids`` (B, n), for "text_time".
        tape : Tape, optional

        Returns
        -------
        (B, out_channels, H, W) ndarray
        """
        if context is None and self.needs_context:
            raise ValueError("this UNet attends to a text: context is missing")
        if self.config["center_input_sample"]:
            sample = 2 * sample - 1
        emb = self._embed(sample, timestep, class_labels, added, tape)
        x = self.conv_in.forward(sample, tape)
        skips = [x]
        for block in self.down_blocks:
            x = block.forward(x, skips, emb, context, tape)
        if self.mid_block is not None:
            x = self.mid_block.forward(x, emb, context, tape)
        for block in self.up_blocks:
            x = block.forward(x, skips, emb, context, tape)
        x = self.conv_norm_out.forward(x, tape=tape)
        return self.conv_out.forward(x, tape)

    def backward(self, dy, tape, needs_dsample=True):
        """Pull `dy` (B, out_channels, H, W) back to every input and parameter.

        Training has no use for the sample's own gradient, and skips it: `needs_dsample=False`.

        Returns
        -------
        UNetGradients
        """
        demb = dcontext = 0
        dskips = []
        dx = self.conv_out.backward(dy, tape)
        dx, _, _ = self.conv_norm_out.backward(dx, tape)
        for block in reversed(self.up_blocks):
            dx, demb_block, dcontext_block = block.backward(dx, dskips, tape)
            demb, dcontext = demb + demb_block, dcontext + dcontext_block
        if self.mid_block is not None:
            dx, demb_block, dcontext_block = self.mid_block.backward(dx, tape)
            demb, dcontext = demb + demb_block, dcontext + dcontext_block
        for block in reversed(self.down_blocks):
            dx, demb_block, dcontext_block = block.backward(dx, dskips, tape)
            demb, dcontext = demb + demb_block, dcontext + dcontext_block
        dx = self.conv_in.backward(dx + dskips.pop(), tape, needs_dsample)
        dlabels, dtext = self._embed_backward(demb, tape)
        if self.config["center_input_sample"] and needs_dsample:
            dx = 2 * dx
        return UNetGradients(dx, None if isinstance(dcontext, int) else dcontext, dlabels, dtext)

    def _embed(self, sample, timestep, class_labels, added, tape):
        """Everything that all blocks are told, as one vector a picture: (B, emb_dim)."""
        c = self.config
        B = sample.shape[0]
        t = np.zeros(B, sample.dtype, like=sample) + timestep
        emb = self.time_embedding.forward(self._sinusoid(t, c["block_out_channels"][0]), tape)
        if self.class_embedding is not None:
            if class_labels is None:
                raise ValueError("this UNet is class-conditional: class_labels are missing")
            if c["class_embed_type"] == "timestep":
                class_labels = self._sinusoid(class_labels, c["block_out_channels"][0])
            emb = emb + self.class_embedding.forward(class_labels, tape)
        if self.add_embedding is not None:
            if not added or not {"text_embeds", "time_ids"} <= added.keys():
                raise ValueError("this UNet needs added={'text_embeds': ..., 'time_ids': ...}")
            time_ids = added["time_ids"]                              # (B, n)
            sizes = self._sinusoid(time_ids.reshape(-1), c["addition_time_embed_dim"])
            h = self.join_text_time.forward(added["text_embeds"], sizes.reshape(B, -1), tape)
            emb = emb + self.add_embedding.forward(h, tape)
        return emb

    def _embed_backward(self, demb, tape):
        """Return dclass_labels and dtext_embeds, None where there are none."""
        dlabels = dtext = None
        if self.add_embedding is not None:
            dh = self.add_embedding.backward(demb, tape)
            dtext, _ = self.join_text_time.backward(dh, tape)
        if self.class_embedding is not None:
            dlabels = self.class_embedding.backward(demb, tape)
            if self.config["class_embed_type"] != "projection":
                dlabels = None                                        # integers, or a second time
        self.time_embedding.backward(demb, tape)
        return dlabels, dtext

    def _sinusoid(self, t, dim):
        """Embed numbers (n,) as (n, dim) sinusoids, by this network's convention."""
        return ops.timestep_embedding(t, dim, self.config["flip_sin_to_cos"],
                                      self.config["freq_shift"],
                                      dtype=self.conv_in.weight.value.dtype)

    @classmethod
    def from_pretrained(cls, folder, dtype=np.float32):
        """Open a folder with ``config.json`` and a safetensors file."""
        return load_model(cls, folder, dtype)

    def save_pretrained(self, folder, dtype="float32"):
        """Write ``config.json`` and the weights, as the published files have them."""
        save_model(self, folder, dtype)
