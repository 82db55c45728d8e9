"""Train the U-Net of a latent diffusion model, between an autoencoder and a text encoder at rest.

Each update: latents and one caption of each picture, a noise level for each, the noise; the
network predicts; the error's gradient goes through the U-Net alone.

R. Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2021,
arXiv:2112.10752, Section 3.
"""
import hashlib
from typing import NamedTuple

import numpy as np

from tinydiff.backends.device import follow, to_host
from tinydiff.backends.random import generator, normal
from tinydiff.datasets import captions
from tinydiff.diffusion import Level, q_sample
from tinydiff.models.pretrained import build
from tinydiff.models.unet import UNet
from tinydiff.nn import Tape
from tinydiff.pictures import sheet
from tinydiff.pipelines.denoiser import network_timestep
from tinydiff.pipelines.text_to_image import TextToImage
from tinydiff.recipes.denoising import denoising_loss, spread_row, training_noise
from tinydiff.safetensors import read_safetensors, write_safetensors
from tinydiff.scheduler_config import SchedulerConfig


class Latents(NamedTuple):
    """What the autoencoder's encoder says of every training picture, scaled for the U-Net.

    Encoding is most of an update's work where it is done anew each time; and it always gives the
    same, so it is done once.  Both are (N, C, h, w) float32.
    """

    mean: object
    std: object


class LatentDiffusionObjective:
    """What an update of the U-Net computes; see `tinydiff.train.Trainer`.

    Parameters
    ----------
    recipe : dict
        The tables ``model``, ``scheduler``, ``loss`` and ``train``.
    pictures : Pictures
        The training pictures with their captions.
    clip : CLIP
        Its text half reads the captions.
    tokenizer : Tokenizer
    autoencoder : Autoencoder
    latents : Latents
        Of `pictures`, see `encode`.
    init : UNet, optional
        Start from its weights instead of at random.

    Raises
    ------
    ValueError
        Naming the field that is wrong.

    Notes
    -----
    The cosine schedule ends without signal: at its last level (and almost so at those before) the
    caption is all there is to go by, and v = -x0.  The min-SNR weight of an error in v,
    min(SNR, gamma) / (SNR + 1), is zero in that limit: it takes away just the levels at which
    captions are learnt and every sampling starts.  So the shipped recipes set ``min_snr_gamma`` to
    0, which weighs all errors in v alike: SNR + 1 times those in x0, never less than 1.
    """

    def __init__(self, recipe, pictures, clip, tokenizer, autoencoder, latents, init=None):
        self.pictures = pictures
        self.size = len(pictures)
        self.seed = recipe["train"].get("seed", 0)
        self.noise_there = False                          # True: drawn where the model is
        self.loss = recipe["loss"]
        self.batch_size = recipe["train"]["batch_size"]
        self.clip = clip
        self.tokenizer = tokenizer
        self.autoencoder = autoencoder
        self.latents = latents
        self.scheduler = SchedulerConfig.from_config(recipe["scheduler"])
        _, channels, side, _ = latents.mean.shape
        self.model = new_unet(recipe, channels, side, clip.text.config["hidden_size"])
        self.model.initialise(self.seed)
        if init is not None:
            self.model.load_state(init.state())

    def shard(self, model, step, pictures, share):
        """Forward and backward on some pictures of one batch; return their mean loss."""
        tape = Tape(generator(self.seed, "dropout", step, pictures[0][0]))
        return self.compute(model, *self.inputs(model, step, pictures), share, tape)

    def inputs(self, model, step, pictures):
        """Return what an update is made from, as arrays that live where the model does.

        Returns
        -------
        z0, eps : (B, C, h, w) ndarray
        hidden : (B, N, D) ndarray
        t, signal, noise : ndarray
            The fields of a batch of levels.
        """
        positions, indices = zip(*pictures, strict=True)
        z0 = follow(self.draw(list(indices), step, positions), model.like())     # (B, C, h, w)
        # No tape: the text encoder is at rest.  Padding is attended to, as in Stable Diffusion.
        text = self.clip.text.forward(self.tokenizer.encode_batch(
            [self.caption(step, k, i) for k, i in pictures]))
        level = self.scheduler.schedule.batch([self.time(step, k) for k in positions], z0)
        eps = training_noise(z0, self.seed, step, positions, self.noise_there)
        return z0, eps, text.hidden, *level

    def compute(self, model, z0, eps, hidden, t, signal, noise, share, tape):
        """Run forward and backward on arrays alone: what a CUDA graph can repeat."""
        level = Level(t, signal, noise)
        z_t = q_sample(z0, eps, signal, noise)
        prediction = model.forward(z_t, network_timestep(level), hidden, tape=tape)
        loss, dprediction = denoising_loss(prediction, self.scheduler.prediction_type, z0, eps,
                                           level, self.loss["min_snr_gamma"])
        model.backward(share * dprediction, tape, needs_dsample=False)
        return loss

    def draw(self, indices, step, positions):
        """Draw latents (B, C, h, w) of some pictures from what the encoder says of each."""
        mean, std = self.latents.mean[indices], self.latents.std[indices]
        return mean + std * normal(mean.shape[1:], self.seed, "posterior", step, positions,
                                   mean.dtype, mean)

    def caption(self, step, position, index):
        """One of the picture's captions, or the empty prompt, for guidance to contrast with."""
        rng = generator(self.seed, "caption", step, position)
        if rng.random() < self.loss["caption_dropout"]:
            return ""
        return captions(self.pictures.records[index], rng)

    def time(self, step, position):
        """Row of the schedule, 1..T, spread over the batch: see `spread_row`."""
        return spread_row(self.scheduler.schedule.T, self.loss["time_power"], self.seed, step,
                          position, self.batch_size)

    def pipeline(self, model):
        """Join `model`, the trained one or its average, with all other parts."""
        return TextToImage(model, self.clip.text, self.tokenizer, self.scheduler,
                           self.autoencoder, self.clip.vision)

    def sample_sheet(self, model, samples):
        """Draw the recipe's prompts with the table ``[samples]``; return a picture."""
        pipe = self.pipeline(model)
        *_, last = pipe.steps(samples["prompts"], steps=samples["steps"],
                              guidance=samples["guidance"])
        return sheet(pipe.decode(last.x_s), columns=8, scale=2)


