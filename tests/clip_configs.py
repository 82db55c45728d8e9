"""The CLIP configurations on which tinydiff and transformers are compared.

Both sides run this file, so neither weights nor inputs need to be stored; the draws are
those of unet_configs.py, keyed by the tensor's name.
"""
from dataclasses import dataclass

import numpy as np
import unet_configs
from unet_configs import draw


@dataclass(frozen=True)
class Case:
    """The published fields of both halves, how wide they meet, and the captions' ids."""

    text: dict
    vision: dict
    projection_dim: int
    ids: tuple


TEXT = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 8, "bos_token_id": 18,
        "eos_token_id": 19, "pad_token_id": 19}
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
          "num_attention_heads": 2, "image_size": 12, "patch_size": 4}
THREE = ((18, 3, 0, 3, 19, 19), (18, 7, 2, 19, 19, 19), (18, 1, 2, 3, 4, 19))

CASES = {
    # The published models in small: quick_gelu, the image side wider and deeper than the text's.
    "published": Case(
        TEXT | {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1},
        VISION | {"hidden_size": 24, "num_attention_heads": 3, "num_hidden_layers": 3}, 10, THREE),
    # This project's own: silu, and a projection as wide as the tokens.
    "emoji": Case(TEXT | {"hidden_act": "silu"}, VISION | {"hidden_act": "silu"}, 16, THREE),
    # Each patch is one pixel of a grey picture; exact gelu; a projection wider than the tokens.
    "grey_pixels": Case(
        TEXT | {"hidden_act": "gelu", "num_hidden_layers": 1},
        VISION | {"num_channels": 1, "image_size": 3, "patch_size": 1, "hidden_act": "gelu"},
        40, THREE[:2]),
    # A single patch, a single layer, a single head.
    "one_patch": Case(
        TEXT | {"num_hidden_layers": 1, "num_attention_heads": 1, "layer_norm_eps": 0.1},
        VISION | {"num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 5,
                  "patch_size": 5, "layer_norm_eps": 0.1}, 3, THREE[:2]),
    # Eight narrow heads, odd widths, four channels, the halves of different activations.
    "eight_heads": Case(
        TEXT | {"num_attention_heads": 8, "intermediate_size": 7, "hidden_act": "gelu_new"},
        VISION | {"num_attention_heads": 8, "intermediate_size": 5, "num_channels": 4,
                  "image_size": 6, "patch_size": 3, "hidden_act": "gelu_pytorch_tanh"}, 7, THREE),
    "deep": Case(
        TEXT | {"num_hidden_layers": 5, "initializer_factor": 0.5},
        VISION | {"num_hidden_layers": 6, "hidden_size": 12, "num_attention_heads": 4,
                  "attention_dropout": 0.1, "initializer_factor": 0.5, "initializer_range": 0.1},
        5, (*THREE, (18, 19, 19, 19, 19, 19))),
}


def weight(name, shape):
    """Return the value of the tensor `name`; similarities are multiplied by about three."""
    return np.array(1.2) if name == "logit_scale" else unet_configs.weight(name, shape)


def ids(case):
    """Return the rows of ids as an array, (B, N)."""
    return np.array(case.ids, np.int64)


def pictures(case):
    """Return the pictures, (B, C, S, S), in float64."""
    S = case.vision["image_size"]
    return draw("pictures", (len(case.ids), case.vision.get("num_channels", 3), S, S))


def cotangents(case):
    """Return dhidden, dpooled and dpenultimate of the image encoder alone, in float64."""
    B, D = len(case.ids), case.vision["hidden_size"]
    N = 1 + (case.vision["image_size"] // case.vision["patch_size"]) ** 2
    return {"hidden": draw("cotangent hidden", (B, N, D)),
            "pooled": draw("cotangent pooled", (B, case.projection_dim)),
            "penultimate": draw("cotangent penultimate", (B, N, D))}
