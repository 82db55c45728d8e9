"""SiLU, the GELU's two cheap forms, and GEGLU: one pass over the input, which is all they keep."""
from math import pi, sqrt

import numpy as np
from numba import prange

from tinydiff.backends.table import Saved
from tinydiff.kernels.cpu.arrays import all_float32, flat
from tinydiff.kernels.cpu.expf import ONE, exp, gate_slope, multiply_add, sigmoid
from tinydiff.kernels.cpu.jit import inlined, parallel, serial

SMALL = 4096                            # entries of a picture, below which NumPy is as fast
PIECE = 4096                            # entries that one thread does at a time

ZERO, HALF, THREE = np.float32(0.0), np.float32(0.5), np.float32(3.0)
FAR = np.float32(128.0)
QUICK = np.float32(1.702)
TANH = np.float32(2 * sqrt(2 / pi))
TANH_CUBED = np.float32(0.044715 * 2 * sqrt(2 / pi))
DENSITY_AT_0 = np.float32(sqrt(0.5 / pi))
SLOPE = np.float32(0.3275911 * sqrt(0.5))           # this and A1 to A5: see tinydiff.ops.gelu
A1, A2, A3, A4, A5 = (np.float32(a) for a in (
    0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429))


def silu_forward(x):
    """Compute ``x sigmoid(x)``, see `tinydiff.ops.silu_forward`."""
    return _gated(x, ONE, ZERO)


def quick_gelu_forward(x):
    """Compute ``x sigmoid(1.702 x)``, see `tinydiff.ops.quick_gelu_forward`."""
    return _gated(x, QUICK, ZERO)


def gelu_tanh_forward(x):
    """Compute ``x (1 + tanh(u)) / 2``, see `tinydiff.ops.gelu_tanh_forward`.

    Since ``(1 + tanh(u)) / 2 = sigmoid(2 u)``, and u is a polynomial.
    """
    return _gated(x, TANH, TANH_CUBED)


def _gated(x, a, b):
    """Compute ``x sigmoid(z)``, ``z = a x + b x^3``."""
    if not all_float32(x) or not x.ndim or x.size < SMALL * len(x):
        return NotImplemented
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    _gate(x.reshape(-1), y.reshape(-1), a, b)
    return y, Saved(_gated_backward, (x, a, b))


def _gated_backward(dy, arrays):
    """Pull `dy` back through `_gated`."""
    x, a, b = arrays
    dx = np.empty_like(x)
    _gate_pull_back(flat(dy, x.size), x.reshape(-1), dx.reshape(-1), a, b)
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
def _gate(x, y, a, b):
    """Fill `y`; both arrays are flat."""
    for piece in prange((x.size + PIECE - 1) // PIECE):
        start = np.int64(piece) * PIECE
        _gate_piece(x[start:start + PIECE], y[start:start + PIECE], a, b)


@serial
def _gate_piece(x, y, a, b):
    """Do one piece of `_gate`."""
    for i in range(x.size):
        c = _within(x[i])
        y[i] = x[i] * sigmoid(c * multiply_add(b, c * c, a))


@parallel
def _gate_pull_back(dy, x, dx, a, b):
    """Fill `dx`; all arrays are flat."""
    for piece in prange((x.size + PIECE - 1) // PIECE):
        start = np.int64(piece) * PIECE
        stop = start + PIECE
        _gate_pull_back_piece(dy[start:stop], x[start:stop], dx[start:stop], a, b)


@serial
def _gate_pull_back_piece(dy, x, dx, a, b):
    """Do one piece of `_gate_pull_back`: ``dz/dx = a + 3 b x^2``."""
    for i in range(x.size):
        c = _within(x[i])
        z = c * multiply_add(b, c * c, a)
        dx[i] = dy[i] * gate_slope(x[i], z, multiply_add(THREE * b, c * c, a))


@inlined
def _within(x):
    """Return `x` within the range where sigmoid(z) is neither 0 nor 1, so x^3 cannot overflow."""
    c = -FAR if x < -FAR else x                                       # NaN passes
    return FAR if c > FAR else c


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
