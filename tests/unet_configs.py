"""The U-Net configurations on which tinydiff and diffusers are compared, and their numbers.

Both sides run this file, so neither weights nor inputs need to be stored: every
tensor is a standard normal draw z of a Philox generator keyed by the CRC-32 of the
tensor's name, and then

=====================  ==========================================================
tensor                 value
=====================  ==========================================================
a norm's ``weight``    1 + 0.1 z
any ``bias``           0.1 z
any other ``weight``   z / sqrt(fan_in), fan_in = the product of shape[1:]
inputs, cotangents     z
=====================  ==========================================================

No tensor is near zero, so no branch of the network can hide behind a silent one.
"""
from dataclasses import dataclass
from hashlib import sha256
from zlib import crc32

import numpy as np


@dataclass(frozen=True)
class Case:
    """One configuration and the inputs it is run on.

    Attributes
    ----------
    config : dict
        What differs from the published defaults.
    size : (int, int)
        H and W of the picture.
    timestep : number or list
        One for the whole batch, or one per picture; may be fractional.
    labels : None, list or int
        Class labels (integers, or numbers for ``timestep``), or the width of a
        drawn class vector for ``projection``.
    tokens : int
        Length of the context; 0 for none.
    text_embeds : int
        Width of the drawn pooled text embedding; 0 for none.
    time_ids : list
        One row of size conditioning per picture.
    """

    config: dict
    size: tuple = (8, 8)
    timestep: object = (3, 871)
    labels: object = None
    tokens: int = 5
    text_embeds: int = 0
    time_ids: tuple = ()
    batch: int = 2


DOWN, UP = "DownBlock2D", "UpBlock2D"
CROSS_DOWN, CROSS_UP = "CrossAttnDownBlock2D", "CrossAttnUpBlock2D"
TINY = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4,
        "cross_attention_dim": 6, "attention_head_dim": 2,
        "down_block_types": [CROSS_DOWN, DOWN], "up_block_types": [UP, CROSS_UP]}

CASES = {
    # Stable Diffusion's own shape in small: the default block types, layers and heads.
    "stable_diffusion": Case(
        {"sample_size": 8, "block_out_channels": [8, 16, 16, 16], "norm_num_groups": 4,
         "cross_attention_dim": 6}, size=(8, 16)),
    # One level, three channels in and two out, one timestep for all, the activation's other name.
    "one_level": Case(
        TINY | {"sample_size": [8, 6], "in_channels": 3, "out_channels": 2, "act_fn": "swish",
                "block_out_channels": [8], "down_block_types": [CROSS_DOWN],
                "up_block_types": [CROSS_UP]}, size=(8, 6), timestep=12.5, batch=3),
    # Every field that may be one value per block is; up blocks read the lists backwards.
    "lists": Case(
        TINY | {"block_out_channels": [8, 16, 24], "layers_per_block": [1, 3, 2],
                "attention_head_dim": [2, 4, 3], "transformer_layers_per_block": [1, 2, 3],
                "cross_attention_dim": [6, 5, 6], "only_cross_attention": [False, False, True],
                "down_block_types": [CROSS_DOWN, DOWN, CROSS_DOWN],
                "up_block_types": [CROSS_UP, UP, CROSS_UP]}, timestep=(0.25, 640.5)),
    # Sizes that do not divide by 4: each upsampler must hit its skip's size.
    "odd_size": Case(
        TINY | {"block_out_channels": [8, 12, 16], "down_block_types": [DOWN, CROSS_DOWN, DOWN],
                "up_block_types": [UP, UP, CROSS_UP]}, size=(7, 10)),
    # The asymmetric downsampling halves 11 to 5 and 5 to 2: back up is not just a crop.
    "odd_size_without_padding": Case(
        TINY | {"block_out_channels": [8, 8, 16], "downsample_padding": 0, "act_fn": "relu",
                "down_block_types": [CROSS_DOWN, DOWN, DOWN],
                "up_block_types": [UP, UP, CROSS_UP]}, size=(11, 9)),
    "downsample_without_padding": Case(TINY | {"downsample_padding": 0, "flip_sin_to_cos": False}),
    # Three heads do not divide 8 or 16 channels: the transformer is narrower than its block.
    "linear_projection": Case(
        TINY | {"use_linear_projection": True, "attention_head_dim": 3,
                "transformer_layers_per_block": 2}),
    "ragged_heads": Case(TINY | {"attention_head_dim": 3, "only_cross_attention": True}),
    "scale_shift": Case(
        TINY | {"resnet_time_scale_shift": "scale_shift", "act_fn": "gelu", "norm_eps": 0.1,
                "norm_num_groups": 2, "mid_block_scale_factor": 1.75, "freq_shift": 1,
                "flip_sin_to_cos": False, "dropout": 0.5}),
    "class_table": Case(
        TINY | {"num_class_embeds": 5, "act_fn": "mish", "center_input_sample": True,
                "mid_block_type": "UNetMidBlock2D", "mid_block_scale_factor": 0.5,
                "down_block_types": [DOWN, DOWN], "up_block_types": [UP, UP]},
        labels=(4, 1), tokens=0),
    # Nine channels: the sinusoid of an odd width ends in a zero.
    "class_timestep": Case(
        TINY | {"class_embed_type": "timestep", "act_fn": "gelu", "norm_num_groups": 3,
                "block_out_channels": [9, 12], "attention_head_dim": 3, "freq_shift": 1},
        timestep=(17.75, 999.0), labels=(40.5, 7.0)),
    # Gelu in the blocks, yet silu in the class embedding; and no mid block.
    "class_projection": Case(
        TINY | {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 7,
                "act_fn": "gelu", "mid_block_type": None}, labels=7),
    # SDXL's shape in small.
    "text_time": Case(
        TINY | {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "act_fn": "mish",
                "projection_class_embeddings_input_dim": 5 + 6 * 4, "use_linear_projection": True,
                "block_out_channels": [8, 16, 16], "transformer_layers_per_block": [1, 1, 2],
                "attention_head_dim": [1, 2, 4], "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
                "up_block_types": [CROSS_UP, CROSS_UP, UP]},
        text_embeds=5, time_ids=((64, 48, 0, 3, 64, 64), (128, 96, 5.5, 0, 96, 128))),
    # Text, sizes and a class at once: three embeddings join the timestep's.
    "text_time_and_class": Case(
        TINY | {"addition_embed_type": "text_time", "addition_time_embed_dim": 5,
                "projection_class_embeddings_input_dim": 4 + 2 * 5, "num_class_embeds": 3,
                "flip_sin_to_cos": False, "freq_shift": 1},
        timestep=500, labels=(0, 2), text_embeds=4, time_ids=((8, 16), (2, 1))),
}


