"""Evaluate a text-to-image model: whether it draws what the caption says, and as real ones look.

Pictures are drawn from captions: some that it was trained on, the compositions that no part of it
has ever seen, and shapes in colours that do not exist in any picture.  Every figure comes with its
n and, where there is one, with what real pictures score in place of the drawn ones.
"""
from typing import Any, NamedTuple

import numpy as np

from tinydiff.backends.device import to_host
from tinydiff.backends.random import generator
from tinydiff.datasets import STYLES, caption, load_emoji
from tinydiff.metrics import (
    colour_distance,
    drawn,
    frechet_distance,
    kernel_distance,
    match_rank,
    mean_lab,
    nearest_rmse,
    overlap,
    psnr,
    rank_of_truth,
    recall,
    rmse,
)
from tinydiff.pictures import from_bytes
from tinydiff.pipelines import ClipEncoder

COPY = 0.05             # RMSE of pixels in [0, 1] below which a sample is a copy of a picture
SAME_COLOUR = 20.0      # CIELAB distance of mean colours; those of the pack's hearts lie 27 apart
SAME_SHAPE = 0.9        # overlap of what is drawn; the pack's circle and square have 0.81
NEW_COLOURS = ("pink", "grey", "light blue")            # of hearts alone
SHAPES = ("circle", "square")
SEEDS = 8                                               # pictures of each of these six
TRAINING, NEW = "training captions", "colours x shapes that do not exist"


class Setting(NamedTuple):
    """How pictures are drawn: the number of steps and the guidance weight."""

    steps: int
    guidance: float


class Row(NamedTuple):
    """One figure.

    Fields: the `metric`, the captions it is `of`, the `setting` (None where nothing is drawn), the
    `value`, from `n` samples, `among` so many, its 95 % `margin`, and what `real` pictures score.
    """

    metric: str
    of: str
    setting: Any
    value: float
    n: int
    among: int | None = None
    margin: float | None = None
    real: float | None = None


class Captions(NamedTuple):
    """What is asked for: `prompts`, and `truth`, the index of each one's picture in the library."""

    prompts: list
    truth: Any = None


def evaluate(pipe, settings, count=200, library=None, seed=0, batch=25, progress=iter, **options):
    """Draw pictures from captions at each setting, and measure them.

    Parameters
    ----------
    pipe : TextToImage
    settings : list of Setting
    count : int, default 200
        Captions of each kind, at most.
    library : Pictures, optional
        All pictures, those too that were held out; the emoji pack by default.
    seed : int, default 0
    batch : int, default 25
        Pictures drawn at once.
    progress : callable, optional
        Wraps the list of batches, e.g. ``tqdm``.
    **options
        Further ones of ``pipe.steps``, such as ``sampler``.

    Returns
    -------
    rows : list of Row
    samples : dict
        ``samples[setting][what]`` is what was drawn, (B, C, S, S).
    """
    if library is None:
        # A model that works on pixels knows one style only.
        library = load_emoji(pipe.size, STYLES if pipe.vae else ["noto"], tones=bool(pipe.vae),
                             split="all")
    judge = Judge(pipe, library)
    asked = captions_of(library, count, seed)
    work = [(setting, what, k) for setting in settings for what in asked
            for k in range(0, len(asked[what].prompts), batch)]
    offset = dict(zip(asked, np.cumsum([0] + [len(a.prompts) for a in asked.values()]).tolist(),
                      strict=False))
    parts = {}
    for setting, what, k in progress(work):
        prompts = asked[what].prompts[k:k + batch]
        numbers = range(offset[what] + k, offset[what] + k + len(prompts))   # each its own noise
        *_, last = pipe.steps(prompts, pictures=numbers, seed=seed, **setting._asdict(), **options)
        x = np.clip(to_host(pipe.decode(last.x_s)), -1, 1)
        parts.setdefault(setting, {}).setdefault(what, []).append(x)
    samples = {setting: {what: np.concatenate(x) for what, x in own.items()}
               for setting, own in parts.items()}

    rows = judge.reconstruction()
    for setting, own in samples.items():
        for what, x in own.items():
            rows += [row._replace(setting=setting) for row in judge.rows(what, asked[what], x)]
    return rows, samples


def captions_of(library, count, seed):
    """Choose what to ask for.

    Parameters
    ----------
    library : Pictures
    count : int
    seed : int

    Returns
    -------
    captions : dict of str to Captions
        Of training, of each reason for which pictures were held out, and `NEW` where the pack's
        hearts are here to tell the colours.
    """
    kinds = {TRAINING: [i for i, r in enumerate(library.records) if not r["held_out"]]}
    for i, record in enumerate(library.records):
        if record["held_out"]:
            kinds.setdefault(f"held out: {record['held_out']}", []).append(i)
    asked = {}
    for what, indices in kinds.items():
        truth = generator(seed, f"evaluate {what}").permutation(indices)[:count]
        asked[what] = Captions([caption(library.records[i]) for i in truth], truth)
    if {f"{c} heart, noto style" for c in NEW_COLOURS} <= set(map(caption, library.records)):
        asked[NEW] = Captions([f"{colour} {shape}, noto style" for colour in NEW_COLOURS
                               for shape in SHAPES for _ in range(SEEDS)])
    return asked


