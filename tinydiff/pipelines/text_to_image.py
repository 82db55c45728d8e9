"""From a prompt to a picture: tokenizer, text encoder, U-Net, sampler, decoder.

With an autoencoder this is Stable Diffusion: the U-Net works on its latents, and the last of them
is decoded.  Without one the U-Net works on pixels, and nothing is left to decode.
"""
from pathlib import Path

import numpy as np

from tinydiff.backends.memory import keep_freed_memory
from tinydiff.backends.random import normal
from tinydiff.models.autoencoder import Autoencoder
from tinydiff.models.clip_text import CLIPText
from tinydiff.models.clip_vision import CLIPVision
from tinydiff.models.unet import UNet
from tinydiff.pictures import to_image
from tinydiff.pipelines.clip_guidance import ClipGuidance
from tinydiff.pipelines.denoiser import (
    Denoiser,
    RecordedNetwork,
    guided,
    timestep_of,
    timesteps_within,
)
from tinydiff.pipelines.folder import check_parts, parts_named, read_scheduler, write_parts
from tinydiff.pipelines.prompts import one_a_picture
from tinydiff.samplers import SAMPLERS, check_sampler
from tinydiff.text import Tokenizer

PARTS = {                               # the published index: part, library, class
    "vae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],        # or another of its schedulers
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
}
OPTIONAL = {"vae", "image_encoder"}
UNUSED = {"safety_checker", "feature_extractor"}      # in published folders; not needed to draw


