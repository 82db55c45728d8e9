"""What is timed: each workload as plain numbers and paths that both sides are given.

====  ==============================================================================
(a)   one training step of the shipped emoji U-Net, batch 64
(b)   the same for its autoencoder, batch 32
(c)   one prompt to one picture, 20 steps with guidance
(d)   one forward pass of Stable Diffusion 1.5's U-Net at 64x64 latents
(e)   each hot op of (a), (b) and (d) alone, forward and backward
(f)   peak memory of (a) and (d)
(g)   from import to the first picture of (c), in a fresh process
====  ==============================================================================
"""
from typing import NamedTuple

MODEL, RECIPE = "emoji", "emoji-64"     # the shipped model, and what it was trained by
PROMPT = "red heart, noto style"
AUTOENCODER_BATCH = 32
BATCH, STEPS, GUIDANCE, SEED = 64, 20, 3.0, 0

# The fields of the published file that differ from diffusers' defaults:
# stable-diffusion-v1-5/stable-diffusion-v1-5, unet/config.json.
STABLE_DIFFUSION = {"sample_size": 64, "cross_attention_dim": 768}
GIGABYTES = 4.5                         # weights and activations of one such network, in float32


class Workload(NamedTuple):
    """One thing to measure.

    Attributes
    ----------
    what : str
        Its row in the table.
    kind : {"train", "autoencoder", "sample", "forward", "op"}
        Which job of `tinydiff_side` and `torch_side` does it.
    spec : dict
        What the job is given; JSON.
    bound : float
        The two sides' results may differ by this share of the largest entry; more and they
        are not compared.
    gigabytes : float
        Memory that one side needs.
    pictures : bool
        Whether PyTorch's memory layout makes a difference.
    """

    what: str
    kind: str
    spec: dict
    bound: float
    gigabytes: float = 0.5
    pictures: bool = True


def train_step(shards=1):
    """Workload (a): the recipe's optimiser, a batch of made-up numbers; whole, as PyTorch has it.

    With more `shards` it is cut in so many parts: the readable path has a thread for each.
    """
    from tinydiff.jsonfile import read_object
    from tinydiff.recipes import load_recipe

    folder = _folder() / "unet"
    config = read_object(folder / "config.json")
    recipe = load_recipe(RECIPE, [])["unet"]["train"]
    size, channels = config["sample_size"], config["in_channels"]
    tokens = read_object(_folder() / "text_encoder" / "config.json")["max_position_embeddings"]
    return Workload(f"training step of {MODEL}, batch {BATCH}", "train", {
        "unet": str(folder),
        "inputs": {"x_t": [BATCH, channels, size, size],
                   "target": [BATCH, channels, size, size],
                   "context": [BATCH, tokens, config["cross_attention_dim"][0]]},
        "timestep": [997 * k % 1000 for k in range(BATCH)],
        "train": {"shards": shards, "lr": 1e-4, "betas": [0.9, 0.99],
                  "weight_decay": recipe["weight_decay"], "clip_norm": 1.0,
                  "ema_decay": recipe["ema_decay"]},
    }, bound=1e-3)


def autoencoder_step():
    """Workload (b): made-up weights and pictures, the recipe's loss."""
    from tinydiff.recipes import load_recipe

    recipe = load_recipe(RECIPE, [])
    side, own = recipe["data"]["size"], recipe["autoencoder"]
    config = {**own["model"], "sample_size": side, "in_channels": 3, "out_channels": 3}
    small = side >> (len(config["block_out_channels"]) - 1)
    return Workload(f"training step of {MODEL}'s autoencoder, batch {AUTOENCODER_BATCH}",
                    "autoencoder", {
        "config": config, "loss": own["loss"],
        "inputs": {"x": [AUTOENCODER_BATCH, 3, side, side],
                   "eps": [AUTOENCODER_BATCH, config["latent_channels"], small, small]},
        "train": {"shards": 1, "lr": 1e-4, "betas": [0.9, 0.99], "weight_decay": 0.01,
                  "clip_norm": 1.0, "ema_decay": own["train"]["ema_decay"]},
    }, bound=1e-3, gigabytes=2)


def sample(scratch):
    """Workload (c); the first noise is written into the folder `scratch`."""
    import numpy as np

    from tinydiff.pipelines import load

    pipe = load(MODEL)
    assert pipe.scheduler.prediction_type == "v_prediction" and not pipe.scheduler.clip_sample
    path = scratch / "x_T.npy"
    np.save(path, pipe.noise("x_T", 0, [0], SEED))
    return Workload(f"prompt to picture, {STEPS} steps, guidance {GUIDANCE:g}", "sample", {
        "model": MODEL, "prompt": PROMPT, "guidance": GUIDANCE, "seed": SEED,
        **{part: str(_folder() / part) for part in ("unet", "text_encoder", "vae")},
        "ids": pipe.tokenizer.encode_batch(["", PROMPT]).tolist(), "x_T": str(path),
        "levels": [list(level) for level in pipe.scheduler.levels(STEPS)],
    }, bound=2e-2)