def new_unet(recipe, channels, side, width):
    """Build the U-Net of a recipe, without weights.

    Parameters
    ----------
    recipe : dict
        Its table ``model``.
    channels, side : int
        Of the latents.
    width : int
        Of the text encoder's tokens.

    Raises
    ------
    ValueError
        Naming the field that is wrong.
    """
    unet = build(UNet, {**recipe["model"], "sample_size": side, "in_channels": channels,
                        "out_channels": channels, "cross_attention_dim": width}, "[unet.model]")
    if not unet.needs_context:
        raise ValueError("[unet.model] never looks at the text: give it a CrossAttn block")
    return unet


def encode(autoencoder, pictures, progress=iter, batch=64):
    """Encode all pictures.

    Parameters
    ----------
    autoencoder : Autoencoder
    pictures : Pictures
    progress : callable, optional
        Wraps the list of batches, e.g. ``tqdm``.
    batch : int, default 64

    Returns
    -------
    Latents
        On the host, wherever the autoencoder is.
    """
    scale, like = np.float32(autoencoder.config["scaling_factor"]), autoencoder.like()
    parts = []
    for k in progress(range(0, len(pictures), batch)):
        mean, logvar = autoencoder.encode(follow(pictures.array(slice(k, k + batch)), like))
        parts.append((to_host(scale * mean), to_host(scale * np.exp(logvar / 2))))
    return Latents(*map(np.concatenate, zip(*parts, strict=True)))


def cached_latents(path, autoencoder, pictures, progress=iter):
    """Read the latents from a file, or encode and write them there.

    The file says which pictures and weights it is of: latents of others are made anew.
    """
    digest = hashlib.sha256(np.ascontiguousarray(pictures.images).tobytes()
                            + repr(autoencoder.config["scaling_factor"]).encode())
    for name, p in autoencoder.parameters():
        digest.update(name.encode() + to_host(p.value).tobytes())
    made_of = np.frombuffer(digest.digest(), np.uint8)
    if path.is_file():
        arrays = read_safetensors(path)
        if np.array_equal(arrays["of"], made_of):
            return Latents(arrays["mean"], arrays["std"])
    latents = encode(autoencoder, pictures, progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_safetensors(path, {**latents._asdict(), "of": made_of})
    return latents
