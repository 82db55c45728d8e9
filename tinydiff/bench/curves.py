"""Whole training runs on both paths, to see whether rounding changes what is learnt.

    python -m tinydiff.bench.curves [--seeds N] [--steps N] [--out FILE]

A small U-Net learns the digits, some times from the same starts by the readable definitions and by
the kernels.  Two such runs see the same numbers and drift apart by rounding alone; the measure of
how far they may is how far apart two seeds end.  A minute on two cores.
"""
import argparse
from typing import NamedTuple

import numpy as np

from tinydiff.backends.random import generator, normal
from tinydiff.backends.table import use
from tinydiff.datasets import load_digits
from tinydiff.losses import mse
from tinydiff.models import UNet
from tinydiff.nn import Tape
from tinydiff.train import TrainConfig, Trainer, train

BATCH, LAST = 32, 0.25                  # the end of a run: its last quarter
MODES = ("reference", "fast")
CONFIG = {"sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
          "block_out_channels": [16, 24], "norm_num_groups": 4, "cross_attention_dim": 16,
          "down_block_types": ["DownBlock2D", "DownBlock2D"], "attention_head_dim": 2,
          "up_block_types": ["UpBlock2D", "UpBlock2D"],
          "mid_block_type": "UNetMidBlock2DCrossAttn"}


class Digits:
    """What a `Trainer` asks of an objective: find the noise in digits, cos(a) x0 + sin(a) eps.

    Parameters
    ----------
    seed : int
        Of the weights and of all noise.
    """

    def __init__(self, seed):
        self.seed = seed
        self.pictures = load_digits().images.astype(np.float32) / 127.5 - 1
        self.size = len(self.pictures)
        self.model = UNet(**CONFIG).initialise(seed)

    def shard(self, model, step, pictures, share):
        """Run forward and backward on some of a batch; return the mean loss."""
        positions, which = np.array(pictures).T
        x0 = self.pictures[which]
        eps = normal(x0.shape[1:], self.seed, "eps", step, positions.tolist())
        t = np.array([generator(self.seed, "t", step, k).random() for k in positions.tolist()])
        angle = (t * np.pi / 2).astype(np.float32)[:, None, None, None]
        tape = Tape()
        context = np.zeros((len(x0), 1, CONFIG["cross_attention_dim"]), np.float32)
        y = model.forward(np.cos(angle) * x0 + np.sin(angle) * eps, (1000 * t).astype(np.float32),
                          context, tape=tape)
        loss, dy = mse(y, eps)
        model.backward(share * dy, tape)
        return loss


class Curves(NamedTuple):
    """Losses, (seeds, steps), of the readable path and of the kernels.

    Attributes
    ----------
    reference, fast : ndarray
    """

    reference: np.ndarray
    fast: np.ndarray

    def ends(self):
        """Return the mean loss of the last quarter of each run: (seeds,) for each path."""
        last = -max(1, int(LAST * self.reference.shape[1]))
        return self.reference[:, last:].mean(axis=1), self.fast[:, last:].mean(axis=1)

    def drift(self):
        """Return how far the kernels move the end of a run, in units of what a seed moves it.

        The mean of fast - reference over the seeds, and its root mean square, both divided by the
        standard deviation of the readable runs' ends over the seeds.
        """
        reference, fast = self.ends()
        apart = (fast - reference) / reference.std(ddof=1)
        return abs(apart.mean()), np.sqrt((apart**2).mean())


def run(seeds=4, steps=300):
    """Train from each seed on both paths.

    Parameters
    ----------
    seeds, steps : int

    Returns
    -------
    Curves
    """
    losses = {mode: [] for mode in MODES}
    for seed in range(seeds):
        for mode in MODES:
            config = TrainConfig(steps=steps, batch_size=BATCH, shards=1, lr=2e-3, warm_up=20,
                                 seed=seed)
            with use(mode):
                losses[mode].append([s.loss for s in train(Trainer(Digits(seed), config))])
    return Curves(*(np.array(losses[mode]) for mode in MODES))


def plot(curves, out):
    """Draw the running means of all runs, and what lies between the paths.

    Parameters
    ----------
    curves : Curves
    out : path-like
        The name's ending decides the format.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    window = max(1, curves.reference.shape[1] // 15)
    for name, losses, colour, dash, width in (
            ("readable definitions", curves.reference, "#56B4E9", "-", 4),
            ("kernels", curves.fast, "#D55E00", "--", 1.2)):
        for k, loss in enumerate(losses):
            smooth = np.convolve(loss, np.full(window, 1 / window), mode="valid")
            axes.plot(np.arange(window, len(loss) + 1), smooth, dash, color=colour, linewidth=width,
                      label=None if k else f"{name}, {len(losses)} seeds")
    axes.set_yscale("log")
    axes.set_xlabel("step")
    axes.set_ylabel(f"loss, mean over {window} steps")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(out, dpi=110)


def main():
    """Train, print how far the two paths end apart, and draw the curves."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", metavar="FILE", help="draw the curves there")
    args = parser.parse_args()
    curves = run(args.seeds, args.steps)
    for seed, (a, b) in enumerate(zip(*curves.ends(), strict=True)):
        print(f"seed {seed}: readable path {a:.4f}, kernels {b:.4f}")
    mean, each = curves.drift()
    print(f"apart, in standard deviations between seeds: mean {mean:.2f}, "
          f"root mean square {each:.2f}")
    if args.out:
        plot(curves, args.out)


if __name__ == "__main__":
    main()
