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
from math import inf, isfinite
from typing import NamedTuple

import numpy as np

from tinydiff.backends.device import follow, on_host, to_host
from tinydiff.backends.graph import Recorded
from tinydiff.backends.memory import keep_freed_memory
from tinydiff.backends.random import generator
from tinydiff.backends.table import mode
from tinydiff.ema import EMA
from tinydiff.nn import Dropout, Tape
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
    loss_scale : LossScale, optional
        For products in float16: gradients come multiplied by it, and an update whose gradients
        overflow is skipped.  The weights that are updated are float32 in any precision.
    graph : bool, default False
        Run forward and backward as one CUDA graph, where `graph_obstacle` finds nothing against it:
        an objective that divides its `shard` into ``inputs(model, step, pictures)`` and
        ``compute(model, *inputs, share, tape)``.

    Attributes
    ----------
    step : int
        Updates made so far, skipped ones included.
    ahead : Future or None
        With a graph: the inputs of the next update, being prepared while the device works.
    sound : bool
        False while an update is half done, and once the loss is no longer finite: such a
        state is not worth saving.
    """

    def __init__(self, objective, config, loss_scale=None, graph=False):
        self.objective = objective
        self.config = config
        self.loss_scale = loss_scale
        self.why_no_graph = graph_obstacle(objective, config) if graph else "not asked for"
        self.recorded = None if self.why_no_graph else Recorded(self._compute)
        self.ahead = None
        self.model = objective.model
        self.ema = EMA(self.model, config.ema_decay)
        self.optimiser = AdamW(self.model.parameters(), config.betas,
                               weight_decay=config.weight_decay, ema=self.ema)
        self.step = 0
        self.sound = True

    def _compute(self, *arrays):
        """Forward and backward with fresh gradients, on arrays alone."""
        self.model.zero_grad()
        return self.objective.compute(self.model, *arrays, Tape())

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
        if self.loss_scale is not None:
            arrays["loss_scale"] = np.array([*self.loss_scale.state(), self.optimiser.steps])
        return {name: to_host(array) for name, array in arrays.items()}, self.step

    def load_state(self, arrays, step):
        """Go on from what `state` returned; the arrays must fit this model exactly."""
        def part(prefix):
            n = len(prefix)
            return {k[n:]: a for k, a in arrays.items() if k.startswith(prefix)}

        self.model.load_state(part("model."))
        self.ema.model.load_state(part("ema."))
        self.optimiser.load_state(part("optimiser."), step)
        if self.loss_scale is not None and "loss_scale" in arrays:
            *scale, updates = arrays["loss_scale"].tolist()
            self.optimiser.steps = int(updates)           # without those that were skipped
            self.loss_scale.load_state(scale)
        self.step = step
        self.ahead = None


def graph_obstacle(objective, config):
    """Say why an update cannot be one CUDA graph, or return None."""
    if not hasattr(objective, "compute"):
        return f"{type(objective).__name__} does not part its inputs from what it computes"
    if config.shards > 1:
        return "gradients of several shards add up: --set train.shards=1"
    if any(isinstance(m, Dropout) and m.rate for _, m in objective.model.modules()):
        return "dropout draws new numbers at each update: set it to 0"
    return None


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
                loss = float(_accumulate(trainer, replicas, pool))
                lr = warm_up_cosine(trainer.step, config.steps, config.lr, config.warm_up,
                                    config.lr_end)
                trainer.sound = False
                grad_norm = _update(trainer, loss, lr)
                if not trainer.recorded:                  # a graph writes over them
                    model.zero_grad()
                trainer.step += 1
                trainer.sound = True
            yield TrainStep(trainer.step, loss, grad_norm, lr, time.perf_counter() - start)


def _update(trainer, loss, lr):
    """Make one update of the weights, or skip it where the loss scale was too large.

    Returns
    -------
    grad_norm : float
        Before clipping, and without the loss scale; infinite where the update was skipped.
    """
    scale, norm = trainer.loss_scale, trainer.optimiser.grad_norm()
    by = 1.0 if scale is None else scale.value
    usable = isfinite(norm) if scale is None else scale.update(norm)
    if not isfinite(loss) or not (usable or scale):
        raise FloatingPointError(f"loss {loss}, gradient norm {norm / by} at step "
                                 f"{trainer.step + 1}: lower lr, or look at the data")
    if usable:
        trainer.optimiser.step(lr, clip_factor(norm / by, trainer.config.clip_norm) / by)
    return norm / by if usable else inf


def _accumulate(trainer, replicas, pool):
    """Run all shards of one batch, add their gradients up in order; return the mean loss.

    The gradients are multiplied by the loss scale, where there is one.
    """
    share = 1 / len(replicas)
    scaled = share if trainer.loss_scale is None else share * trainer.loss_scale.value
    if trainer.recorded:
        return _replay(trainer, pool, scaled)
    pictures = list(enumerate(trainer.batch(trainer.step).tolist()))
    n = len(pictures) // len(replicas)
    shards = [pictures[i * n:(i + 1) * n] for i in range(len(replicas))]
    if not on_host(trainer.model.like()) or mode() != "reference":
        return sum(trainer.objective.shard(trainer.model, trainer.step, shard, scaled)
                   for shard in shards) * share
    losses = list(pool.map(
        lambda replica, shard: trainer.objective.shard(replica, trainer.step, shard, scaled),
        replicas, shards))
    for replica in replicas:
        for (_, p), (_, own) in zip(trainer.model.parameters(), replica.parameters(), strict=True):
            p.accumulate(own.grad)
        replica.zero_grad()
    return sum(losses) * share


def _replay(trainer, pool, scaled):
    """Run one batch as a graph; the host prepares the next while the device works on this one."""
    def inputs(step):
        return trainer.objective.inputs(trainer.model, step,
                                        list(enumerate(trainer.batch(step).tolist())))

    step = trainer.step
    arrays = trainer.ahead.result() if trainer.ahead else inputs(step)
    loss = trainer.recorded(*arrays, follow(np.array(scaled, np.float32), arrays[0]))
    # Not before the first replay: nothing else may use the device while a graph is recorded.
    trainer.ahead = pool.submit(inputs, step + 1) if step + 1 < trainer.config.steps else None
    return loss


def _blas_limit(shards):
    """Return a context for one update: several threads of ours get one BLAS thread each."""
    if shards == 1:
        return nullcontext
    from threadpoolctl import ThreadpoolController
    controller = ThreadpoolController()
    return lambda: controller.limit(limits=1, user_api="blas")
