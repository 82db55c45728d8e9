"""Evaluate a text-to-image model: whether it draws what the caption says."""
from typing import NamedTuple

import numpy as np

from tinydiff.backends.random import generator
from tinydiff.datasets import caption, load_emoji
from tinydiff.metrics import rank_of_truth, recall
from tinydiff.pictures import from_bytes


class Row(NamedTuple):
    """One line of the table.

    Fields: `what` was asked for, how many samples (`n`), among how many pictures (`among`),
    and the share of samples whose true picture was the nearest (`at_1`), or one of the five
    nearest (`at_5`).
    """

    what: str
    n: int
    among: int
    at_1: float
    at_5: float


def evaluate(pipe, count=200, batch=25, progress=iter, **options):
    """Draw pictures from captions, and look each one up among all real pictures.

    The captions read "LABEL, noto style"; the library is every untoned Noto picture, those
    held out from training among them; distance is the RMSE of RGB pixels.

    Parameters
    ----------
    pipe : TextToImage
    count : int, default 200
        Captions of each kind, drawn at random without repetition; fewer if there are fewer.
    batch : int, default 25
        Pictures drawn at once.
    progress : callable, optional
        Wraps the list of batches, e.g. ``tqdm``.
    **options
        `steps`, `sampler`, `guidance`, `seed`: as for ``pipe.steps``.

    Returns
    -------
    rows : list of Row
        Training captions, and the compositions that were never trained on.
    samples : dict of str to (B, C, S, S) ndarray
        What was drawn, by the name of the row.
    """
    library = load_emoji(pipe.unet.config["sample_size"], ["noto"], tones=False, split="all")
    kinds = {"training captions": [i for i, r in enumerate(library.records) if not r["held_out"]],
             "held-out captions": [i for i, r in enumerate(library.records) if r["held_out"]]}
    seed = options.get("seed", 0)
    work = []
    for what, indices in kinds.items():
        chosen = generator(seed, f"evaluate {what}").permutation(indices)[:count].tolist()
        work += [(what, chosen[k:k + batch]) for k in range(0, len(chosen), batch)]

    drawn = {what: [] for what in kinds}
    truth = {what: [] for what in kinds}
    for number, (what, indices) in enumerate(progress(work)):
        prompts = [caption(library.records[i]) for i in indices]
        pictures = range(number * batch, number * batch + len(indices))
        *_, last = pipe.steps(prompts, pictures=pictures, **options)
        drawn[what].append(last.x_s)
        truth[what] += indices
    samples = {what: np.concatenate(x) for what, x in drawn.items()}

    rows = []
    real = from_bytes(library.images)
    for what, x in samples.items():
        rank = rank_of_truth(np.clip(x, -1, 1), real, np.array(truth[what]))
        rows.append(Row(what, len(x), len(real), recall(rank, 1), recall(rank, 5)))
    return rows, samples
