"""From a class to a picture: a denoiser that is told a number, a schedule, and the numbers' names.

The denoiser is a U-Net or a DiT and works on pixels.  The folder is that of diffusers'
``DiTPipeline``, with ``unet`` in the place of ``transformer`` where it is one, and without an
autoencoder.
"""
from pathlib import Path

import numpy as np

from tinydiff import models
from tinydiff.backends.device import follow
from tinydiff.backends.memory import keep_freed_memory
from tinydiff.backends.random import normal
from tinydiff.jsonfile import read_object
from tinydiff.pictures import to_image
from tinydiff.pipelines.denoiser import (
    Denoiser,
    RecordedNetwork,
    guided,
    timestep_of,
    timesteps_within,
)
from tinydiff.pipelines.folder import check_parts, parts_named, read_scheduler, write_parts
from tinydiff.samplers import SAMPLERS, check_sampler

PARTS = {                               # the published index: part, library, class
    "unet": ["diffusers", "UNet2DConditionModel"],
    "transformer": ["diffusers", "DiTTransformer2DModel"],
    "scheduler": ["diffusers", "DDIMScheduler"],
}
CLASS_NAMES = ("ClassToImage", "DiTPipeline")           # what the index of such a folder says
MOST_NAMES = 20                                         # of the classes, in a message


def denoiser_of(class_name):
    """Return the class of network that published files call `class_name`.

    Raises
    ------
    ValueError
        Naming those there are.
    """
    known = {"UNet2DConditionModel": "UNet", "DiTTransformer2DModel": "DiT"}
    if class_name not in known:
        raise ValueError(f"_class_name={class_name!r}: a denoiser told a class is one of "
                         f"{', '.join(known)}")
    return getattr(models, known[class_name])


