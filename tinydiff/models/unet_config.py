"""The published configuration of the U-Net: what is supported, and what is refused by name."""
from tinydiff.models.pretrained import check_config

SUPPORTED = {                           # field: the default of the published files
    "sample_size": None,
    "in_channels": 4,
    "out_channels": 4,
    "center_input_sample": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "only_cross_attention": False,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "dropout": 0.0,
    "act_fn": "silu",
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,            # the *number* of heads, by a historic slip of its name
    "num_attention_heads": None,        # the same number; wins where it is given
    "use_linear_projection": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "addition_embed_type": None,
    "addition_time_embed_dim": None,
    "projection_class_embeddings_input_dim": None,
    "resnet_time_scale_shift": "default",
    "upcast_attention": None,           # speaks of float16 arithmetic; nothing to do in float32
}

ONLY_DEFAULT = {                        # field: the one value that is accepted
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64,
}

CHOICES = {
    "mid_block_type": ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None),
    "class_embed_type": (None, "timestep", "projection"),
    "addition_embed_type": (None, "text_time"),
    "resnet_time_scale_shift": ("default", "scale_shift"),
    "act_fn": ("silu", "swish", "mish", "gelu", "relu"),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}

PER_BLOCK = ("only_cross_attention", "layers_per_block", "cross_attention_dim",
             "transformer_layers_per_block", "attention_head_dim")


def unet_config(given):
    """Complete and check the published fields of a U-Net.

    Parameters
    ----------
    given : dict
        Fields of a ``config.json``; the missing ones take the published defaults.

    Returns
    -------
    config : dict
        All supported fields; those of `PER_BLOCK` are lists with one entry a block.

    Raises
    ------
    ValueError
        Naming the field that is not supported, or lists of different lengths.
    """
    config = check_config(given, SUPPORTED, ONLY_DEFAULT, "UNet")
    for field, choices in CHOICES.items():
        value = config[field]
        for v in value if isinstance(value, (list, tuple)) else [value]:
            if v not in choices:
                known = ", ".join(map(str, choices))
                raise ValueError(f"UNet config: {field}={v!r} is not supported; known: {known}")

    n = len(config["block_out_channels"])
    if config["num_attention_heads"] is not None:
        config["attention_head_dim"] = config["num_attention_heads"]
        config["num_attention_heads"] = None
    for field in PER_BLOCK:
        value = config[field]
        config[field] = list(value) if isinstance(value, (list, tuple)) else [value] * n
    for field in ("down_block_types", "up_block_types", *PER_BLOCK):
        if len(config[field]) != n:
            raise ValueError(f"UNet config: {field} has {len(config[field])} entries, "
                             f"block_out_channels has {n}")
        if any(isinstance(value, (list, tuple)) for value in config[field]):
            raise ValueError(f"UNet config: {field}={config[field]} is not supported; "
                             "one value per block is")
    for channels, heads in zip(config["block_out_channels"], config["attention_head_dim"],
                               strict=True):
        if has_cross_attention(config) and not 0 < heads <= channels:
            raise ValueError(f"UNet config: attention_head_dim={heads} is the number of heads, "
                             f"which {channels} channels cannot be split into")
    needs_dim = config["class_embed_type"] == "projection" or config["addition_embed_type"]
    if needs_dim and config["projection_class_embeddings_input_dim"] is None:
        raise ValueError("UNet config: projection_class_embeddings_input_dim is missing")
    if config["addition_embed_type"] and config["addition_time_embed_dim"] is None:
        raise ValueError("UNet config: addition_time_embed_dim is missing")
    return config


def has_cross_attention(config):
    """Say whether any block of `config` attends to a text."""
    kinds = [*config["down_block_types"], config["mid_block_type"] or "", *config["up_block_types"]]
    return any("CrossAttn" in kind for kind in kinds)
