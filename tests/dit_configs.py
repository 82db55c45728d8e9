"""The DiT configurations on which tinydiff and diffusers are compared, and their numbers.

As in unet_configs.py, neither weights nor inputs are stored: every tensor is drawn from its name.
Where a case is tied, the embedders of all blocks are those of the first.
"""
import re
from dataclasses import dataclass

import numpy as np
from unet_configs import checksum, draw
from unet_configs import weight as weight_of

__all__ = ["CASES", "PUBLISHED", "TINY", "cotangent", "gradient_sums", "inputs", "own_name",
           "weight"]


@dataclass(frozen=True)
class Case:
    """One configuration and the inputs it is run on.

    Attributes
    ----------
    config : dict
        What differs from the published defaults.
    tied : bool
        Whether all blocks' embedders are equal, as in the published files.
    size : (int, int)
        H and W of the picture.
    timestep : number or list
        One for the whole batch, or one per picture; may be fractional.
    labels : tuple of int
        One per picture; the number of classes means none.
    """

    config: dict
    tied: bool = True
    size: tuple = (6, 6)
    timestep: object = (3, 871)
    labels: tuple = (4, 1)


TINY = {"num_attention_heads": 2, "attention_head_dim": 4, "in_channels": 2, "num_layers": 2,
        "sample_size": 6, "patch_size": 2, "num_embeds_ada_norm": 5}

CASES = {
    # The published shape in small: twice the channels come out, for the variance.
    "learned_variance": Case(TINY | {"out_channels": 4, "num_layers": 3}, labels=(4, 5)),
    # What training in diffusers leaves: every block has embedders of its own.
    "untied": Case(TINY | {"num_layers": 3, "out_channels": 3}, tied=False),
    # One block, one head, one pixel a patch, one channel, no bias; one timestep for all.
    "one_layer": Case(
        TINY | {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 8,
                "sample_size": 3, "patch_size": 1, "in_channels": 1, "attention_bias": False},
        size=(3, 3), timestep=12.5, labels=(0, 5, 3)),
    # A norm with weights of its own, an epsilon that shows; exact GELU.
    "affine_norm": Case(
        TINY | {"norm_elementwise_affine": True, "norm_eps": 0.1, "activation_fn": "gelu",
                "upcast_attention": True, "norm_num_groups": 4}, tied=False,
        timestep=(0.25, 999.0)),
    # Larger patches, three heads; dropout acts in training alone.
    "large_patches": Case(
        TINY | {"patch_size": 3, "num_attention_heads": 3, "in_channels": 3, "out_channels": 6,
                "activation_fn": "geglu-approximate", "dropout": 0.5,
                "num_embeds_ada_norm": 9}),
    # A picture smaller than the network was made for: its places are spread over the same span.
    "other_size": Case(TINY | {"sample_size": 12, "activation_fn": "linear-silu"}),
    "larger_size": Case(TINY | {"sample_size": 4, "activation_fn": "geglu"}, tied=False),
}


def own_name(name, tied):
    """Return the name of the tensor whose value `name` has: the first block's, where tied."""
    block = r"^transformer_blocks\.\d+\.norm1\.emb\."
    return re.sub(block, "transformer_blocks.0.norm1.emb.", name) if tied else name


def weight(name, shape, tied):
    """Return the value of the tensor `name`."""
    return weight_of(own_name(name, tied), shape)


def inputs(case):
    """Return the arguments of a DiT's forward pass, in float64 (labels are integers)."""
    sample = draw("sample", (len(case.labels), case.config["in_channels"], *case.size))
    timestep = case.timestep if np.isscalar(case.timestep) else np.array(case.timestep)
    return {"sample": sample, "timestep": timestep, "class_labels": np.array(case.labels)}


def cotangent(case):
    """Return dy, the gradient of the loss ``sum(dy * output)`` in the output."""
    channels = case.config.get("out_channels", case.config["in_channels"])
    return draw("cotangent", (len(case.labels), channels, *case.size))


def gradient_sums(grads, tied):
    """Add up the gradients of tensors that are one; return ``{name: (checksum, norm)}``.

    Parameters
    ----------
    grads : dict of str to ndarray
        By the names of the files.
    tied : bool
    """
    total = {}
    for name, grad in grads.items():
        own = own_name(name, tied)
        total[own] = total.get(own, 0) + grad
    return {name: (checksum(name, grad), float(np.linalg.norm(grad)))
            for name, grad in total.items()}


# transformer/config.json of facebook/DiT-XL-2-256, by diffusers' script that converted it: the old
# class, with all of its fields of that time.
DIT_XL_2_256 = {
    "_class_name": "Transformer2DModel",
    "_diffusers_version": "0.12.0.dev0",
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "cross_attention_dim": None,
    "dropout": 0.0,
    "in_channels": 4,
    "norm_elementwise_affine": False,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_zero",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "num_vector_embeds": None,
    "only_cross_attention": False,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 32,
    "upcast_attention": False,
    "use_linear_projection": False,
}
PUBLISHED = {"defaults": {}, "dit_xl_2_256": DIT_XL_2_256,
             "dit_xl_2_512": DIT_XL_2_256 | {"sample_size": 64}}
