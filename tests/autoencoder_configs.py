"""The autoencoder configurations on which tinydiff and diffusers are compared.

Weights, inputs and cotangents are those of unet_configs.py: drawn by name, on both sides.
"""
from dataclasses import dataclass

from unet_configs import draw


@dataclass(frozen=True)
class Case:
    """One configuration (what differs from the published defaults), and the pictures' H and W."""

    config: dict
    size: tuple = (8, 8)
    batch: int = 2


def blocks(*channels):
    """Return the three fields that have one entry a level."""
    return {"block_out_channels": list(channels),
            "down_block_types": ["DownEncoderBlock2D"] * len(channels),
            "up_block_types": ["UpDecoderBlock2D"] * len(channels)}


CASES = {
    # Stable Diffusion's own shape in small: four levels, two layers, both 1x1 convolutions.
    "stable_diffusion": Case(blocks(8, 8, 16, 16) | {
        "layers_per_block": 2, "norm_num_groups": 4, "sample_size": 16}, size=(16, 24)),
    "one_level": Case(blocks(8) | {"norm_num_groups": 2, "act_fn": "swish", "in_channels": 1,
                                   "out_channels": 2}, size=(5, 6), batch=3),
    "two_levels": Case(blocks(8, 12) | {"norm_num_groups": 4, "act_fn": "gelu",
                                        "latent_channels": 3, "scaling_factor": 0.5}),
    "no_quant_conv": Case(blocks(8, 16) | {"norm_num_groups": 4, "use_quant_conv": False,
                                           "act_fn": "mish"}),
    "no_post_quant_conv": Case(blocks(6, 12) | {"norm_num_groups": 3, "act_fn": "relu",
                                                "use_post_quant_conv": False,
                                                "force_upcast": False}, size=(6, 10)),
    "no_attention": Case(blocks(8, 8, 16) | {"norm_num_groups": 4, "latent_channels": 8,
                                             "mid_block_add_attention": False}),
}


def factor(case):
    """Pixels per latent."""
    return 2 ** (len(case.config["block_out_channels"]) - 1)


def inputs(case):
    """Return x, and the noise of the draw, in float64."""
    H, W = case.size
    c = case.config
    return {"x": draw("x", (case.batch, c.get("in_channels", 3), H, W)),
            "eps": draw("eps", (case.batch, c.get("latent_channels", 4),
                                H // factor(case), W // factor(case)))}


def cotangents(case):
    """Return the gradients of the loss in x_hat, mean and logvar."""
    H, W = case.size
    latents = inputs(case)["eps"].shape
    return {"x_hat": draw("dx_hat", (case.batch, case.config.get("out_channels", 3), H, W)),
            "mean": draw("dmean", latents), "logvar": draw("dlogvar", latents)}


# vae/config.json of Stable Diffusion 1.5, as its folder has it; {} is every default.
STABLE_DIFFUSION_1_5 = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.6.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 512,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
PUBLISHED = {"defaults": {}, "stable_diffusion_1_5": STABLE_DIFFUSION_1_5,
             "sdxl": STABLE_DIFFUSION_1_5 | {
                 "_diffusers_version": "0.20.0.dev0", "force_upcast": True, "sample_size": 1024,
                 "scaling_factor": 0.13025}}