class ClassToImage:
    """A class-conditional diffusion model on pixels.

    Parameters
    ----------
    denoiser : UNet or DiT
        With one class more than `id2label` has names: the last, *null*, means "no class", and is
        what classifier-free guidance contrasts with.
    scheduler : SchedulerConfig
        The noise schedule, what the denoiser predicts, and the spacing of the steps.
    id2label : dict of int to str
        The name of each class, 0 to the number of classes - 1; a name may hold several, with
        commas between them, as the published ones do.

    Raises
    ------
    ValueError
        If the denoiser knows another number of classes, or is not told classes alone.
    """

    def __init__(self, denoiser, scheduler, id2label):
        self.denoiser = denoiser
        self.scheduler = scheduler
        self.id2label = {int(k): str(name) for k, name in id2label.items()}
        self.null = len(self.id2label)
        self.recorded = None                              # see `to`
        if sorted(self.id2label) != list(range(self.null)) or not self.null:
            raise ValueError("id2label should number the classes from 0 on, without gaps")
        if _classes(denoiser.config) != self.null + 1:
            raise ValueError(f"the denoiser knows {_classes(denoiser.config)} classes, no class "
                             f"among them; id2label names {self.null}, so {self.null + 1} are "
                             "needed")
        if type(denoiser.config["sample_size"]) is not int:
            raise ValueError(f"the denoiser's sample_size={denoiser.config['sample_size']!r}: a "
                             "number of pixels is needed")
        if getattr(denoiser, "needs_context", False):
            raise ValueError("this UNet attends to a text: a denoiser told a class alone has no "
                             "CrossAttn block")

    @property
    def size(self):
        """Pixels per side of its pictures."""
        return self.denoiser.config["sample_size"]

    @property
    def part(self):
        """The name of the denoiser's folder."""
        return "transformer" if _is_transformer(self.denoiser.config) else "unet"

    def numbers(self, labels, count=1):
        """Turn classes that a user named into an array of their numbers.

        Parameters
        ----------
        labels : str, int, or list of them
            A name of `id2label`, or a class's number.
        count : int, default 1
            How many pictures of a single class.

        Returns
        -------
        (B,) int64 ndarray

        Raises
        ------
        ValueError
            Naming the class that there is not, and those there are.
        """
        if not isinstance(count, int) or count < 1:
            raise ValueError(f"count={count!r}: a whole number from 1 is needed")
        single = isinstance(labels, str) or np.ndim(labels) == 0
        if not single and count > 1:
            raise ValueError("count is for a single class; repeat the classes in the list instead")
        labels = [labels] * count if single else list(labels)
        if not labels:
            raise ValueError("no class is asked for")
        known = {part.strip().lower(): k for k, names in self.id2label.items()
                 for part in (names, *names.split(","))}
        return np.array([self._number(label, known) for label in labels])

    def _number(self, label, known):
        k = known.get(label.strip().lower(), label) if isinstance(label, str) else label
        if not isinstance(k, (int, np.integer)) or k not in self.id2label:
            names = [self.id2label[i] for i in range(min(self.null, MOST_NAMES))]
            more = f" and {self.null - len(names)} more" if self.null > len(names) else ""
            raise ValueError(f"unknown class {label!r}; this model draws {', '.join(names)}{more}")
        return int(k)

    def __call__(self, labels, *, count=1, **options):
        """Draw pictures.

        Parameters
        ----------
        labels : str, int, or list of them
            Classes, by name or number.
        count : int, default 1
            How many pictures of a single class.
        **options
            As for `steps`.

        Returns
        -------
        PIL.Image.Image, or a list of them
            A list where `labels` is a list or `count` is above 1.
        """
        *_, last = self.steps(labels, count=count, **options)
        images = [to_image(x) for x in last.x_s]
        return images[0] if np.ndim(labels) == 0 and count == 1 else images

    def steps(self, labels, *, steps=50, sampler=None, guidance=1.5, seed=0, count=1,
              pictures=None, spacing=None, rescale=0.0, interval=None, threshold=None, push=None,
              **own):
        """Yield one denoising step at a time, from pure noise to the pictures.

        Parameters
        ----------
        labels : str, int, or list of them
            Classes, by name or number.
        steps : int, default 50
            Of the sampler, 1 to T.
        sampler : str, optional
            A name of `tinydiff.samplers.SAMPLERS`; the model's own if left out.
        guidance : float, default 1.5
            Classifier-free guidance weight: 0 ignores the class, 1 follows it.
        seed : int, default 0
            Picture k of a seed is the same picture whatever the batch.
        count, pictures, spacing, rescale, interval, threshold, push, **own
            As for `TextToImage.steps`.

        Yields
        ------
        Step
            ``t, s, x_t, x0_hat, eps_hat, x_s``; arrays (B, C, S, S), pictures in [-1, 1].

        Raises
        ------
        ValueError
            Naming the argument that is wrong and what would be right.
        """
        numbers = self.numbers(labels, count)
        pictures = range(len(numbers)) if pictures is None else pictures
        if len(pictures) != len(numbers):
            raise ValueError(f"{len(pictures)} picture numbers for {len(numbers)} classes")
        levels = self.scheduler.levels(steps, spacing)
        if sampler is None:
            sampler, own = self.scheduler.sampler, {**self.scheduler.options, **own}
        check_sampler(sampler, own)
        denoise = self.denoise(numbers, guidance, rescale, interval, threshold, push)
        x_T = self.noise("x_T", 0, pictures, seed)
        keep_freed_memory()
        return SAMPLERS[sampler](denoise, x_T, levels,
                                 noise=lambda k: self.noise("z", k, pictures, seed), **own)

    def denoise(self, numbers, guidance=1.0, rescale=0.0, interval=None, threshold=None, push=None):
        """Return ``denoise(x_t, t)`` for classes, a (B,) array of numbers, under guidance."""
        numbers, schedule = follow(numbers, self.denoiser.like()), self.scheduler.schedule
        within = None if interval is None else timesteps_within(schedule, interval)
        predict = guided(self.recorded or ByClass(self.denoiser), (numbers,),
                         (np.full_like(numbers, self.null),), guidance, rescale, within)
        return Denoiser(predict, self.scheduler.prediction_type,
                        clip=1.0 if self.scheduler.clip_sample else None,
                        threshold=self.scheduler.threshold if threshold is None else (threshold,),
                        push=push, timestep=timestep_of(schedule))

    def noise(self, purpose, step, pictures, seed):
        """Draw noise of the pictures' shape, (B, C, S, S), keyed by its names."""
        like = self.denoiser.like()
        shape = self.denoiser.config["in_channels"], self.size, self.size
        return normal(shape, seed, purpose, step, pictures, like.dtype, like)

    def decode(self, x):
        """Return `x`: the denoiser works on the pictures themselves."""
        return x

    def decoded(self, step):
        """Return `step`: its arrays are pictures."""
        return step

    def to(self, device, graph=True):
        """Move all weights to "cpu" or "cuda"; the pictures are then drawn there.

        On a device each call of the denoiser is one CUDA graph, see `tinydiff.backends.graph`,
        unless `graph` is False.

        Returns
        -------
        ClassToImage
            `self`.
        """
        self.denoiser.to(device)
        graph = graph and device == "cuda"
        self.recorded = RecordedNetwork(ByClass(self.denoiser)) if graph else None
        return self

    @classmethod
    def from_pretrained(cls, folder):
        """Open a folder: ``model_index.json`` with id2label, the denoiser, the scheduler.

        Raises
        ------
        FileNotFoundError, ValueError
            Naming the part that is missing or damaged.
        """
        folder = Path(folder)
        named = parts_named(folder, ("id2label",))
        part = "transformer" if "transformer" in named else "unet"
        check_parts(folder, named, (part, "scheduler"), (), "a class-to-image model")
        path = folder / "model_index.json"
        id2label = read_object(path).get("id2label")
        if not isinstance(id2label, dict) or not all(
                k.isdecimal() and isinstance(name, str) for k, name in id2label.items()):
            raise ValueError(f"{path}: id2label should name each class: {{\"0\": \"dress\", ...}}")
        network = denoiser_of(PARTS[part][1]).from_pretrained(folder / part)
        try:
            return cls(network, read_scheduler(folder), id2label)
        except ValueError as fault:
            raise ValueError(f"{folder}: {fault}") from fault

    def save_pretrained(self, folder, dtype="float16"):
        """Write all parts in that layout, all or nothing.

        Raises
        ------
        ValueError
            If the folder holds anything else, which replacing it would lose.
        OSError
            If it cannot be written; what was there is intact then.
        """
        index = {"_class_name": CLASS_NAMES[0],
                 **{part: PARTS[part] for part in (self.part, "scheduler")},
                 "id2label": {str(k): self.id2label[k] for k in range(self.null)}}
        write_parts(folder, index, PARTS, {self.part: self.denoiser}, self.scheduler, dtype)


class ByClass:
    """A denoiser that is called with classes in the third place, as `guided` calls it."""

    def __init__(self, network):
        self.network = network

    def forward(self, x_t, timestep, labels):
        """Predict (B, C, S, S); what a DiT says of the variances is left out."""
        prediction = self.network.forward(x_t, timestep, class_labels=labels)
        return prediction[:, :x_t.shape[1]]


def _is_transformer(config):
    return "num_embeds_ada_norm" in config


def _classes(config):
    """Return how many classes a denoiser knows, the null class among them; 0 for none."""
    if _is_transformer(config):
        return config["num_embeds_ada_norm"] + 1
    return 0 if config["class_embed_type"] else config["num_class_embeds"] or 0
