"""Numbers that say how good samples are."""
from tinydiff.metrics.colour import colour_distance, drawn, mean_lab, overlap, to_lab
from tinydiff.metrics.distances import (
    Estimate,
    frechet_distance,
    frechet_of_gaussians,
    kernel_distance,
)
from tinydiff.metrics.reconstruction import psnr
from tinydiff.metrics.retrieval import (
    match_rank,
    nearest,
    nearest_rmse,
    rank_of_truth,
    recall,
    rmse,
)

__all__ = ["Estimate", "colour_distance", "drawn", "frechet_distance", "frechet_of_gaussians",
           "kernel_distance", "match_rank", "mean_lab", "nearest", "nearest_rmse", "overlap",
           "psnr", "rank_of_truth", "recall", "rmse", "to_lab"]