class Judge:
    """What is known of the real pictures, and the figures of drawn ones."""

    def __init__(self, pipe, library):
        self.vae = pipe.vae
        self.library = library
        self.real = from_bytes(library.images)                        # (N, C, S, S)
        self.training = np.array([not r["held_out"] for r in library.records])
        self.clip = None
        if pipe.image_encoder is not None:
            self.clip = ClipEncoder(pipe.text_encoder, pipe.image_encoder, pipe.tokenizer)
            self.features = self.clip.encode_image(self.real)         # (N, P)
            self.texts = self.clip.encode_text([caption(r) for r in library.records])

    def reconstruction(self):
        """Return the autoencoder's rows: PSNR of held-out pictures, or of all if there are none."""
        if self.vae is None:
            return []
        what = "training pictures" if self.training.all() else "held-out pictures"
        x = self.real if self.training.all() else self.real[~self.training]
        x_hat = np.clip(to_host(self.vae.to_pictures(self.vae.to_latents(x))), -1, 1)
        each = [psnr(a[None], b[None]) for a, b in zip(x_hat, x, strict=True)]
        return [Row("reconstruction PSNR, dB, mean of pictures", what, None, float(np.mean(each)),
                    len(x)),
                Row("reconstruction PSNR, dB, of all pixels", what, None, psnr(x_hat, x), len(x))]

    def rows(self, what, asked, x):
        """Return the rows of one kind of captions, of which `x` was drawn."""
        if what == NEW:
            return self.colours_and_shapes(x)
        rows = self.retrieval(what, asked.truth, x)
        if what == TRAINING:
            return rows + (self.distances(asked.truth, x) if self.clip else [])
        return [*rows, self.copies(what, asked.truth, x)]

    def retrieval(self, what, truth, x):
        """Look each sample up among all pictures, by pixels and by CLIP, and among all captions."""
        N, seen = len(self.real), self.in_another_style(truth)
        found = {"picture found by pixels": (
            rank_of_truth(x, self.real, truth),
            None if seen is None else rank_of_truth(self.real[seen], self.real, truth))}
        if self.clip:
            drawn_features = self.clip.encode_image(x)
            found["picture found by CLIP"] = (
                match_rank(drawn_features, self.features, truth),
                None if seen is None else match_rank(self.features[seen], self.features, truth))
            found["caption found by CLIP"] = (match_rank(drawn_features, self.texts, truth),
                                              match_rank(self.features[truth], self.texts, truth))
        return [Row(f"{metric}, at {k}", what, None, recall(rank, k), len(x), N,
                    real=None if real is None else recall(real, k))
                for metric, (rank, real) in found.items() for k in (1, 5)]

    def in_another_style(self, truth):
        """Return the index of the nearest training picture of each one's concept, styles apart.

        What a copy of it scores tells what can be reached without knowing how the style asked for
        draws the concept.  None, unless every concept has such a picture.
        """
        concepts = {}
        for i in np.flatnonzero(self.training):
            concepts.setdefault(self.library.records[i]["label"], []).append(i)
        others = [[i for i in concepts.get(self.library.records[k]["label"], ()) if i != k]
                  for k in truth]
        if not all(others):
            return None
        return np.array([some[rmse(self.real[[k]], self.real[some]).argmin()]
                         for k, some in zip(truth, others, strict=True)])

    def distances(self, truth, x):
        """Compare samples with as many real pictures of other captions, in CLIP's image space.

        Their own real pictures in place of the samples give the floor.
        """
        others = np.setdiff1d(np.flatnonzero(self.training), truth)
        n = min(len(x), len(others))
        if n < 3:
            return []
        others = generator(0, "evaluate others").permutation(others)[:n]
        ours = self.clip.encode_image(x[:n])
        real, theirs = self.features[truth[:n]], self.features[others]
        kernel, floor = kernel_distance(ours, theirs), kernel_distance(real, theirs)
        return [Row("Fréchet distance, CLIP", TRAINING, None, frechet_distance(ours, theirs), n,
                    real=frechet_distance(real, theirs)),
                Row("kernel distance, CLIP", TRAINING, None, kernel.value, n,
                    margin=kernel.margin, real=floor.value)]

    def copies(self, what, truth, x):
        """Count samples that are as good as a picture of the training set."""
        training = self.real[self.training]
        ours, real = (float((nearest_rmse(y, training) / 2 < COPY).mean())
                      for y in (x, self.real[truth]))
        return Row("copies of training pictures", what, None, ours, len(x), len(training),
                   real=real)

    def colours_and_shapes(self, x):
        """Compare what was drawn with the colour of a heart and the shape in another colour."""
        place = {caption(r): i for i, r in enumerate(self.library.records)}
        colours = [mean_lab(self.real[place[f"{c} heart, noto style"]]) for c in NEW_COLOURS]
        shapes = [drawn(self.real[place[f"red {s}, noto style"]]) for s in SHAPES]
        each = [(c, s) for c in colours for s in shapes for _ in range(SEEDS)]
        distance = colour_distance(mean_lab(x), np.stack([c for c, _ in each]))
        shape = overlap(drawn(x), np.stack([s for _, s in each]))
        right = (distance < SAME_COLOUR) & (shape > SAME_SHAPE)
        return [Row(metric, NEW, None, float(value.mean()), len(x)) for metric, value in (
            ("colour, CIELAB distance", distance), ("shape, overlap", shape),
            (f"colour within {SAME_COLOUR:g}", distance < SAME_COLOUR),
            (f"shape above {SAME_SHAPE:g}", shape > SAME_SHAPE), ("both", right))]
