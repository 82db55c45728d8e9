"""Layer normalisation: each vector is read once, while it is in the processor's nearest cache."""
import numpy as np
from numba import prange

from tinydiff.backends.table import Saved
from tinydiff.kernels.cpu.arrays import all_float32, flat
from tinydiff.kernels.cpu.group_norm import moments
from tinydiff.kernels.cpu.jit import parallel, serial

CHUNKS = 32                             # pieces of work, whatever the number of threads


def layer_norm_forward(x, weight, bias, eps=1e-5):
    """Normalise each vector, see `tinydiff.ops.layer_norm_forward`."""
    if (not all_float32(x, weight, bias) or not x.size
            or not weight.shape == bias.shape == x.shape[-1:]):
        return NotImplemented
    x = np.ascontiguousarray(x)
    y = np.empty_like(x)
    mean, rstd = np.empty((2, x.size // weight.size), x.dtype)
    _normalise(x.reshape(-1), np.ascontiguousarray(weight), np.ascontiguousarray(bias),
               y.reshape(-1), mean, rstd, float(eps))
    return y, Saved(layer_norm_backward, (x, mean, rstd, weight))


def layer_norm_backward(dy, arrays, needs_dweight=True):
    """Pull `dy` back through `layer_norm_forward`."""
    x, mean, rstd, weight = arrays
    dx = np.empty_like(x)
    dweight, dbias = np.zeros((2, CHUNKS, weight.size), x.dtype)
    _pull_back(flat(dy, x.size), x.reshape(-1), np.ascontiguousarray(weight),
               mean, rstd, dx.reshape(-1), dweight.reshape(-1), dbias.reshape(-1))
    if not needs_dweight:
        return dx, None, None
    return dx, dweight.sum(axis=0), dbias.sum(axis=0)


@parallel
def _normalise(x, weight, bias, y, mean, rstd, eps):
    """Fill `y`, and `mean` and `rstd` of each vector; all arrays are flat."""
    for chunk in prange(CHUNKS):
        _normalise_rows(np.int64(chunk), x, weight, bias, y, mean, rstd, eps)


@serial
def _rows(chunk, rows):
    """Return the first row of a chunk, and the first after it."""
    return chunk * rows // CHUNKS, (chunk + 1) * rows // CHUNKS


@serial
def _normalise_rows(chunk, x, weight, bias, y, mean, rstd, eps):
    """Do one chunk of `_normalise`."""
    D = weight.size
    first, last = _rows(chunk, mean.size)
    for row in range(first, last):
        x_row, y_row = x[row * D:(row + 1) * D], y[row * D:(row + 1) * D]
        m, r = mean[row], rstd[row] = moments(x_row, eps)
        for i in range(D):
            y_row[i] = (x_row[i] - m) * r * weight[i] + bias[i]


@parallel
def _pull_back(dy, x, weight, mean, rstd, dx, dweight, dbias):
    """Fill `dx`, and add up `dweight` and `dbias` of each chunk of rows; all arrays are flat."""
    for chunk in prange(CHUNKS):
        _pull_back_rows(np.int64(chunk), dy, x, weight, mean, rstd, dx, dweight, dbias)


@serial
def _pull_back_rows(chunk, dy, x, weight, mean, rstd, dx, dweight, dbias):
    """Do one chunk of `_pull_back`: the formula of `tinydiff.ops.layer_norm_backward`."""
    D = weight.size
    dweight, dbias = dweight[chunk * D:(chunk + 1) * D], dbias[chunk * D:(chunk + 1) * D]
    first, last = _rows(chunk, mean.size)
    for row in range(first, last):
        vector = slice(row * D, (row + 1) * D)
        dy_row, x_row, dx_row = dy[vector], x[vector], dx[vector]
        m, r = mean[row], rstd[row]
        via_mean = via_std = np.float32(0.0)
        for i in range(D):
            dx_hat = weight[i] * dy_row[i]
            via_mean += dx_hat
            via_std += dx_hat * ((x_row[i] - m) * r)
        via_mean /= np.float32(D)
        via_std /= np.float32(D)
        for i in range(D):
            x_hat = (x_row[i] - m) * r
            dx_row[i] = r * (weight[i] * dy_row[i] - via_mean - x_hat * via_std)
            dweight[i] += dy_row[i] * x_hat
            dbias[i] += dy_row[i]
