"""Train a classifier of pictures: for features to measure in, and for guidance.

Each update: pictures, moved and mirrored a little; some of them made noisy, and the network is told
how noisy; the cross-entropy's gradient goes back through it.
"""
import numpy as np

from tinydiff.backends.device import follow, to_host
from tinydiff.backends.random import generator
from tinydiff.cross_entropy import cross_entropy
from tinydiff.diffusion import CLEAN, Level, q_sample
from tinydiff.models.classifier import Classifier
from tinydiff.models.pretrained import build
from tinydiff.nn import Tape
from tinydiff.pictures import sheet
from tinydiff.pipelines.denoiser import network_timestep
from tinydiff.recipes.autoencoder import augment
from tinydiff.recipes.data import classes_of
from tinydiff.recipes.denoising import training_noise
from tinydiff.scheduler_config import SchedulerConfig

BATCH = 256                             # pictures classified at once, where nothing is learnt
HARDEST = 1000                          # held-out pictures among which a sheet looks


class ClassifierObjective:
    """What an update of a "classifier" recipe computes; see `tinydiff.train.Trainer`.

    Parameters
    ----------
    recipe : dict
        The tables ``model``, ``scheduler``, ``loss`` and ``train``.
    pictures : Pictures
        The training pictures, with the class of each.
    held_out : Pictures, optional
        What `metrics` and `sample_sheet` classify; without, the training pictures.

    Raises
    ------
    ValueError
        Naming the field that is wrong, or pictures without classes.
    """

    def __init__(self, recipe, pictures, held_out=None):
        self.pictures = pictures
        self.held_out = pictures if held_out is None else held_out
        self.size = len(pictures)
        self.seed = recipe["train"].get("seed", 0)
        self.noise_there = False                          # True: drawn where the model is
        self.loss = recipe["loss"]
        self.classes, id2label = classes_of(pictures)
        self.scheduler = SchedulerConfig.from_config(recipe["scheduler"])
        self.model = build(Classifier, {**recipe["model"], "num_classes": len(id2label),
                                        "in_channels": pictures.images.shape[1]}, "[model]")
        self.model.initialise(self.seed)

    def shard(self, model, step, pictures, share):
        """Forward and backward on some pictures of one batch; return their mean loss."""
        tape = Tape(generator(self.seed, "dropout", step, pictures[0][0]))
        return self.compute(model, *self.inputs(model, step, pictures), share, tape)

    def inputs(self, model, step, pictures):
        """Return what an update is made from, as arrays that live where the model does.

        Returns
        -------
        x, eps : (B, C, S, S) ndarray
        labels : (B,) int64 ndarray
        t, signal, noise : ndarray
            The fields of a batch of levels; clean ones among them.
        """
        positions, indices = zip(*pictures, strict=True)
        x = self.pictures.array(list(indices))                        # (B, C, S, S)
        if self.loss["augment"]:
            x = np.stack([augment(x_k, generator(self.seed, "augment", step, k))
                          for x_k, k in zip(x, positions, strict=True)])
        x = follow(x, model.like())
        level = self.scheduler.schedule.batch([self.time(step, k) for k in positions], x)
        eps = training_noise(x, self.seed, step, positions, self.noise_there)
        return x, eps, follow(self.classes[list(indices)], x), *level

    def compute(self, model, x, eps, labels, t, signal, noise, share, tape):
        """Run forward and backward on arrays alone: what a CUDA graph can repeat."""
        x_t = q_sample(x, eps, signal, noise)
        logits, _ = model.forward(x_t, network_timestep(Level(t, signal, noise)), tape)
        loss, dlogits = cross_entropy(logits, labels)
        model.backward(share * dlogits, tape=tape, needs_dsample=False)
        return loss

    def time(self, step, position):
        """Row of the schedule: 0, which is clean, or for a share of the pictures one of 1..T."""
        rng = generator(self.seed, "t", step, position)
        noisy = rng.random() < self.loss["noisy"]
        return int(rng.integers(1, self.scheduler.schedule.T, endpoint=True)) if noisy else 0

    def classify(self, model, pictures):
        """Return the logits (N, num_classes) of clean pictures, on the host."""
        like, clean = model.like(), network_timestep(CLEAN)
        batches = (pictures.array(slice(k, k + BATCH)) for k in range(0, len(pictures), BATCH))
        return np.concatenate([to_host(model.forward(follow(x, like), clean).logits)
                               for x in batches])

    def metrics(self, model):
        """Return numbers to print: the accuracy on held-out pictures."""
        right, _ = classes_of(self.held_out)
        found = self.classify(model, self.held_out).argmax(axis=1)
        return {"accuracy": float((found == right).mean())}

    def pipeline(self, model):
        """Return `model`, the trained one or its average: what is saved."""
        return model

    def sample_sheet(self, model, samples):
        """Show the ``count`` held-out pictures whose own class is the least likely; a picture."""
        some = type(self.held_out)(self.held_out.images[:HARDEST], self.held_out.records[:HARDEST])
        logits, (right, _) = self.classify(model, some), classes_of(self.held_out)
        behind = logits.max(axis=1) - logits[np.arange(len(some)), right[:len(some)]]
        hardest = np.argsort(-behind, kind="stable")[:samples["count"]]
        return sheet(some.array(hardest), min(10, len(hardest)), scale=2)
