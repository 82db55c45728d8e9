"""Initialisers: how a fresh parameter is filled.

Each one returns a function ``fill(shape, generator) -> float64 ndarray``.
"""
from math import prod, sqrt

import numpy as np


def zeros():
    """All zeros: a residual branch that starts as the identity."""
    return lambda shape, generator: np.zeros(shape)


def ones():
    """All ones: the scale of a normalisation."""
    return lambda shape, generator: np.ones(shape)


def constant(value):
    """Every entry the same."""
    return lambda shape, generator: np.full(shape, value, float)


def normal(std):
    """Gaussian with mean 0 and standard deviation `std`."""
    return lambda shape, generator: std * generator.standard_normal(shape)


def uniform_fan_in(fan_in=None):
    """Uniform on +-1/sqrt(fan_in), the usual start of linear and convolution layers.

    Parameters
    ----------
    fan_in : int, optional
        How many inputs each output sums; by default the product of all sizes
        but the first, which is right for a weight and not for its bias.

    Examples
    --------
    >>> w = uniform_fan_in()((4, 100), np.random.default_rng(0))
    >>> bool(abs(w).max() <= 0.1)
    True
    """
    def fill(shape, generator):
        bound = 1 / sqrt(fan_in or prod(shape[1:]))
        return generator.uniform(-bound, bound, shape)
    return fill


def xavier_uniform(fan_out=None):
    """Uniform on +-sqrt(6 / (fan_in + fan_out)): forward and backward keep their variance alike.

    Parameters
    ----------
    fan_out : int, optional
        How many outputs each input feeds; by default the first size.  Projections that are drawn
        as one matrix feed all their outputs together.

    References
    ----------
    .. [1] X. Glorot and Y. Bengio, "Understanding the difficulty of training deep feedforward
       neural networks", 2010, Eq. 16.

    Examples
    --------
    >>> w = xavier_uniform()((4, 20), np.random.default_rng(0))
    >>> bool(0.4 < abs(w).max() <= 0.5)
    True
    """
    def fill(shape, generator):
        bound = sqrt(6 / (prod(shape[1:]) + (fan_out or shape[0])))
        return generator.uniform(-bound, bound, shape)
    return fill
