"""Numbers that say how good samples are."""
from tinydiff.metrics.reconstruction import psnr
from tinydiff.metrics.retrieval import match_rank, nearest, rank_of_truth, recall

__all__ = ["match_rank", "nearest", "psnr", "rank_of_truth", "recall"]