def draw(name, shape):
    """Return the standard normal draw that belongs to `name`, in float64."""
    generator = np.random.Generator(np.random.Philox(key=crc32(name.encode())))
    return generator.standard_normal(shape)


def weight(name, shape):
    """Return the value of the tensor `name`; see the table at the top of this file."""
    z = draw(name, shape)
    owner, kind = name.split(".")[-2:]
    if kind == "bias":
        return 0.1 * z
    if "norm" in owner:
        return 1 + 0.1 * z
    return z / np.sqrt(np.prod(shape[1:]))


def inputs(case):
    """Return the arguments of a U-Net's forward pass, in float64 (integers for a class table).

    Keys: sample, timestep, and where the case has them context, class_labels,
    text_embeds and time_ids.
    """
    B, widths = case.batch, case.config["cross_attention_dim"]
    D = widths if isinstance(widths, int) else widths[0]
    given = {"sample": draw("sample", (B, case.config.get("in_channels", 4), *case.size)),
             "timestep": case.timestep if np.isscalar(case.timestep) else np.array(case.timestep)}
    if case.tokens:
        given["context"] = draw("context", (B, case.tokens, D))
    if isinstance(case.labels, int):
        given["class_labels"] = draw("class_labels", (B, case.labels))
    elif case.labels:
        given["class_labels"] = np.array(case.labels)
    if case.text_embeds:
        given["text_embeds"] = draw("text_embeds", (B, case.text_embeds))
        given["time_ids"] = np.array(case.time_ids, np.float64)
    return given


def cotangent(case):
    """Return dy, the gradient of the loss ``sum(dy * output)`` in the output."""
    return draw("cotangent", (case.batch, case.config.get("out_channels", 4), *case.size))


def checksum(name, grad):
    """Return ``<grad, r> / |r|``: the gradient's component along a direction drawn for `name`."""
    r = draw(f"direction {name}", grad.shape)
    return float(np.vdot(r, grad) / np.linalg.norm(r))


# unet/config.json of three published models, as their folders have them; {} is every default.
STABLE_DIFFUSION_1_5 = {
    "_class_name": "UNet2DConditionModel",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": [CROSS_DOWN, CROSS_DOWN, CROSS_DOWN, DOWN],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": [UP, CROSS_UP, CROSS_UP, CROSS_UP],
}
STABLE_DIFFUSION_2_1 = STABLE_DIFFUSION_1_5 | {
    "_diffusers_version": "0.10.0.dev0",
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "dual_cross_attention": False,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "sample_size": 96,
    "upcast_attention": True,
    "use_linear_projection": True,
}
SDXL = STABLE_DIFFUSION_1_5 | {
    "_diffusers_version": "0.19.0.dev0",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": [5, 10, 20],
    "block_out_channels": [320, 640, 1280],
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": [DOWN, CROSS_DOWN, CROSS_DOWN],
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "mid_block_only_cross_attention": None,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": [1, 2, 10],
    "up_block_types": [CROSS_UP, CROSS_UP, UP],
    "upcast_attention": None,
    "use_linear_projection": True,
}
PUBLISHED = {"defaults": {}, "stable_diffusion_1_5": STABLE_DIFFUSION_1_5,
             "stable_diffusion_2_1": STABLE_DIFFUSION_2_1, "sdxl": SDXL}


def digest(shapes):
    """Return the SHA-256 of all the tensors' names and shapes, in whatever order they come."""
    lines = sorted(f"{name} {tuple(shape)}\n" for name, shape in shapes.items())
    return sha256("".join(lines).encode()).hexdigest()