class TextToImage:
    """A text-to-image diffusion model with all its parts.

    Parameters
    ----------
    unet : UNet
    text_encoder : CLIPText
    tokenizer : Tokenizer
    scheduler : SchedulerConfig
        The noise schedule, what the U-Net predicts, and the spacing of the steps.
    vae : Autoencoder, optional
        Decodes what the U-Net denoises; without it those are pictures.
    image_encoder : CLIPVision, optional
        The other half of the CLIP that `text_encoder` comes from; drawing does not need it,
        evaluation does.

    Raises
    ------
    ValueError
        If the U-Net and the autoencoder, or the pictures of the U-Net, do not fit each other.
    """

    def __init__(self, unet, text_encoder, tokenizer, scheduler, vae=None, image_encoder=None):
        channels = unet.config["in_channels"]
        if vae is not None and vae.config["latent_channels"] != channels:
            raise ValueError(f"the U-Net works on in_channels={channels}, the autoencoder's "
                             f"latents have latent_channels={vae.config['latent_channels']}")
        self.unet = unet
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self.vae = vae
        self.image_encoder = image_encoder
        self.recorded = None                              # see `to`

    @property
    def size(self):
        """Pixels per side of its pictures."""
        return self.unet.config["sample_size"] * (1 if self.vae is None else self.vae.factor)

    def __call__(self, prompt, *, count=1, steps=50, sampler=None, guidance=3.0, seed=0,
                 pictures=None, spacing=None, **own):
        """Draw pictures.

        Parameters
        ----------
        prompt : str or list of str
        count : int, default 1
            How many pictures of a single prompt.
        steps, sampler, guidance, seed, pictures, spacing, **own
            As for `steps`.

        Returns
        -------
        PIL.Image.Image, or a list of them
            A list where `prompt` is a list or `count` is above 1.
        """
        single = isinstance(prompt, str) and count == 1
        *_, last = self.steps(prompt, count=count, steps=steps, sampler=sampler,
                              guidance=guidance, seed=seed, pictures=pictures,
                              spacing=spacing, **own)
        images = [to_image(x) for x in self.decode(last.x_s)]
        return images[0] if single else images

    def steps(self, prompt, *, steps=50, sampler=None, guidance=3.0, seed=0, count=1,
              pictures=None, spacing=None, rescale=0.0, interval=None, clip_guidance=0.0,
              threshold=None, push=None, **own):
        """Yield one denoising step at a time, from pure noise to the pictures.

        Parameters
        ----------
        prompt : str or list of str
        steps : int, default 50
            Calls of the denoiser, 1 to T.
        sampler : str, optional
            A name of `tinydiff.samplers.SAMPLERS`; by default what the model was published with,
            which is "ddim" for those trained here.
        guidance : float, default 3
            Classifier-free guidance weight: 0 ignores the prompt, 1 follows it.
        seed : int, default 0
            Picture k of a seed is the same picture whatever the batch.
        count : int, default 1
            How many pictures of a single prompt.
        pictures : sequence of int, optional
            Which pictures of the seed to draw, one number a prompt; 0, 1, ... by default.
        spacing : str, optional
            How the steps divide the schedule; the model's own by default.
        rescale : float, default 0
            Takes back the contrast that guidance adds: `tinydiff.guidance.rescaled`.
        interval : (float, float), optional
            Guide only where sigma = noise / signal lies in it; elsewhere follow the prompt.
        clip_guidance : float, default 0
            Weight of the gradient of CLIP's similarity to the prompt, of models that have an image
            encoder: `tinydiff.pipelines.clip_guidance.ClipGuidance`.  CLIP itself was trained with
            a weight of up to 100.
        threshold : float, optional
            The `ratio` of `tinydiff.guidance.dynamic_threshold`; the model's own by default.
        push : callable, optional
            Guidance by any other gradient, such as a classifier's: see `Denoiser`.
        **own
            The sampler's own options, such as ``eta`` of "ddim".

        Yields
        ------
        Step
            ``t, s, x_t, x0_hat, eps_hat, x_s``; arrays (B, C, H, W): latents where there is an
            autoencoder, which `decode` and `decoded` turn into pictures, else pictures in [-1, 1].

        Raises
        ------
        ValueError
            Naming the argument that is wrong and what would be right.
        """
        prompts = one_a_picture(prompt, count)
        pictures = range(len(prompts)) if pictures is None else pictures
        if len(pictures) != len(prompts):
            raise ValueError(f"{len(pictures)} picture numbers for {len(prompts)} prompts")
        levels = self.scheduler.levels(steps, spacing)
        check_sampler(sampler or self.scheduler.sampler, own)
        if clip_guidance:
            if push is not None:
                raise ValueError("clip_guidance and push are both given: one gradient at a time")
            push = ClipGuidance(self, prompts, clip_guidance)
        return self.walk(self.encode(prompts), self.noise("x_T", 0, pictures, seed), levels,
                         sampler=sampler, guidance=guidance, seed=seed, pictures=pictures,
                         rescale=rescale, interval=interval, threshold=threshold, push=push, **own)

    def walk(self, text, x_t, levels, *, sampler=None, guidance=3.0, seed=0, pictures,
             rescale=0.0, interval=None, threshold=None, push=None, **own):
        """Yield the steps of a walk that starts anywhere: what `steps` and all editing do.

        Parameters
        ----------
        text : TextEncoding
            Of the prompts, one a picture: see `encode`.
        x_t : (B, C, H, W) ndarray
            Where it starts, at the first of `levels`.
        levels : sequence of Level
        sampler, guidance, seed, pictures, rescale, interval, threshold, push, **own
            As for `steps`.

        Yields
        ------
        Step
        """
        if sampler is None:
            sampler, own = self.scheduler.sampler, {**self.scheduler.options, **own}
        check_sampler(sampler, own)
        denoise = self.denoiser(text, guidance, rescale, interval, threshold, push)
        keep_freed_memory()
        return SAMPLERS[sampler](denoise, x_t, levels,
                                 noise=lambda k: self.noise("z", k, pictures, seed), **own)

    def denoiser(self, text, guidance=3.0, rescale=0.0, interval=None, threshold=None, push=None):
        """Return ``denoise(x_t, t)`` for encoded prompts, under guidance; see `steps`."""
        null, schedule = self.encode([""] * len(text.hidden)), self.scheduler.schedule
        within = None if interval is None else timesteps_within(schedule, interval)
        # The U-Net attends to the tokens; its class embedding, if any, takes the pooled text.
        predict = guided(self.recorded or self.unet, (text.hidden, text.pooled),
                         (null.hidden, null.pooled), guidance, rescale, within)
        return Denoiser(predict, self.scheduler.prediction_type,
                        clip=1.0 if self.scheduler.clip_sample else None,
                        threshold=self.scheduler.threshold if threshold is None else (threshold,),
                        push=push, timestep=timestep_of(schedule))

    def noise(self, purpose, step, pictures, seed):
        """Draw noise of the shape that the U-Net works on, (B, C, H, W), keyed by its names."""
        size, channels = self.unet.config["sample_size"], self.unet.config["in_channels"]
        if not isinstance(size, int) or (self.vae is None and channels not in (1, 3)):
            raise ValueError(f"this U-Net works on sample_size={size!r}, in_channels={channels}: "
                             "no size, or no picture of 1 or 3 channels and no autoencoder")
        like = self.unet.like()
        return normal((channels, size, size), seed, purpose, step, pictures, like.dtype, like)

    def encode(self, prompts):
        """Turn prompts into what the U-Net is told: a `TextEncoding`.

        All are padded to the tokenizer's length, and the padding is attended to as well,
        as in the published pipelines.
        """
        return self.text_encoder.forward(self.tokenizer.encode_batch(prompts))

    def latents(self, x):
        """Turn pictures (B, 3, S, S) in [-1, 1] into what the U-Net works on."""
        return x if self.vae is None else self.vae.to_latents(x)

    def decode(self, x):
        """Turn what the U-Net works on, (B, C, H, W), into pictures; they may leave [-1, 1]."""
        return x if self.vae is None else self.vae.to_pictures(x)

    def decoded(self, step):
        """Return a `Step` whose arrays are pictures: what a strip shows of one of `steps`.

        The noise of latents has no picture: it stays as it is.
        """
        if self.vae is None:
            return step
        B = len(step.x_t)
        x = self.decode(np.concatenate([step.x_t, step.x0_hat, step.x_s]))
        return step._replace(x_t=x[:B], x0_hat=x[B:2 * B], x_s=x[2 * B:])

    def to(self, device, graph=True):
        """Move all weights to "cpu" or "cuda"; the pictures are then drawn there.

        On a device each call of the U-Net is one CUDA graph, see `tinydiff.backends.graph`, unless
        `graph` is False: to step through, say.

        Returns
        -------
        TextToImage
            `self`.
        """
        for part in (self.unet, self.text_encoder, self.vae, self.image_encoder):
            if part is not None:
                part.to(device)
        self.recorded = RecordedNetwork(self.unet) if graph and device == "cuda" else None
        return self

    @classmethod
    def from_pretrained(cls, folder):
        """Open a folder in the published layout.

        Raises
        ------
        FileNotFoundError, ValueError
            Naming the part that is missing or damaged.
        """
        folder = Path(folder)
        named = parts_named(folder, UNUSED)
        check_parts(folder, named, PARTS, OPTIONAL, "a text-to-image model")
        return cls(UNet.from_pretrained(folder / "unet"),
                   CLIPText.from_pretrained(folder / "text_encoder"),
                   Tokenizer.from_pretrained(folder / "tokenizer"),
                   read_scheduler(folder),
                   *(model.from_pretrained(folder / part) if part in named else None
                     for part, model in (("vae", Autoencoder), ("image_encoder", CLIPVision))))

    def save_pretrained(self, folder, dtype="float16"):
        """Write all parts in the published layout, all or nothing.

        Raises
        ------
        ValueError
            If the folder holds anything else, which replacing it would lose.
        OSError
            If it cannot be written; what was there is intact then.
        """
        models = {"vae": self.vae, "unet": self.unet, "text_encoder": self.text_encoder,
                  "image_encoder": self.image_encoder}
        models = {part: model for part, model in models.items() if model is not None}
        index = {"_class_name": "TextToImage" if self.vae is None else "StableDiffusionPipeline",
                 **{part: name for part, name in PARTS.items()
                    if part in models or part not in OPTIONAL}}
        write_parts(folder, index, PARTS, models, self.scheduler, dtype,
                    {"tokenizer": self.tokenizer})