def forward():
    """Workload (d)."""
    return Workload("forward of Stable Diffusion 1.5's U-Net, 64x64", "forward", {
        "config": STABLE_DIFFUSION, "x_t": [1, 4, 64, 64], "timestep": 500,
        "context": [1, 77, 768],
    }, bound=1e-3, gigabytes=GIGABYTES)


def _folder():
    from tinydiff.datasets import data_folder

    return data_folder() / "models" / MODEL


# ---- (e): the sizes of the layers of (a) and (d) ----

def _conv(B, C, O, size, kernel=3, stride=1):
    name = f"conv {kernel}x{kernel}{' stride 2' * (stride == 2)} {C}->{O} at {size}x{size}"
    return name, "conv2d", {"x": [B, C, size, size], "weight": [O, C, kernel, kernel],
                            "bias": [O]}, {"stride": stride, "padding": kernel // 2}


def _norm(B, C, groups, size):
    return (f"group norm + SiLU {C} at {size}x{size}", "group_norm_silu",
            {"x": [B, C, size, size], "weight": [C], "bias": [C]}, {"num_groups": groups})


def _layer_norm(B, N, D):
    return (f"layer norm {N} tokens of {D}", "layer_norm",
            {"x": [B, N, D], "weight": [D], "bias": [D]}, {})


def _geglu(B, N, D):
    return f"GEGLU {N} tokens, 2 x {D}", "geglu", {"x": [B, N, 2 * D]}, {}


def _attention(B, N, M, D, heads):
    kind = "self" if N == M else "cross"
    return (f"{kind}-attention {N} to {M} tokens of {D}, {heads} heads", "attention",
            {"q": [B, N, D], "k": [B, M, D], "v": [B, M, D]}, {"num_heads": heads})


def _linear(B, N, D, D_out):
    return (f"linear {D}->{D_out}, {N} tokens", "linear",
            {"x": [B, N, D], "weight": [D_out, D], "bias": [D_out]}, {})


def _emoji_layers(B=BATCH):
    return [_conv(B, 16, 96, 8), _conv(B, 96, 96, 8), _conv(B, 208, 96, 8),
            _conv(B, 96, 96, 8, stride=2), _conv(B, 112, 112, 4), _conv(B, 224, 112, 4),
            _conv(B, 208, 96, 8, kernel=1), _norm(B, 96, 16, 8), _norm(B, 208, 16, 8),
            _norm(B, 112, 16, 4), _layer_norm(B, 64, 96), _geglu(B, 64, 384),
            _attention(B, 64, 64, 96, 4), _attention(B, 64, 24, 96, 4),
            _linear(B, 64, 96, 96), _linear(B, 64, 96, 768), _linear(B, 64, 384, 96)]


def _autoencoder_layers(B=AUTOENCODER_BATCH):
    return [_conv(B, 3, 16, 64), _conv(B, 16, 16, 64), _conv(B, 16, 16, 64, stride=2),
            _conv(B, 32, 32, 32), _conv(B, 64, 64, 16), _conv(B, 80, 80, 8),
            _norm(B, 16, 8, 64), _norm(B, 32, 8, 32)]


def _stable_diffusion_layers(B=1):
    return [_conv(B, 4, 320, 64), _conv(B, 320, 320, 64), _conv(B, 960, 320, 64),
            _conv(B, 320, 320, 64, stride=2), _conv(B, 640, 640, 32), _conv(B, 1280, 640, 32),
            _conv(B, 1280, 1280, 16), _conv(B, 2560, 1280, 16), _conv(B, 1280, 1280, 8),
            _conv(B, 320, 320, 64, kernel=1),
            _norm(B, 320, 32, 64), _norm(B, 640, 32, 32), _norm(B, 1280, 32, 16),
            _layer_norm(B, 4096, 320), _geglu(B, 4096, 1280), _geglu(B, 1024, 2560),
            _attention(B, 4096, 4096, 320, 8), _attention(B, 1024, 1024, 640, 8),
            _attention(B, 4096, 77, 320, 8), _linear(B, 4096, 320, 2560),
            _linear(B, 1024, 640, 640), _linear(B, 256, 5120, 1280)]


def operations(large=True):
    """Workload (e): each op at the sizes of (a), (b) and (d), forward and backward.

    Parameters
    ----------
    large : bool, default True
        Whether to include the sizes of (d).

    Returns
    -------
    list of Workload
    """
    return [Workload(f"{network}: {name}, {direction}", "op",
                     {"op": op, "inputs": inputs, "options": options, "direction": direction},
                     bound=1e-3, pictures="conv" in op or "group" in op)
            for network, layers in (("a", _emoji_layers()), ("b", _autoencoder_layers()),
                                    ("d", _stable_diffusion_layers() if large else []))
            for name, op, inputs, options in layers
            for direction in ("forward", "backward")]
