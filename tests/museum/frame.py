"""What an exhibit is, how a bug is put in, and the data that the pictures are made of."""
import sys
import textwrap
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from tinydiff.backends import normal
from tinydiff.datasets import load_emoji
from tinydiff.diffusion import CLEAN
from tinydiff.oracle import FiniteData, GaussianMixture
from tinydiff.samplers import SAMPLERS
from tinydiff.schedules import Schedule

LINEAR = Schedule.make("linear")
LABELS = ("red heart", "pizza", "rocket", "tiger face", "sailboat", "rainbow", "panda", "house")


class Exhibit(NamedTuple):
    """One bug.

    Attributes
    ----------
    name, title, what, seen : str
        `seen` is where the bug was, in Markdown.
    wrong, right : str
        One line of code each.
    switch : callable
        ``switch()`` is a context in which the library has the bug.
    make : callable
        ``make()`` returns what it draws, one of `Pictures`, `Points` and `Curve`, and the error.
    measure : str
        What the error is; 0 is exact.
    test : str
        The library's own test that catches it: ``"test_samplers.py::test_..."``.
    arguments : tuple
        One case of that test, where it has parameters.
    """

    name: str
    title: str
    what: str
    seen: str
    wrong: str
    right: str
    switch: Any
    make: Any
    measure: str
    test: str
    arguments: tuple = ()


class Pictures(NamedTuple):
    """(B, C, H, W) in [-1, 1]; NaN is drawn black, as every file format draws it."""

    x: np.ndarray


class Points(NamedTuple):
    """(n, 2), and the (n, 2) that would be right, drawn behind them."""

    x: np.ndarray
    truth: np.ndarray


class Curve(NamedTuple):
    """One curve, of what over what, and what is to be read off it."""

    x: list
    y: list
    axes: tuple
    legend: str
    logarithmic: bool = True


@contextmanager
def replaced(right, wrong):
    """Put `wrong` in the place of `right` in every loaded module of the library and its tests."""
    places = [(module, name) for key, module in list(sys.modules.items())
              if key.partition(".")[0] == "tinydiff" or key.startswith("test_")
              for name, value in list(vars(module).items()) if value is right]
    assert places, f"{right} is nowhere"
    for module, name in places:
        setattr(module, name, wrong)
    try:
        with np.errstate(all="ignore"):                 # a bug that ends in NaN says so in silence
            yield
    finally:
        for module, name in places:
            setattr(module, name, right)


def placard(exhibit):
    """Return the text beside an exhibit, as the notebook has it."""
    wrap = lambda text: textwrap.fill(text, 97, break_long_words=False, break_on_hyphens=False)
    code = lambda mark, line: f"{mark} {line}"
    return "\n".join([
        f"### {exhibit.title}", "", wrap(exhibit.what), "", wrap(f"Seen in: {exhibit.seen}"), "",
        "```diff", code("-", exhibit.wrong), code("+", exhibit.right), "```", "",
        wrap(f"Caught by `{exhibit.test}`. Error: {exhibit.measure}.")])


# ---- data ----


@lru_cache
def emoji():
    """Eight emoji, of which the exact denoiser knows no others."""
    pictures = load_emoji(32, "noto")
    labels = [record["label"] for record in pictures.records]
    chosen = pictures.array([labels.index(label) for label in LABELS])
    return FiniteData(chosen.astype(np.float64))


@lru_cache
def petals():
    """Eight Gaussians on a circle."""
    angle = np.arange(8) * np.pi / 4
    return GaussianMixture(1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.02)


def start(n=4):
    """Draw the noise that n pictures start from."""
    return normal((3, 32, 32), 0, "x_T", 0, range(n), np.float64)


def noise(k):
    """Draw the noise of step k of four pictures."""
    return normal((3, 32, 32), 0, "z", k, range(4), np.float64)


def walked(name, grid, denoise=None, **options):
    """Draw four pictures with the exact denoiser of the emoji; return them, and their error."""
    *_, last = SAMPLERS[name](denoise or emoji(), start(), grid, noise=noise, **options)
    return Pictures(last.x_s), off(last.x_s, emoji().pictures)


def off(x, pictures):
    """Root mean square distance of the worst picture to the nearest that there is."""
    apart = np.sqrt(((x[:, None] - pictures) ** 2).mean(axis=(2, 3, 4)))
    worst = float(apart.min(axis=1).max())
    return worst if np.isfinite(worst) else float("inf")


@lru_cache
def flow_of_petals(t, n=150):
    """Points of the petals, and where the exact flow carries them, up to level `t`."""
    truth = petals().sample(n, np.random.default_rng(0))
    return truth, petals().flow(truth, CLEAN, t)


def followed(name, grid, **options):
    """Walk points of the petals down from where the exact flow has them; the error is how far
    they miss, in the mean, where it has them in the end.
    """
    truth, x_T = flow_of_petals(grid[0])
    *_, last = SAMPLERS[name](petals(), x_T, grid, **options)
    return Points(last.x_s, truth), float(np.sqrt(((last.x_s - truth) ** 2).sum(axis=1)).mean())
