"""Retrieval: whether the picture that was asked for is the nearest of all to the one drawn."""
import numpy as np

BLOCK = 512                             # pictures of a library compared at once


def rmse(samples, library):
    """Root mean square difference of every sample and every picture of a library.

    Parameters
    ----------
    samples : (B, C, H, W) ndarray
    library : (N, C, H, W) ndarray

    Returns
    -------
    (B, N) ndarray
        In units of the pixels; float64.
    """
    if samples.shape[1:] != library.shape[1:]:
        raise ValueError(f"samples are {samples.shape[1:]}, the library is {library.shape[1:]}")
    a = samples.reshape(len(samples), -1).astype(np.float64)          # (B, P)
    distances = []
    for k in range(0, len(library), BLOCK):                           # float64 takes room
        b = library[k:k + BLOCK].reshape(-1, a.shape[1]).astype(np.float64)
        squares = (a**2).sum(axis=1)[:, None] - 2 * a @ b.T + (b**2).sum(axis=1)
        distances.append(np.sqrt(np.maximum(squares, 0) / a.shape[1]))
    return np.concatenate(distances, axis=1)


def nearest_rmse(samples, library):
    """Return the `rmse` (B,) of each sample and the picture of a library that is nearest to it."""
    return rmse(samples, library).min(axis=1)


def nearest(samples, library, k=1):
    """Return the indices (B, k) of the `k` nearest pictures of a library, nearest first."""
    return np.argsort(rmse(samples, library), axis=1, kind="stable")[:, :k]


def rank_of_truth(samples, library, truth):
    """Count the library's pictures that are nearer to a sample than the one it should be.

    Parameters
    ----------
    samples : (B, C, H, W) ndarray
    library : (N, C, H, W) ndarray
    truth : (B,) int ndarray
        Index in the library of the picture that was asked for.

    Returns
    -------
    rank : (B,) int ndarray
        0: the truth is the nearest of all.  A tie counts against the sample, unless the two
        pictures of the library are the same.

    Examples
    --------
    >>> library = np.arange(5.0).reshape(5, 1, 1, 1)
    >>> rank_of_truth(library[[1, 3]] + 0.4, library, np.array([1, 0]))
    array([0, 4])
    """
    distance = rmse(samples, library)                                 # (B, N)
    own = np.take_along_axis(distance, np.asarray(truth)[:, None], axis=1)
    digests = np.array([hash(x.tobytes()) for x in library])
    same = digests[truth][:, None] == digests                         # (B, N)
    return ((distance <= own) & ~same).sum(axis=1)


def recall(rank, k):
    """Share of samples whose truth is among the `k` nearest.

    Examples
    --------
    >>> recall(np.array([0, 0, 3, 9]), 5)
    0.75
    """
    return float((rank < k).mean())


def match_rank(queries, library, truth):
    """Count the library's vectors that point at least as closely to a query as the true one.

    Parameters
    ----------
    queries : (B, P) ndarray of unit vectors
        Pictures or captions, as CLIP encodes them.
    library : (N, P) ndarray of unit vectors
        The other of the two.
    truth : (B,) int ndarray
        Index in the library of what belongs to each query.

    Returns
    -------
    rank : (B,) int ndarray
        0: nothing else is as near.  A tie counts against the query.

    Examples
    --------
    >>> match_rank(np.eye(3), np.eye(3)[::-1], np.array([2, 1, 1]))
    array([0, 0, 2])
    """
    similarity = queries @ library.T                                  # (B, N)
    own = np.take_along_axis(similarity, np.asarray(truth)[:, None], axis=1)
    return (similarity >= own).sum(axis=1) - 1
