"""How far two sets of feature vectors are from being of one distribution.

Either distance is above zero for two halves of the *same* pictures, and the more so the fewer
there are: print it beside what real pictures score against real ones at the same number.
"""
from typing import NamedTuple

import numpy as np


class Estimate(NamedTuple):
    """A value, and half the width of its 95 % interval."""

    value: float
    margin: float


def frechet_distance(a, b):
    """Return the Fréchet distance of the Gaussians with the means and covariances of two sets.

    Parameters
    ----------
    a : (N, D) ndarray
    b : (M, D) ndarray
        One feature vector a row.

    Returns
    -------
    float
        Squared, as is usual; in units of the features squared.

    Raises
    ------
    ValueError
        If there are fewer than two vectors, or their lengths differ.

    References
    ----------
    .. [1] M. Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash
       Equilibrium", 2017, arXiv:1706.08500.
    """
    a, b = _checked(a, b)
    return frechet_of_gaussians(a.mean(axis=0), np.cov(a.T), b.mean(axis=0), np.cov(b.T))


def frechet_of_gaussians(mean_a, cov_a, mean_b, cov_b):
    """Return the squared Fréchet (2-Wasserstein) distance of two Gaussians.

    Parameters
    ----------
    mean_a, mean_b : (D,) ndarray
    cov_a, cov_b : (D, D) ndarray
        Symmetric, without negative eigenvalues; they may be singular.

    Notes
    -----
    ::

        |mean_a - mean_b|^2 + tr(cov_a) + tr(cov_b) - 2 tr((cov_a cov_b)^(1/2))

    With S = cov_a^(1/2), the last trace is that of (S cov_b S)^(1/2), whose argument is symmetric:
    the sum of the roots of its eigenvalues, and nothing complex can come up.

    References
    ----------
    .. [1] D. Dowson and B. Landau, "The Fréchet distance between multivariate normal
       distributions", Journal of Multivariate Analysis 12, 1982.

    Examples
    --------
    >>> zero, one = np.zeros(2), np.eye(2)
    >>> frechet_of_gaussians(zero, one, np.array([3.0, 0.0]), 4 * one)
    11.0
    """
    cov_a, cov_b = np.atleast_2d(cov_a), np.atleast_2d(cov_b)
    values, vectors = np.linalg.eigh(cov_a)
    root_a = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    values = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    cross = np.sqrt(np.maximum(values, 0)).sum()
    return float(((mean_a - mean_b) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * cross)


def kernel_distance(a, b):
    """Estimate the squared maximum mean discrepancy under a cubic kernel, without bias.

    Parameters
    ----------
    a : (N, D) ndarray
    b : (M, D) ndarray
        One feature vector a row; N, M >= 3.

    Returns
    -------
    Estimate
        Zero in expectation where both are of one distribution, and then negative half the time.
        The margin is 1.96 standard errors by the jackknife.

    Raises
    ------
    ValueError
        If there are fewer than three vectors, or their lengths differ.

    Notes
    -----
    With k(x, y) = (x.y / D + 1)^3, over all pairs but those of a vector with itself::

        mean k(a_i, a_j) over i != j  +  mean k(b_i, b_j) over i != j  -  2 mean k(a_i, b_j)

    Leaving out one a_i changes the first and the last mean, which row sums give at once.  The
    variance is the jackknife's of one set plus that of the other.

    References
    ----------
    .. [1] M. Binkowski et al., "Demystifying MMD GANs", 2018, arXiv:1801.01401.
    .. [2] A. Gretton et al., "A Kernel Two-Sample Test", JMLR 13, 2012: the unbiased estimate.
    """
    a, b = _checked(a, b, least=3)
    D = a.shape[1]
    k_aa, k_bb, k_ab = ((x @ y.T / D + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    np.fill_diagonal(k_aa, 0)
    np.fill_diagonal(k_bb, 0)
    own_a, own_b = _mean_of_pairs(k_aa), _mean_of_pairs(k_bb)
    value = own_a + own_b - 2 * k_ab.mean()

    without_a = _mean_without_each(k_aa) + own_b - 2 * _mean_without_each_row(k_ab)      # (N,)
    without_b = own_a + _mean_without_each(k_bb) - 2 * _mean_without_each_row(k_ab.T)    # (M,)
    variance = sum((len(x) - 1) / len(x) * ((x - x.mean()) ** 2).sum()
                   for x in (without_a, without_b))
    return Estimate(float(value), float(1.96 * np.sqrt(variance)))


def _mean_of_pairs(k):
    """Average all entries off the diagonal, which is zero."""
    N = len(k)
    return k.sum() / (N * (N - 1))


def _mean_without_each(k):
    """Do the same without row and column i, for each i."""
    N = len(k)
    return (k.sum() - 2 * k.sum(axis=1)) / ((N - 1) * (N - 2))


def _mean_without_each_row(k):
    """Average all entries but those of row i, for each i."""
    N, M = k.shape
    return (k.sum() - k.sum(axis=1)) / ((N - 1) * M)


def _checked(a, b, least=2):
    """Return both sets in float64, or say what is wrong with them."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"features of shapes {a.shape} and {b.shape}: (N, D) and (M, D) are "
                         "needed")
    if min(len(a), len(b)) < least:
        raise ValueError(f"{len(a)} and {len(b)} feature vectors: at least {least} of each are "
                         "needed")
    return a.astype(np.float64), b.astype(np.float64)
