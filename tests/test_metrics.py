"""Retrieval counts what it says: how many pictures are nearer than the one that was asked for."""
import numpy as np
import pytest

from tinydiff.metrics import nearest, nearest_rmse, rank_of_truth, recall
from tinydiff.metrics.retrieval import rmse


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def test_rmse_is_the_definition():
    samples, library = draw(3, 2, 4, 5), draw(6, 2, 4, 5, seed=1)
    want = [[np.sqrt(((a - b) ** 2).mean()) for b in library] for a in samples]
    np.testing.assert_allclose(rmse(samples, library), want, rtol=1e-6)


def test_a_library_is_gone_through_in_blocks(monkeypatch):
    samples, library = draw(3, 1, 2, 2), draw(7, 1, 2, 2, seed=1)
    whole = rmse(samples, library)
    monkeypatch.setattr("tinydiff.metrics.retrieval.BLOCK", 3)
    np.testing.assert_allclose(rmse(samples, library), whole, rtol=1e-12)
    np.testing.assert_allclose(nearest_rmse(samples, library), whole.min(axis=1), rtol=1e-12)


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
