"""Train a denoiser that is told the class of each picture: a U-Net or a DiT, on pixels.

Each update: clean pictures and their classes, some of them dropped; a noise level for each, the
noise; the network predicts; the error's gradient goes back through it.
"""
import numpy as np

from tinydiff.backends.device import follow
from tinydiff.backends.random import generator
from tinydiff.diffusion import Level, q_sample
from tinydiff.models.pretrained import build
from tinydiff.nn import Tape
from tinydiff.pictures import sheet
from tinydiff.pipelines.class_to_image import ClassToImage, denoiser_of
from tinydiff.pipelines.denoiser import network_timestep
from tinydiff.recipes.data import classes_of
from tinydiff.recipes.denoising import denoising_loss, spread_row, training_noise
from tinydiff.scheduler_config import SchedulerConfig


class ClassToImageObjective:
    """What an update of a "class_to_image" recipe computes; see `tinydiff.train.Trainer`.

    Parameters
    ----------
    recipe : dict
        The tables ``denoiser``, ``scheduler``, ``loss`` and ``train``.
    pictures : Pictures
        The training pictures, with the class of each.
    init : ClassToImage, optional
        Start from its weights instead of at random.

    Raises
    ------
    ValueError
        Naming the field that is wrong, or pictures without classes.
    """

    def __init__(self, recipe, pictures, init=None):
        self.pictures = pictures
        self.size = len(pictures)
        self.seed = recipe["train"].get("seed", 0)
        self.batch_size = recipe["train"].get("batch_size", 64)
        self.noise_there = False                          # True: drawn where the model is
        self.loss = recipe["loss"]
        self.classes, self.id2label = classes_of(pictures)
        self.null = len(self.id2label)
        self.scheduler = SchedulerConfig.from_config(recipe["scheduler"])
        _, channels, side, _ = pictures.images.shape
        self.model = new_denoiser(recipe["denoiser"], channels, side, self.null)
        self.model.initialise(self.seed)
        self.pipeline(self.model)                         # a denoiser of no use is found here
        if init is not None:
            self.model.load_state(init.denoiser.state())

    def shard(self, model, step, pictures, share):
        """Forward and backward on some pictures of one batch; return their mean loss."""
        tape = Tape(generator(self.seed, "dropout", step, pictures[0][0]))
        return self.compute(model, *self.inputs(model, step, pictures), share, tape)

    def inputs(self, model, step, pictures):
        """Return what an update is made from, as arrays that live where the model does.

        Returns
        -------
        x0, eps : (B, C, S, S) ndarray
        labels : (B,) int64 ndarray
        t, signal, noise : ndarray
            The fields of a batch of levels.
        """
        positions, indices = zip(*pictures, strict=True)
        x0 = follow(self.pictures.array(list(indices)), model.like())      # (B, C, S, S)
        labels = np.array([self.label(step, k, i) for k, i in pictures])
        level = self.scheduler.schedule.batch([self.time(step, k) for k in positions], x0)
        eps = training_noise(x0, self.seed, step, positions, self.noise_there)
        return x0, eps, follow(labels, x0), *level

    def compute(self, model, x0, eps, labels, t, signal, noise, share, tape):
        """Run forward and backward on arrays alone: what a CUDA graph can repeat."""
        level = Level(t, signal, noise)
        x_t = q_sample(x0, eps, signal, noise)
        prediction = model.forward(x_t, network_timestep(level), class_labels=labels, tape=tape)
        loss, dprediction = denoising_loss(prediction, self.scheduler.prediction_type, x0, eps,
                                           level, self.loss["min_snr_gamma"])
        model.backward(share * dprediction, tape, needs_dsample=False)
        return loss

    def label(self, step, position, index):
        """Return the picture's class, or the null class, for guidance to contrast with."""
        dropped = generator(self.seed, "label", step, position).random()
        return self.null if dropped < self.loss["label_dropout"] else self.classes[index]

    def time(self, step, position):
        """Row of the schedule, 1..T, spread over the batch: see `spread_row`."""
        return spread_row(self.scheduler.schedule.T, self.loss["time_power"], self.seed, step,
                          position, self.batch_size)

    def pipeline(self, model):
        """Wrap `model`, the trained one or its average, for sampling and saving."""
        return ClassToImage(model, self.scheduler, self.id2label)

    def sample_sheet(self, model, samples):
        """Draw ``count`` pictures of each class, a column a class; return a picture."""
        labels = list(self.id2label) * samples["count"]
        *_, last = self.pipeline(model).steps(labels, steps=samples["steps"],
                                              guidance=samples["guidance"])
        return sheet(last.x_s, columns=self.null, scale=2)


def new_denoiser(config, channels, side, classes):
    """Build the denoiser of a recipe, without weights.

    Parameters
    ----------
    config : dict
        The table ``[denoiser]``: published fields, and ``_class_name`` to say whose.
    channels, side : int
        Of the pictures.
    classes : int
        Without the null class, which it is told of in the way its kind has for that: one row more
        in the U-Net's table; the DiT's always has one more.

    Raises
    ------
    ValueError
        Naming the field that is wrong.
    """
    if "_class_name" not in config:
        raise ValueError("[denoiser] _class_name is missing: \"UNet2DConditionModel\" or "
                         "\"DiTTransformer2DModel\"")
    network = denoiser_of(config["_class_name"])
    told = ({"num_class_embeds": classes + 1} if network.__name__ == "UNet" else
            {"num_embeds_ada_norm": classes})
    return build(network, {**config, "sample_size": side, "in_channels": channels,
                           "out_channels": channels, **told}, "[denoiser]")
