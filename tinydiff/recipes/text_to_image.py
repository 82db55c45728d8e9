"""Train a text-conditioned diffusion model: U-Net and text encoder together.

Each update: clean pictures and one caption of each, a noise level for each picture, the
noise; the network predicts; the error's gradient goes back through the U-Net and, by way of
the cross-attention and the pooled text, into the text encoder.
"""
from math import ceil

from tinydiff.backends.device import follow
from tinydiff.backends.random import generator
from tinydiff.datasets import captions
from tinydiff.diffusion import Level, q_sample
from tinydiff.models.clip_text import CLIPText
from tinydiff.models.pretrained import build
from tinydiff.models.unet import UNet
from tinydiff.nn import Module, Tape
from tinydiff.pictures import sheet
from tinydiff.pipelines.denoiser import network_timestep
from tinydiff.pipelines.text_to_image import TextToImage
from tinydiff.recipes.data import new_tokenizer
from tinydiff.recipes.denoising import denoising_loss, training_noise
from tinydiff.scheduler_config import SchedulerConfig


class TextAndPicture(Module):
    """The two networks that are trained together."""

    def __init__(self, text_encoder, unet):
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, x_t, timestep, ids, tape):
        """Predict for pictures (B, C, H, W) at timesteps (B,), told tokens (B, N)."""
        text = self.text_encoder.forward(ids, tape)                   # (B, N, D) and (B, D)
        return self.unet.forward(x_t, timestep, text.hidden, text.pooled, tape=tape)

    def backward(self, dy, tape):
        """Add to every parameter's gradient."""
        gradients = self.unet.backward(dy, tape, needs_dsample=False)
        self.text_encoder.backward(gradients.context, gradients.class_labels, tape=tape)


class TextToImageObjective:
    """What an update of a "text_to_image" recipe computes; see `tinydiff.train.Trainer`.

    Parameters
    ----------
    recipe : dict
        As `tinydiff.recipes.load_recipe` returns it.
    pictures : Pictures
        The training pictures with their captions.
    init : TextToImage, optional
        Start from this model's weights, with its tokenizer, instead of at random.
    tokenizer : Tokenizer, optional
        Use it, instead of training one on the captions: a resumed run reads as it did before.
    """

    def __init__(self, recipe, pictures, init=None, tokenizer=None):
        self.pictures = pictures
        self.size = len(pictures)
        self.seed = recipe["train"].get("seed", 0)
        self.noise_there = False                          # True: drawn where the model is
        self.loss = recipe["loss"]
        if init is not None:
            tokenizer = init.tokenizer
        new = new_pipeline(recipe, pictures, tokenizer)
        self.tokenizer = new.tokenizer
        self.scheduler = new.scheduler
        self.model = TextAndPicture(new.text_encoder, new.unet)
        if init is not None:
            self.model.load_state(TextAndPicture(init.text_encoder, init.unet).state())

    def shard(self, model, step, pictures, share):
        """Forward and backward on some pictures of one batch; return their mean loss."""
        tape = Tape(generator(self.seed, "dropout", step, pictures[0][0]))
        return self.compute(model, *self.inputs(model, step, pictures), share, tape)

    def inputs(self, model, step, pictures):
        """Return what an update is made from, as arrays that live where the model does.

        Returns
        -------
        x0, eps : (B, C, H, W) ndarray
        ids : (B, N) int ndarray
        t, signal, noise : ndarray
            The fields of a batch of levels.
        """
        positions, indices = zip(*pictures, strict=True)
        x0 = follow(self.pictures.array(list(indices)), model.like())      # (B, C, H, W)
        ids = self.tokenizer.encode_batch(
            [self.caption(step, k, i) for k, i in pictures])          # (B, N)
        level = self.scheduler.schedule.batch([self.time(step, k) for k in positions], x0)
        eps = training_noise(x0, self.seed, step, positions, self.noise_there)
        return x0, eps, follow(ids, x0), *level

    def compute(self, model, x0, eps, ids, t, signal, noise, share, tape):
        """Run forward and backward on arrays alone: what a CUDA graph can repeat."""
        level = Level(t, signal, noise)
        x_t = q_sample(x0, eps, signal, noise)
        prediction = model.forward(x_t, network_timestep(level), ids, tape)
        loss, dprediction = denoising_loss(prediction, self.scheduler.prediction_type, x0, eps,
                                           level, self.loss["min_snr_gamma"])
        model.backward(share * dprediction, tape)
        return loss

    def caption(self, step, position, index):
        """One of the picture's captions, or the empty prompt, for guidance to contrast with."""
        rng = generator(self.seed, "caption", step, position)
        if rng.random() < self.loss["caption_dropout"]:
            return ""
        return captions(self.pictures.records[index], rng)

    def time(self, step, position):
        """Row of the schedule, 1..T: uniform at time_power 1, noisier rows more often above."""
        u = 1 - generator(self.seed, "t", step, position).random()    # in (0, 1]
        return ceil(self.scheduler.schedule.T * u ** (1 / self.loss["time_power"]))

    def pipeline(self, model):
        """Wrap `model`, the trained one or its average, for sampling and saving."""
        return TextToImage(model.unet, model.text_encoder, self.tokenizer, self.scheduler)

    def sample_sheet(self, model, samples):
        """Draw the recipe's prompts with the table ``[samples]``; return a picture."""
        *_, last = self.pipeline(model).steps(
            samples["prompts"], steps=samples["steps"], guidance=samples["guidance"])
        return sheet(last.x_s, columns=8, scale=3)


def new_pipeline(recipe, pictures, tokenizer=None):
    """Build the model of a recipe: a tokenizer from the captions, networks at random."""
    seed = recipe["train"].get("seed", 0)
    words = recipe["tokenizer"]
    if tokenizer is None:
        tokenizer = new_tokenizer(pictures.records, words)
    text_encoder = build(CLIPText, {
        **recipe["text_encoder"], "vocab_size": len(tokenizer),
        "max_position_embeddings": words["max_length"],
        "bos_token_id": len(tokenizer) - 2, "eos_token_id": len(tokenizer) - 1}, "[text_encoder]")
    size, channels = pictures.images.shape[-1], pictures.images.shape[1]
    unet = build(UNet, {**recipe["unet"], "sample_size": size, "in_channels": channels,
                        "out_channels": channels}, "[unet]")
    if not unet.needs_context and unet.config["class_embed_type"] != "projection":
        raise ValueError("[unet] never looks at the text: give it a CrossAttn block, or "
                         "class_embed_type = \"projection\"")
    return TextToImage(unet.initialise(seed), text_encoder.initialise(seed), tokenizer,
                       SchedulerConfig.from_config(recipe["scheduler"]))
