"""Evaluate a model of classes: how far what it draws is from real pictures, and how well it codes.

Distances are those of a classifier's features.  Each stands beside its floor, what as many real
pictures of the same classes score in place of the drawn ones; neither are the pictures that both
are compared with.
"""
from typing import NamedTuple

import numpy as np

from tinydiff.backends.device import follow, to_host
from tinydiff.backends.random import generator, normal
from tinydiff.diffusion import CLEAN
from tinydiff.evaluate import Row, Setting
from tinydiff.likelihood import bound, drawn_steps
from tinydiff.metrics import frechet_distance, kernel_distance
from tinydiff.pictures import from_bytes, to_bytes
from tinydiff.pipelines import network_timestep

SWEEP_STEPS = (5, 10, 20, 50)
SWEEP_SAMPLERS = ("ddpm", "ddim", "dpmpp_2m", "unipc", "heun")
LONG = 1000                             # DDPM's own number of steps, tried with fewer pictures
CALLS = {"heun": "heun, 2 N - 1 calls"} # of the denoiser, where they are not as many as the steps
BATCH = 256                             # pictures classified at once
WHOLE = 100                             # pictures whose bound is summed over all steps
TERMS = 20                              # of the steps drawn for each picture after those,
PIECE = 50                              # the same for so many


class Walk(NamedTuple):
    """How pictures are drawn, and how many: `sampler`, `setting`, `count`."""

    sampler: str
    setting: Setting
    count: int


