"""The text-encoder configurations on which tinydiff and transformers are compared.

Both sides run this file, so neither weights nor inputs need to be stored; the draws are
those of unet_configs.py, keyed by the tensor's name.
"""
from dataclasses import dataclass

import numpy as np
from unet_configs import draw

WITH_PROJECTION = "CLIPTextModelWithProjection"


@dataclass(frozen=True)
class Case:
    """One configuration, and the rows of ids that it encodes."""

    config: dict
    ids: tuple

    @property
    def projected(self):
        return self.config.get("architectures") == [WITH_PROJECTION]


TINY = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
        "num_attention_heads": 2, "max_position_embeddings": 8, "bos_token_id": 18,
        "eos_token_id": 19, "pad_token_id": 19}
ROWS = ((18, 3, 0, 3, 19, 19, 19, 19), (18, 7, 2, 19, 19, 19, 19, 19), (18, 1, 2, 3, 4, 5, 6, 19))

CASES = {
    # Stable Diffusion 1: the end token also pads, and the config calls it 2 although it is 19.
    "stable_diffusion_1": Case(
        TINY | {"eos_token_id": 2, "bos_token_id": 0, "pad_token_id": 1}, ROWS),
    # Stable Diffusion 2: exact gelu, "!" (id 0) pads, and stands in a caption too.
    "stable_diffusion_2": Case(
        TINY | {"hidden_act": "gelu", "num_hidden_layers": 3, "num_attention_heads": 4,
                "eos_token_id": 2, "pad_token_id": 0, "initializer_factor": 0.5},
        ((18, 3, 0, 19, 0, 0), (18, 9, 2, 0, 19, 0))),
    # SDXL's second encoder: a projection, narrower than the tokens.
    "sdxl_second": Case(
        TINY | {"architectures": [WITH_PROJECTION], "projection_dim": 10, "hidden_act": "gelu",
                "eos_token_id": 2, "pad_token_id": 1}, ROWS),
    # A projection, wider than the tokens; ids above the end token: the first end token wins.
    "wide_projection": Case(
        TINY | {"architectures": [WITH_PROJECTION], "projection_dim": 40, "eos_token_id": 12},
        ((18, 3, 12, 19, 12, 4), (18, 12, 19, 19, 19, 19), (12, 1, 2, 3, 4, 5))),
    # No end token in the first row: the first place is pooled.
    "no_end_token": Case(TINY | {"eos_token_id": 17, "hidden_act": "gelu_new"},
                         ((18, 3, 4, 5), (18, 3, 17, 17))),
    "one_layer": Case(
        TINY | {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_act": "relu",
                "layer_norm_eps": 0.1, "initializer_range": 0.1}, ((18, 19),)),
    "eight_heads": Case(
        TINY | {"num_attention_heads": 8, "intermediate_size": 7, "hidden_act": "silu",
                "vocab_size": 33, "max_position_embeddings": 5}, ((18, 32, 31, 19, 19),)),
    "deep": Case(
        TINY | {"num_hidden_layers": 6, "hidden_size": 12, "num_attention_heads": 3,
                "hidden_act": "gelu_pytorch_tanh", "attention_dropout": 0.1,
                "max_position_embeddings": 12}, ((18, 5, 5, 5, 19), (18, 6, 5, 7, 19))),
    "one_token": Case(TINY | {"hidden_act": "swish"}, ((19,), (18,))),
}


def ids(case):
    """Return the rows of ids as an array, (B, N)."""
    return np.array(case.ids, np.int64)


def cotangents(case):
    """Return dhidden, dpooled and dpenultimate, in float64."""
    B, N = ids(case).shape
    D = case.config["hidden_size"]
    width = case.config["projection_dim"] if case.projected else D
    return {"hidden": draw("cotangent hidden", (B, N, D)),
            "pooled": draw("cotangent pooled", (B, width)),
            "penultimate": draw("cotangent penultimate", (B, N, D))}
