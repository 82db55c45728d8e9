"""The published configuration of the autoencoder: what is supported, and what is refused."""
from tinydiff.models.pretrained import check_config

SUPPORTED = {                           # field: the default of the published files
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",),
    "up_block_types": ("UpDecoderBlock2D",),
    "block_out_channels": (64,),
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,                  # what it was trained at; any size that halves will do
    "scaling_factor": 0.18215,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
    "force_upcast": True,               # speaks of float16 arithmetic; nothing to do in float32
}

ONLY_DEFAULT = {                        # field: the one value that is accepted
    "shift_factor": None,               # Stable Diffusion's pipeline does not read them: a latent
    "latents_mean": None,               # shift is folded into the convolutions instead
    "latents_std": None,
}

ACTIVATIONS = ("silu", "swish", "mish", "gelu", "relu")


def autoencoder_config(given):
    """Complete and check the published fields of an autoencoder.

    Parameters
    ----------
    given : dict
        Fields of a ``config.json``; the missing ones take the published defaults, except that
        the block types may be left out: there is one of each.

    Returns
    -------
    config : dict
        All supported fields.

    Raises
    ------
    ValueError
        Naming the field that is not supported, or lists of different lengths.
    """
    config = check_config(given, SUPPORTED, ONLY_DEFAULT, "Autoencoder")
    channels = config["block_out_channels"]
    if not isinstance(channels, list) or not channels:
        raise ValueError(f"Autoencoder config: block_out_channels={channels!r} should be a list "
                         "with one number of channels a level")
    for field, only in (("down_block_types", "DownEncoderBlock2D"),
                        ("up_block_types", "UpDecoderBlock2D")):
        if field not in given:
            config[field] = [only] * len(channels)
        if config[field] != [only] * len(channels):
            raise ValueError(f"Autoencoder config: {field}={config[field]!r} is not supported; "
                             f"{only} once for each of the {len(channels)} levels is")
    if config["act_fn"] not in ACTIVATIONS:
        raise ValueError(f"Autoencoder config: act_fn={config['act_fn']!r} is not supported; "
                         f"known: {', '.join(ACTIVATIONS)}")
    if not config["scaling_factor"] > 0:
        raise ValueError(f"Autoencoder config: scaling_factor={config['scaling_factor']!r} "
                         "should be above 0")
    return config
