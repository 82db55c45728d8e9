"""Training: a generator of steps, reproducible bit for bit, resumable at any step.

Every random number of a run is keyed by (seed, purpose, step, picture), so a run that
was interrupted and resumed is the same run.  A batch is cut into `shards`; the cut is part of
the recipe and the shards' gradients are added in order, so with two shards or more the result
does not depend on how many threads or cores there are.

Compiled kernels use every core by themselves: with them the shards take turns.  On the readable
path one thread works on each, on a replica of the model that shares the weights.
"""
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np

from tinydiff.backends.memory import keep_freed_memory
from tinydiff.backends.random import generator
from tinydiff.backends.table import mode
from tinydiff.ema import EMA
from tinydiff.optim import AdamW, clip_factor, warm_up_cosine


@dataclass(frozen=True)
class TrainConfig:
    """The table ``[train]`` of a recipe.

    Attributes
    ----------
    steps, batch_size : int
        Updates in all, and pictures in each.
    shards : int
        Into how many equal parts a batch is cut.
    lr, lr_end : float
        Peak and final learning rate, with `warm_up` updates of linear rise.
    clip_norm : float
        Largest joint norm of all gradients.
    ema_decay : float
    seed : int
    """

    steps: int
    batch_size: int = 64
    shards: int = 2
    lr: float = 1e-3
    lr_end: float = 1e-5
    warm_up: int = 100
    betas: tuple = (0.9, 0.99)
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0

    def __post_init__(self):
        for field in ("steps", "batch_size", "shards"):
            value = getattr(self, field)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"[train] {field} must be a whole number from 1, got {value!r}")
        if self.batch_size % self.shards:
            raise ValueError(f"[train] shards={self.shards} does not divide "
                             f"batch_size={self.batch_size}")


class TrainStep(NamedTuple):
    """What one update did.

    Fields: `step` (updates made so far), `loss` (mean over the batch), `grad_norm` (before
    clipping), `lr`, `seconds` (wall time of this update).
    """

    step: int
    loss: float
    grad_norm: float
    lr: float
    seconds: float


class Trainer:
    """The state of a run: the model, its average, the optimiser, and the step reached.

    Parameters
    ----------
    objective : object
        ``objective.model`` is the Module to train, ``objective.size`` the number of training
        pictures; ``objective.shard(model, step, pictures, share)`` runs forward and backward
        on those `pictures`, (position in the batch, index of the picture) pairs, for one update,
        adds `share` times the gradient of their mean loss to ``model`` and returns that loss.
        A run on disk (`tinydiff.runs.Run`) also saves ``objective.tokenizer``, draws
        ``objective.sample_sheet(model, samples)`` and, at the end, saves
        ``objective.pipeline(model)``.
    config : TrainConfig

    Attributes
    ----------
    step : int
        Updates made so far.
    sound : bool
        False while an update is half done, and once the loss is no longer finite: such a
        state is not worth saving.
    """

    def __init__(self, objective, config):
        self.objective = objective
        self.config = config
        self.model = objective.model
        self.ema = EMA(self.model, config.ema_decay)
        self.optimiser = AdamW(self.model.parameters(), config.betas,
                               weight_decay=config.weight_decay, ema=self.ema)
        self.step = 0
        self.sound = True

    def batch(self, step):
        """Return the pictures of update `step`: each epoch is a fresh permutation.

        Returns
        -------
        (batch_size,) int ndarray
        """
        size, B = self.objective.size, self.config.batch_size
        positions = np.arange(step * B, (step + 1) * B)
        epochs = {e: generator(self.config.seed, "order", e).permutation(size)
                  for e in np.unique(positions // size).tolist()}
        return np.array([epochs[p // size][p % size] for p in positions.tolist()])

    def state(self):
        """Return everything that resuming needs, as ``{name: array}``, and the step."""
        arrays = {f"model.{n}": p.value for n, p in self.model.parameters()}
        arrays |= {f"ema.{n}": p.value for n, p in self.ema.model.parameters()}
        arrays |= {f"optimiser.{n}": a for n, a in self.optimiser.state().items()}
        return arrays, self.step

    def load_state(self, arrays, step):
        """Go on from what `state` returned; the arrays must fit this model exactly."""
        def part(prefix):
            n = len(prefix)
            return {k[n:]: a for k, a in arrays.items() if k.startswith(prefix)}

        self.model.load_state(part("model."))
        self.ema.model.load_state(part("ema."))
        self.optimiser.load_state(part("optimiser."), step)
        self.step = step


def train(trainer):
    """Run the updates that are left, yielding after each one.

    Parameters
    ----------
    trainer : Trainer

    Yields
    ------
    TrainStep

    Raises
    ------
    FloatingPointError
        If the loss is no longer finite.
    """
    config, model = trainer.config, trainer.model
    keep_freed_memory()
    model.zero_grad()                       # an update that was interrupted may have left some
    replicas = [model.replica() for _ in range(config.shards)]
    one_blas_thread = _blas_limit(config.shards)
    with ThreadPoolExecutor(config.shards) as pool:
        while trainer.step < config.steps:
            start = time.perf_counter()
            with one_blas_thread():
                loss = _accumulate(trainer, replicas, pool)
                grad_norm = trainer.optimiser.grad_norm()
                lr = warm_up_cosine(trainer.step, config.steps, config.lr, config.warm_up,
                                    config.lr_end)
                trainer.sound = False
                if not (isfinite(loss) and isfinite(grad_norm)):
                    raise FloatingPointError(
                        f"loss {loss}, gradient norm {grad_norm} at step {trainer.step + 1}: "
                        "lower lr, or look at the data")
                trainer.optimiser.step(lr, clip_factor(grad_norm, config.clip_norm))
                model.zero_grad()
                trainer.step += 1
                trainer.sound = True
            yield TrainStep(trainer.step, loss, grad_norm, lr, time.perf_counter() - start)


def _accumulate(trainer, replicas, pool):
    """Run all shards of one batch, add their gradients up in order; return the mean loss."""
    share = 1 / len(replicas)
    pictures = list(enumerate(trainer.batch(trainer.step).tolist()))
    n = len(pictures) // len(replicas)
    shards = [pictures[i * n:(i + 1) * n] for i in range(len(replicas))]
    if mode() != "reference":
        return sum(trainer.objective.shard(trainer.model, trainer.step, shard, share)
                   for shard in shards) * share
    losses = list(pool.map(
        lambda replica, shard: trainer.objective.shard(replica, trainer.step, shard, share),
        replicas, shards))
    for replica in replicas:
        for (_, p), (_, own) in zip(trainer.model.parameters(), replica.parameters(), strict=True):
            p.accumulate(own.grad)
        replica.zero_grad()
    return sum(losses) * share


def _blas_limit(shards):
    """Return a context for one update: several threads of ours get one BLAS thread each."""
    if shards == 1:
        return nullcontext
    from threadpoolctl import ThreadpoolController
    controller = ThreadpoolController()
    return lambda: controller.limit(limits=1, user_api="blas")
