"""Float32's own rounding error, whatever processor the tests run on.

How exact a matrix product of NumPy is depends on BLAS: on a processor with AVX-512 a long sum is
made of sixteen shorter ones.  A sum of one number after the other is the same everywhere.
"""
import numpy as np


class InTurn(np.ndarray):
    """An array whose matrix products add up one number after the other; so do its views'."""

    def __matmul__(self, other):
        return _product(self, other)

    def __rmatmul__(self, other):
        return _product(other, self)


def _product(a, b):
    a, b = np.asarray(a), np.asarray(b)
    c = a[..., :, :1] * b[..., :1, :]
    for k in range(1, a.shape[-1]):
        c += a[..., :, k:k + 1] * b[..., k:k + 1, :]
    return c.view(InTurn)


def less_exact(right, *results):
    """Return the one of several results that is furthest from `right`, as a plain array."""
    return np.asarray(max(results, key=lambda result: np.abs(result - right).max(initial=0.0)))
