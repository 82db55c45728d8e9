"""Room 4: a network that computes something else than the one that was trained."""
from contextlib import ExitStack, contextmanager
from functools import partial
from math import cos, sin
from unittest.mock import patch

import numpy as np
from scipy.special import expit

import tinydiff
from museum.frame import LINEAR, Exhibit, Pictures, emoji, off, replaced, start
from museum.guided import PROMPTS
from tinydiff import grids, ops
from tinydiff.models import Autoencoder, clip_text, transformer_blocks
from tinydiff.models.autoencoder import Gaussian
from tinydiff.models.clip_text import TextTransformer
from tinydiff.nn import ACTIVATIONS, GroupNorm
from tinydiff.oracle import FiniteData
from tinydiff.samplers import ddim_sample

# ---- the switches ----


def not_unscaled(self, latents, batch=64):
    return self.decode(latents)


def halves_exchanged(t, dim, flip_sin_to_cos=False, *args, **kwargs):
    return EMBEDDING(t, dim, not flip_sin_to_cos, *args, **kwargs)


EMBEDDING = ops.timestep_embedding
QUICK, EXACT = ACTIVATIONS["quick_gelu"], ACTIVATIONS["gelu"]
FORWARD, GROUP_NORM = TextTransformer.forward, ops.group_norm_forward


@contextmanager
def another_gelu():
    with ExitStack() as both:
        both.enter_context(replaced(QUICK[0], EXACT[0]))
        both.enter_context(patch.dict(ACTIVATIONS, quick_gelu=EXACT))
        yield


def default_epsilon(num_groups, channels, eps=1e-5):
    return GroupNorm(num_groups, channels)


def padding_masked(self, ids, *tape):
    """Close the padding, what comes after the end token, to every reader."""
    keep = np.arange(ids.shape[1]) <= self.end_place(ids)[:, None]    # (B, N)
    closed = np.where(keep, 0.0, -np.inf)[:, None, None]              # (B, 1, 1, N)
    causal = clip_text.causal_mask
    with patch.object(clip_text, "causal_mask",
                      lambda N, dtype, like: (causal(N, dtype) + closed).astype(dtype)):
        return FORWARD(self, ids, *tape)


def variance_in_half(x, weight, bias, num_groups, eps=1e-5):
    """Mean and variance, E[x^2] - E[x]^2, in float16, which ends at 65504."""
    half = x.reshape(len(x), num_groups, -1).astype(np.float16)
    mean = half.mean(axis=2, keepdims=True)
    square = (half * half).mean(axis=2, keepdims=True)
    y = (half - mean) / np.sqrt(square - mean * mean + np.float16(eps))
    scale = (slice(None), *(None,) * (x.ndim - 2))
    y = weight[scale] * y.reshape(x.shape).astype(x.dtype) + bias[scale]
    return y, GROUP_NORM(x, weight, bias, num_groups, eps)[1]


# ---- the pictures ----


class Plain(Autoencoder):
    """An autoencoder whose latents are the pixels, so that only the scale is left of it."""

    def encode(self, x):
        return Gaussian(x, None)

    def decode(self, z):
        return z


def through_latents():
    model = Plain(block_out_channels=[8], norm_num_groups=4).initialise(seed=0)
    data = FiniteData(model.to_latents(emoji().pictures))
    *_, last = ddim_sample(data, start(), grids.levels(LINEAR, 30))
    pictures = model.to_pictures(last.x_s)
    return Pictures(pictures), off(pictures, emoji().pictures)


def shipped(error):
    """The shipped model, opened anew, on four prompts."""
    pipe = tinydiff.load("emoji")
    *_, last = pipe.steps(PROMPTS, steps=10, guidance=3.0, seed=0)
    return Pictures(pipe.decoded(last).x_s), float(error(pipe))


def of_embedding(pipe):
    frequency = [10000 ** (-i / 4) for i in range(4)]
    want = [f(500 * w) for f in (cos, sin) for w in frequency]
    return np.abs(ops.timestep_embedding(np.array([500]), 8, True, 0) - want).max()


def of_gelu(pipe):
    x = np.linspace(-6, 6, 1001)
    return np.abs(ops.quick_gelu_forward(x)[0] - x * expit(1.702 * x)).max()


def of_epsilon(pipe):
    """Read epsilon off the norm's output: +-a becomes +-a / sqrt(a^2 + epsilon)."""
    norm = transformer_blocks.Transformer2D(
        4, 4, 1, num_layers=1, num_groups=2, use_linear_projection=False,
        only_cross_attention=False).initialise(0, np.float64).norm
    a = 1e-3
    x = a * np.array([1.0, -1.0, 1.0, -1.0]).reshape(1, 4, 1, 1)
    return abs(norm.forward(x)[0, 0, 0, 0] - a / np.sqrt(a**2 + 1e-6))


def of_padding(pipe):
    """What a causal encoder says of a place does not depend on where the row was cut off."""
    ids = pipe.tokenizer.encode_batch(PROMPTS[:1])
    cut = FORWARD(pipe.text_encoder.text_model, ids[:, :-2]).hidden
    return np.abs(pipe.text_encoder.forward(ids).hidden[:, :-2] - cut).max()


