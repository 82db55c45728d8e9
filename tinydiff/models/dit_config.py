"""The published configuration of DiT: what is supported, and what is refused by name."""
from tinydiff.models.dit_blocks import FEED_FORWARDS
from tinydiff.models.pretrained import check_config

SUPPORTED = {                           # field: the default of the published files
    "num_attention_heads": 16,
    "attention_head_dim": 72,           # the width of one head: here the name says what it is
    "in_channels": 4,
    "out_channels": None,               # in_channels; twice as many where it learns the variance
    "num_layers": 28,
    "dropout": 0.0,
    "norm_num_groups": 32,              # unused: there is no group normalisation
    "attention_bias": True,
    "sample_size": 32,
    "patch_size": 2,
    "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000,        # the number of classes
    "upcast_attention": False,          # speaks of float16 arithmetic; nothing to do in float32
    "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False,   # of the norm before the feed-forward layer alone,
    "norm_eps": 1e-5,                   # as is this one: the other two norms have 1e-6
}

ONLY_DEFAULT = {                        # of Transformer2DModel, by which older files go
    "num_vector_embeds": None,
    "cross_attention_dim": None,
    "only_cross_attention": False,
    "double_self_attention": False,
    "use_linear_projection": False,
    "attention_type": "default",
    "caption_channels": None,
    "interpolation_scale": None,
    "use_additional_conditions": None,
}

WHOLE = ("num_attention_heads", "attention_head_dim", "in_channels", "num_layers", "sample_size",
         "patch_size", "num_embeds_ada_norm")


def dit_config(given):
    """Complete and check the published fields of a DiT.

    Parameters
    ----------
    given : dict
        Fields of a ``config.json``; the missing ones take the published defaults.

    Returns
    -------
    config : dict
        All supported fields.

    Raises
    ------
    ValueError
        Naming the field that is not supported.
    """
    config = check_config(given, SUPPORTED, ONLY_DEFAULT, "DiT")
    for field, known in (("norm_type", ["ada_norm_zero"]), ("activation_fn", list(FEED_FORWARDS))):
        if config[field] not in known:
            raise ValueError(f"DiT config: {field}={config[field]!r} is not supported; "
                             f"known: {', '.join(known)}")
    out_channels = ["out_channels"] if config["out_channels"] is not None else []
    for field in (*WHOLE, *out_channels):
        if type(config[field]) is not int or config[field] < 1:
            raise ValueError(f"DiT config: {field}={config[field]!r} should be a whole number "
                             "from 1")
    heads, width = config["num_attention_heads"], config["attention_head_dim"]
    if heads * width % 4:
        raise ValueError(f"DiT config: num_attention_heads={heads} times attention_head_dim={width}"
                         " should be a multiple of 4: sines and cosines of two axes")
    if config["sample_size"] % config["patch_size"]:
        raise ValueError(f"DiT config: patch_size={config['patch_size']} does not divide "
                         f"sample_size={config['sample_size']}")
    return config
