"""Numbers that say how good samples are."""
from tinydiff.metrics.retrieval import nearest, rank_of_truth, recall

__all__ = ["nearest", "rank_of_truth", "recall"]