def large_activations():
    """Pictures of 1000 times the size through a normalisation, and back."""
    x = 1000 * emoji().pictures[:4]
    y, _ = ops.group_norm_forward(x, np.ones(3), np.zeros(3), 1)
    mean, std = x.mean(axis=(1, 2, 3), keepdims=True), x.std(axis=(1, 2, 3), keepdims=True)
    pictures = (y * std + mean) / 1000
    return Pictures(pictures), off(pictures, emoji().pictures)


ROOM = [
    Exhibit(
        "not_unscaled", "Latents that keep their scale",
        "The autoencoder's latents are scaled to variance 1 for the diffusion model, and must be "
        "unscaled before they are decoded. Without that the decoder sees a fifth of the contrast.",
        "diffusers' unconditional latent diffusion "
        "([#5166](https://github.com/huggingface/diffusers/issues/5166)), MONAI "
        "([#214](https://github.com/Project-MONAI/GenerativeModels/pull/214)).",
        "pictures = vae.decode(latents)",
        "pictures = vae.decode(latents / scaling_factor)",
        partial(patch.object, Autoencoder, "to_pictures", not_unscaled), through_latents,
        "distance of the worst picture to the nearest emoji, root mean square",
        "test_autoencoder.py::test_latents_are_scaled_and_pictures_do_not_depend_on_their_batch"),
    Exhibit(
        "halves_exchanged", "Sines before cosines",
        "Published U-Nets want the cosines of the timestep first, the formula has the sines first. "
        "All shapes fit. The network hears of another time than it is.",
        "diffusers' Flax U-Net ([#1369](https://github.com/huggingface/diffusers/pull/1369)), "
        "and an example of flashinfer, its output off by 37 % "
        "([#3819](https://github.com/flashinfer-ai/flashinfer/pull/3819)).",
        "emb = np.concatenate([np.sin(angle), np.cos(angle)], axis=1)",
        "emb = np.concatenate([np.cos(angle), np.sin(angle)], axis=1)",
        partial(replaced, EMBEDDING, halves_exchanged), partial(shipped, of_embedding),
        "largest difference of the embedding of t = 500 from its formula",
        "test_ops_timestep.py::test_embedding_is_the_published_formula", (32, True, 0)),
    Exhibit(
        "another_gelu", "Another GELU",
        "CLIP was trained with x sigmoid(1.702 x), which its files call `quick_gelu`. With the "
        "exact GELU the text says nearly the same, and the pictures change a little.",
        "OpenCLIP's models of another name on weights that began as OpenAI's "
        "([#771](https://github.com/mlfoundations/open_clip/issues/771)).",
        "act = gelu",
        "act = quick_gelu",
        another_gelu, partial(shipped, of_gelu),
        "largest difference of the function from its formula",
        "test_ops_activations.py::test_values_are_the_definition", ("quick_gelu",)),
    Exhibit(
        "default_epsilon", "A framework's default epsilon",
        "The normalisation before the transformer adds 1e-6 to the variance, all others 1e-5. Left "
        "to the default, it changes a picture by less than a hundredth of a grey level.",
        "MLX's Stable Diffusion "
        "([#1434](https://github.com/ml-explore/mlx-examples/issues/1434)).",
        "self.norm = GroupNorm(num_groups, channels)",
        "self.norm = GroupNorm(num_groups, channels, eps=1e-6)",
        partial(patch.object, transformer_blocks, "GroupNorm", default_epsilon),
        partial(shipped, of_epsilon),
        "difference of the normalised +-0.001 from its formula",
        "test_unet.py::test_each_norm_adds_the_epsilon_that_was_published"),
    Exhibit(
        "padding_masked", "Padding that may not be read",
        "Prompts are padded to one length. To mask the padding looks like the careful thing to do; "
        "but the U-Net was trained on what the encoder makes of the padding, and reads it.",
        "MosaicML's training code "
        "([#147](https://github.com/mosaicml/diffusion/pull/147)): the mask was passed when "
        "drawing and not in training.",
        "hidden = encoder(ids, causal_mask + padding_mask)",
        "hidden = encoder(ids, causal_mask)",
        partial(patch.object, TextTransformer, "forward", padding_masked),
        partial(shipped, of_padding),
        "largest difference of a padded row from what the causal encoder says",
        "test_clip_text.py::test_padding_is_read_and_only_what_comes_later_is_not"),
    Exhibit(
        "variance_in_half", "Black pictures from half precision",
        "Activations reach 1000, and float16 ends at 65504: their squares are infinite. The "
        "variance is infinity less infinity, the picture NaN.",
        "the autoencoder of SDXL in half precision, under many titles, such as "
        "[SD.Next #3209](https://github.com/vladmandic/sdnext/issues/3209).",
        "var = (x * x).mean() - x.mean() ** 2",
        "var = np.square(x.astype(np.float32) - mean).mean()",
        partial(replaced, GROUP_NORM, variance_in_half), large_activations,
        "infinite, where there is no picture; else that to the nearest emoji, root mean square",
        "test_ops_norm.py::test_group_norm_is_its_definition"),
]
