"""SiLU and GEGLU in one pass over their input, which is all that they keep."""
from math import pi, sqrt

import numpy as np
from numba import prange

from tinydiff.backends.table import Saved
from tinydiff.kernels.cpu.arrays import all_float32, flat
from tinydiff.kernels.cpu.expf import ONE, exp, sigmoid, silu_slope
from tinydiff.kernels.cpu.jit import inlined, parallel, serial

SMALL = 4096                            # entries of a picture, below which NumPy is as fast
PIECE = 4096                            # entries that one thread does at a time

HALF = np.float32(0.5)
DENSITY_AT_0 = np.float32(sqrt(0.5 / pi))
SLOPE = np.float32(0.3275911 * sqrt(0.5))           # this and A1 to A5: see tinydiff.ops.gelu
A1, A2, A3, A4, A5 = (np.float32(a) for a in (
    0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))


def silu_forward(x):
    """Compute ``x sigmoid(x)``, see `tinydiff.ops.silu_forward`."""
    if not all_float32(x) or not x.ndim or x.size < SMALL * len(x):
        return NotImplemented
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    _silu(x.reshape(-1), y.reshape(-1))
    return y, Saved(silu_backward, (x,))


def silu_backward(dy, arrays):
    """Pull `dy` back through `silu_forward`."""
    (x,) = arrays
    dx = np.empty_like(x)
    _silu_pull_back(flat(dy, x.size), x.reshape(-1), dx.reshape(-1))
    return dx


def geglu_forward(x):
    """Gate one half of the features, see `tinydiff.ops.geglu_forward`."""
    if not all_float32(x) or not x.size or x.shape[-1] % 2:
        return NotImplemented
    x = np.ascontiguousarray(x)
    D = x.shape[-1] // 2
    y = np.empty((*x.shape[:-1], D), x.dtype)
    _geglu(x.reshape(-1), y.reshape(-1), D)
    return y, Saved(geglu_backward, (x,))


def geglu_backward(dy, arrays):
    """Pull `dy` back through `geglu_forward`."""
    (x,) = arrays
    dx = np.empty_like(x)
    _geglu_pull_back(flat(dy, x.size // 2), x.reshape(-1), dx.reshape(-1), x.shape[-1] // 2)
    return dx


@parallel
def _silu(x, y):
    """Fill `y`; both arrays are flat."""
    for piece in prange((x.size + PIECE - 1) // PIECE):
        start = np.int64(piece) * PIECE
        _silu_piece(x[start:start + PIECE], y[start:start + PIECE])


@serial
def _silu_piece(x, y):
    """Do one piece of `_silu`."""
    for i in range(x.size):
        y[i] = x[i] * sigmoid(x[i])


@parallel
def _silu_pull_back(dy, x, dx):
    """Fill `dx`; all arrays are flat."""
    for piece in prange((x.size + PIECE - 1) // PIECE):
        start = np.int64(piece) * PIECE
        stop = start + PIECE
        _silu_pull_back_piece(dy[start:stop], x[start:stop], dx[start:stop])


@serial
def _silu_pull_back_piece(dy, x, dx):
    """Do one piece of `_silu_pull_back`."""
    for i in range(x.size):
        dx[i] = dy[i] * silu_slope(x[i])


@inlined
def _normal(x):
    """Return the normal distribution function Phi(x) and density phi(x).

    The approximation of `tinydiff.ops.gelu`; both contain the same exponential.
    """
    bell = exp(-HALF * x * x)
    t = ONE / (ONE + SLOPE * abs(x))
    tail = ((((A5 * t + A4) * t + A3) * t + A2) * t + A1) * t * bell * HALF
    return (tail if x < 0 else ONE - tail), DENSITY_AT_0 * bell


@parallel
def _geglu(x, y, D):
    """Fill `y` (rows, D), given `x` (rows, 2 D); both are flat."""
    for row in prange(y.size // D):
        start = np.int64(row) * D
        _geglu_row(x[2 * start:2 * start + D], x[2 * start + D:2 * start + 2 * D],
                   y[start:start + D])


@serial
def _geglu_row(hidden, gate, y):
    """Compute ``hidden gelu(gate)``, gelu(g) = g Phi(g)."""
    for i in range(y.size):
        cdf, _ = _normal(gate[i])
        y[i] = hidden[i] * gate[i] * cdf


@parallel
def _geglu_pull_back(dy, x, dx, D):
    """Fill `dx` (rows, 2 D), given `dy` (rows, D) and `x` (rows, 2 D); all are flat."""
    for row in prange(dy.size // D):
        start = np.int64(row) * D
        hidden = slice(2 * start, 2 * start + D)
        gate = slice(2 * start + D, 2 * start + 2 * D)
        _geglu_pull_back_row(dy[start:start + D], x[hidden], x[gate], dx[hidden], dx[gate])


@serial
def _geglu_pull_back_row(dy, hidden, gate, dhidden, dgate):
    """Each factor's gradient is `dy` times the other; ``dgelu/dg = Phi(g) + g phi(g)``."""
    for i in range(dy.size):
        cdf, density = _normal(gate[i])
        dhidden[i] = dy[i] * gate[i] * cdf
        dgate[i] = dy[i] * hidden[i] * (cdf + gate[i] * density)
