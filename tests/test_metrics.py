"""Retrieval counts what it says: how many pictures are nearer than the one that was asked for."""
import numpy as np
import pytest

from tinydiff.datasets import caption, load_emoji
from tinydiff.diffusion import Step
from tinydiff.evaluate import evaluate
from tinydiff.metrics import nearest, rank_of_truth, recall
from tinydiff.metrics.retrieval import rmse


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_rmse_is_the_definition():
    samples, library = draw(3, 2, 4, 5), draw(6, 2, 4, 5, seed=1)
    want = [[np.sqrt(((a - b) ** 2).mean()) for b in library] for a in samples]
    np.testing.assert_allclose(rmse(samples, library), want, rtol=1e-6)


def test_pictures_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match=r"\(1, 2, 2\).*\(1, 3, 3\)"):
        rmse(draw(1, 1, 2, 2), draw(1, 1, 3, 3))


def test_the_truth_itself_has_rank_zero_and_a_far_picture_the_last():
    library = draw(7, 3, 4, 4)
    truth = np.arange(7)
    assert rank_of_truth(library + 0.01, library, truth).tolist() == [0] * 7
    line = np.arange(5.0).reshape(5, 1, 1, 1)
    assert rank_of_truth(line[:1], line, np.array([4])).tolist() == [4]


def test_a_tie_counts_against_the_sample_but_a_twin_does_not():
    line = np.array([0.0, 2.0, 2.0, 5.0]).reshape(4, 1, 1, 1)
    middle = np.ones((1, 1, 1, 1))
    assert rank_of_truth(middle, line, np.array([0])).tolist() == [2]
    assert rank_of_truth(line[1:2], line, np.array([1])).tolist() == [0]


def test_nearest_and_recall_agree_with_ranks():
    library = draw(20, 1, 3, 3)
    samples = library + draw(20, 1, 3, 3, seed=2)
    rank = rank_of_truth(samples, library, np.arange(20))
    for k in (1, 5):
        hits = [i in row for i, row in enumerate(nearest(samples, library, k))]
        assert recall(rank, k) == np.mean(hits)


class Painter:
    """A pipeline that paints the true picture, or another one where it `forgets`."""

    class unet:  # noqa: N801 - stands where a UNet would
        config = {"sample_size": 32}

    def __init__(self, forgets=()):
        pictures = load_emoji(32, ["noto"], split="all")
        self.pictures = dict(zip(map(caption, pictures.records), pictures.array(), strict=True))
        self.forgets = forgets
        self.seen = []

    def steps(self, prompts, *, pictures, **options):
        self.seen += pictures
        x = np.stack([self.pictures["pizza, noto style" if any(word in p for word in self.forgets)
                                    else p] for p in prompts])
        yield Step(None, None, None, None, None, x)


def test_evaluation_of_a_perfect_painter_is_perfect():
    painter = Painter()
    (training, held_out), samples = evaluate(painter, count=30, batch=7)
    assert training == ("training captions", 30, 1415, 1.0, 1.0)
    assert held_out == ("held-out captions", 30, 1415, 1.0, 1.0)
    assert samples["training captions"].shape == (30, 3, 32, 32)
    assert len(set(painter.seen)) == 60                               # every picture its own noise


def test_evaluation_counts_what_a_painter_forgets():
    (training, _), _ = evaluate(Painter(forgets="abcdefghijklmnopqrstuvwxyz"), count=30)
    assert training.at_1 <= 1 / 30


def test_evaluation_draws_the_same_captions_for_the_same_seed():
    first, again, other = Painter(), Painter(), Painter()
    a, b, c = (evaluate(p, count=10, seed=s)[1]["training captions"]
               for p, s in ((first, 0), (again, 0), (other, 1)))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()
