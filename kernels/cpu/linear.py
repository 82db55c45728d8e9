"""The linear layer on the matrix product of `gemm`; twins of the pair in tinydiff/ops/linear.py."""
import numpy as np

from tinydiff.backends.table import Saved
from tinydiff.kernels.cpu.gemm import NO_BIAS, add_products, multiply


def linear_forward(x, weight, bias=None):
    """``y = x Wᵀ + b``: x (..., I), weight (O, I); float32 only."""
    if not (type(x) is np.ndarray and x.dtype == weight.dtype == np.float32 and x.size):
        return NotImplemented
    O, I = weight.shape
    if x.shape[-1] != I:
        return NotImplemented                                         # whose error names the shapes
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    y = np.empty((*x.shape[:-1], O), np.float32)
    multiply(x.reshape(-1), I, 1, weight.reshape(-1), 1, I,
             NO_BIAS if bias is None else bias, y.reshape(-1), x.size // I, O, I)
    return y, Saved(linear_backward, (x, weight, bias is not None))


def linear_backward(dy, arrays, needs_dx=True, needs_dweight=True):
    """``dx = dy W``, ``dW = dyᵀ x``, ``db = sum of dy``."""
    x, weight, has_bias = arrays
    O, I = weight.shape
    N = x.size // I
    dy = np.ascontiguousarray(dy).reshape(-1)
    dx = dweight = dbias = None
    if needs_dx:
        dx = np.empty(x.shape, np.float32)
        multiply(dy, O, 1, weight.reshape(-1), I, 1, NO_BIAS, dx.reshape(-1), N, I, O)
    if needs_dweight:
        dweight, dbias = add_products(dy, 1, O, x.reshape(-1), I, 1, O, I, N)
    return dx, dweight, dbias if has_bias else None