def sweep(guidance, count):
    """Return the walks of the benchmark: five samplers by four numbers of steps, and DDPM's own.

    Examples
    --------
    >>> len(sweep(1.0, 2000)), sweep(1.0, 2000)[-1].setting.steps, sweep(1.0, 2000)[-1].count
    (21, 1000, 500)
    """
    walks = [Walk(sampler, Setting(steps, guidance), count) for sampler in SWEEP_SAMPLERS
             for steps in SWEEP_STEPS]
    return [*walks, Walk("ddpm", Setting(LONG, guidance), max(3, count // 4))]


def evaluate_classes(pipe, classifier, real, walks, bits=100, seed=0, batch=250, progress=iter):
    """Draw pictures of classes by each walk, and measure them.

    Parameters
    ----------
    pipe : ClassToImage
    classifier : Classifier
        Of the same pictures and classes.
    real : Pictures
        Ones that the model has not seen, with the class of each.
    walks : list of Walk
    bits : int, default 100
        Of how many real pictures the bits per dimension are bounded; 0 for none.  The first `WHOLE`
        by all terms of the bound, the others by `TERMS` drawn ones each.
    seed : int, default 0
    batch : int, default 250
        Pictures drawn at once.
    progress : callable, optional
        Wraps the list of batches, e.g. ``tqdm``.

    Returns
    -------
    rows : list of Row
    samples : dict of Walk to (N, C, S, S) ndarray
        What was drawn.

    Raises
    ------
    ValueError
        If there are not twice as many real pictures as are to be drawn, or the classifier is not
        of such pictures.
    """
    judge = Judge(classifier, real, max(walk.count for walk in walks), seed)
    bits = min(bits, len(real))
    work = [(walk, k) for walk in walks for k in range(0, walk.count, batch)]
    first = min(bits, WHOLE)
    work += [(None, range(k, min(k + batch, first))) for k in range(0, first, batch)]
    work += [(None, range(k, min(k + PIECE, bits))) for k in range(first, bits, PIECE)]
    parts, whole, drawn = {}, [], []
    for walk, k in progress(work):
        if walk is None:
            indices, chosen = judge.order[k.start:k.stop], None
            if k.start >= WHOLE:
                profile = np.concatenate([code.steps for code in whole], axis=1).mean(axis=1)
                chosen = drawn_steps(profile, TERMS, generator(seed, "bound", k.start).random())
            (whole if chosen is None else drawn).append(code_length(
                pipe, real.array(indices), judge.classes[indices], indices, seed, chosen))
            continue
        numbers = range(k, min(k + batch, walk.count))
        *_, last = pipe.steps(judge.asked[numbers.start:numbers.stop], pictures=numbers, seed=seed,
                              sampler=walk.sampler, **walk.setting._asdict())
        # Eight bits a pixel, as a file and the real pictures have.
        parts.setdefault(walk, []).append(from_bytes(to_bytes(to_host(last.x_s))))
    samples = {walk: np.concatenate(part) for walk, part in parts.items()}

    rows = [row for n in dict.fromkeys(walk.count for walk in walks) for row in judge.floor(n)]
    for walk, x in samples.items():
        rows += judge.rows(walk, x)
    if whole:
        rows.append(_bits(whole, drawn))
    return rows, samples


def _bits(whole, drawn):
    """Return the row of the mean bound, with its 95 % margin.

    Every picture that was asked all steps counts as an independent draw; pictures that share their
    drawn steps are one draw together.
    """
    draws = [*np.concatenate([code.total for code in whole])[:, None],
             *(code.total for code in drawn)]
    size, means = map(np.array, zip(*((len(each), each.mean()) for each in draws), strict=True))
    n, B = int(size.sum()), len(draws)
    mean = size @ means / n
    margin = 1.96 * (B / (B - 1) * (size**2 @ (means - mean) ** 2)) ** 0.5 / n if B > 1 else None
    return Row("bits per dimension, at most", "real pictures, told the class", None, float(mean), n,
               margin=None if margin is None else float(margin))


def code_length(pipe, x0, classes, pictures, seed, chosen=None):
    """Bound the code length of pictures, over all steps of the schedule or those `chosen`.

    Parameters
    ----------
    pipe : ClassToImage
        Its variances are the small ones, beta_tilde.
    x0 : (B, C, S, S) ndarray
    classes : (B,) int ndarray
        What the model is told of each.
    pictures : sequence of B int
        The numbers that key the noise.
    seed : int
    chosen : list of (int, float), optional
        See `tinydiff.likelihood.bound`.

    Returns
    -------
    Bound
    """
    asked, like = pipe.denoise(pipe.numbers(classes)), pipe.denoiser.like()

    def denoise(x_t, t):                                  # the bound itself is reckoned on the host
        return tuple(map(to_host, asked(follow(x_t, like), t)))

    return bound(denoise, x0, pipe.scheduler.levels(pipe.scheduler.schedule.T),
                 lambda k: normal(x0.shape[1:], seed, "bound", k, pictures), chosen=chosen)


class Judge:
    """What is known of the real pictures, and the figures of drawn ones.

    Parameters
    ----------
    classifier : Classifier
    real : Pictures
    most : int
        Pictures that will be drawn by any walk.
    seed : int
        Chooses which real pictures give the classes that are drawn, and which are compared with.
    """

    def __init__(self, classifier, real, most, seed):
        if 2 * most > len(real):
            raise ValueError(f"{most} pictures to draw: at most {len(real) // 2}, half of the "
                             f"{len(real)} real ones, can be compared with others of them")
        classes = 1 + max(r["class"] for r in real.records)
        if classifier.config["num_classes"] != classes:
            raise ValueError(f"the classifier tells num_classes={classifier.config['num_classes']} "
                             f"apart, the pictures have {classes}")
        self.classifier = classifier
        self.classes = np.array([r["class"] for r in real.records])
        self.order = generator(seed, "evaluate classes").permutation(len(real))
        truth, others = self.order[:most], self.order[most:2 * most]
        self.asked = self.classes[truth]                  # what is drawn, as often as in the truth
        self.truth, self.read = self.features(real.array(truth))
        self.others, _ = self.features(real.array(others))
        self.floors = {}

    def features(self, x):
        """Return the features (N, D) of pictures, and the class that each is taken for."""
        like, clean = self.classifier.like(), network_timestep(CLEAN)
        parts = [self.classifier.forward(follow(x[k:k + BATCH], like), clean)
                 for k in range(0, len(x), BATCH)]
        return (to_host(np.concatenate([part.features for part in parts])),
                to_host(np.concatenate([part.logits for part in parts])).argmax(axis=1))

    def floor(self, n):
        """Return the rows of `n` real pictures in the place of drawn ones."""
        a, b = self.truth[:n], self.others[:n]
        kernel = kernel_distance(a, b)
        read = float((self.read[:n] == self.asked[:n]).mean())
        self.floors[n] = kernel.value, frechet_distance(a, b), read
        of = f"real pictures, n = {n}"
        return [Row("kernel distance", of, None, kernel.value, n, margin=kernel.margin),
                Row("Fréchet distance", of, None, self.floors[n][1], n),
                Row("read as the class asked for", of, None, read, n)]

    def rows(self, walk, x):
        """Return the rows of what one walk drew."""
        features, read = self.features(x)
        others, n = self.others[:len(x)], len(x)
        kernel = kernel_distance(features, others)
        values = (kernel.value, frechet_distance(features, others),
                  float((read == self.asked[:n]).mean()))
        names = "kernel distance", "Fréchet distance", "read as the class asked for"
        of = CALLS.get(walk.sampler, walk.sampler) + ("" if n == len(self.asked) else f", n = {n}")
        return [Row(name, of, walk.setting, value, n, real=floor,
                    margin=kernel.margin if name == names[0] else None)
                for name, value, floor in zip(names, values, self.floors[n], strict=True)]
