"""Group normalisation, with or without the SiLU after it: one read of x, one write of y.

The definition, `tinydiff.ops.norm`, goes through the pictures once for the mean, once to subtract
it, once for the variance and once to scale; SiLU behind it takes four more passes, and each pass
reads and writes the main memory.  One group of one picture fits in a processor's own cache, and
that is the unit of work here: the passes over a group follow each other while it is there.

Weight, bias and the timestep's scale and shift are two numbers per picture and channel::

    y = f(p x_hat + q),    p = weight (1 + scale),    q = bias (1 + scale) + shift

with f = SiLU or nothing; so one kernel serves all of them.
"""
import numpy as np
from numba import prange

from tinydiff.backends.table import Saved
from tinydiff.kernels.cpu.arrays import all_float32, flat
from tinydiff.kernels.cpu.expf import sigmoid, silu_slope
from tinydiff.kernels.cpu.jit import inlined, parallel, serial

PIECE = 512                            # pixels that are summed in float32


def group_norm_forward(x, weight, bias, num_groups, eps=1e-5):
    """Normalise each group of channels, see `tinydiff.ops.group_norm_forward`."""
    return _forward(x, weight, bias, num_groups, eps, None, None, silu=False)


def group_norm_backward(dy, arrays, needs_dweight=True):
    """Pull `dy` back through `group_norm_forward`."""
    return _backward(dy, arrays, needs_dweight, silu=False)[:3]


def group_norm_silu_forward(x, weight, bias, num_groups, eps=1e-5, scale=None, shift=None):
    """Normalise, scale, shift and apply SiLU, see `tinydiff.ops.group_norm_silu_forward`."""
    return _forward(x, weight, bias, num_groups, eps, scale, shift, silu=True)


def group_norm_silu_backward(dy, arrays, needs_dweight=True):
    """Pull `dy` back through `group_norm_silu_forward`."""
    return _backward(dy, arrays, needs_dweight, silu=True)


def _forward(x, weight, bias, num_groups, eps, scale, shift, silu):
    """Run the kernel on whole pictures; the cache holds x itself, not a copy."""
    moved = () if scale is None and shift is None else (scale, shift)
    if not all_float32(x, weight, bias, *moved) or not x.size or x.shape[1] % num_groups:
        return NotImplemented
    B, C = x.shape[:2]
    if not weight.shape == bias.shape == (C,) or any(a.shape != (B, C) for a in moved):
        return NotImplemented

    x = np.ascontiguousarray(x)
    p, q = _factors(weight, bias, scale, shift)
    y = np.empty_like(x)
    mean, rstd = np.empty((2, B * num_groups), x.dtype)
    _normalise(x.reshape(-1), y.reshape(-1), p.reshape(-1), q.reshape(-1), mean, rstd,
               num_groups, C // num_groups, x.size // (B * C), p.ndim > 1, float(eps), silu)
    backward = group_norm_silu_backward if silu else group_norm_backward
    return y, Saved(backward, (x, mean, rstd, weight, bias, scale, shift))


def _backward(dy, arrays, needs_dweight, silu):
    """Run the kernel, then add its sums per picture and channel over the pictures.

    Notes
    -----
    The kernel returns the gradients dp and dq of the two numbers per picture and channel, and by
    the chain rule::

        dweight = sum_b (1 + scale) dp        dscale = weight dp + bias dq
        dbias   = sum_b (1 + scale) dq        dshift = dq
    """
    x, mean, rstd, weight, bias, scale, shift = arrays
    B, C = x.shape[:2]
    num_groups = mean.size // B
    p, q = _factors(weight, bias, scale, shift)
    dx = np.empty_like(x)
    dp, dq = np.empty((2, B, C), x.dtype)
    _pull_back(flat(dy, x.size), x.reshape(-1), dx.reshape(-1), p.reshape(-1), q.reshape(-1),
               mean, rstd, dp.reshape(-1), dq.reshape(-1), num_groups, C // num_groups,
               x.size // (B * C), p.ndim > 1, silu)

    dweight = dbias = dscale = dshift = None
    if scale is not None:
        dscale, dshift = weight * dp + bias * dq, dq
        dp, dq = (1.0 + scale) * dp, (1.0 + scale) * dq
    if needs_dweight:
        dweight, dbias = dp.sum(axis=0), dq.sum(axis=0)
    return dx, dweight, dbias, dscale, dshift


def _factors(weight, bias, scale, shift):
    """Return p and q: (B, C), or (C,) where all pictures share them."""
    if scale is None:
        return np.ascontiguousarray(weight), np.ascontiguousarray(bias)
    gain = 1.0 + scale
    return gain * weight, gain * bias + shift


@parallel
def _normalise(x, y, p, q, mean, rstd, groups, channels, pixels, own, eps, silu):
    """Fill `y`, and `mean` and `rstd` of each group; all arrays are flat.

    `channels` is how many a group has; `own` is True if each picture has its own p and q.
    """
    for g in prange(mean.size):
        _normalise_group(np.int64(g), x, y, p, q, mean, rstd, groups, channels, pixels, own, eps,
                         silu)


@serial
def moments(x, eps):
    """Return the mean of `x` and ``(variance + eps) ** -0.5``.

    Notes
    -----
    One pass: the variance is ``mean(x^2) - mean(x)^2``, in float64.  If the mean is k times the
    deviation, the difference is right to k^2 2^-53 of the variance; but float32 holds the
    deviations themselves to k 2^-24 only, which is more for every k < 2^29.
    """
    total = square = 0.0
    for i in range(x.size):
        x_i = np.float64(x[i])
        total += x_i
        square += x_i * x_i
    mean = total / x.size
    var = max(square / x.size - mean * mean, 0.0)
    return np.float32(mean), np.float32(1.0 / np.sqrt(var + eps))


@serial
def _normalise_group(g, x, y, p, q, mean, rstd, groups, channels, pixels, own, eps, silu):
    """Fill `y` for group `g`, counted over all pictures."""
    start = g * channels * pixels
    first = (g if own else g % groups) * channels                     # in p and q
    m, r = mean[g], rstd[g] = moments(x[start:start + channels * pixels], eps)
    for c in range(first, first + channels):
        scale, shift = r * p[c], q[c]
        x_c, y_c = x[start:start + pixels], y[start:start + pixels]
        start += pixels
        if silu:
            for i in range(pixels):
                u = (x_c[i] - m) * scale + shift
                y_c[i] = u * sigmoid(u)
        else:
            for i in range(pixels):
                y_c[i] = (x_c[i] - m) * scale + shift


@parallel
def _pull_back(dy, x, dx, p, q, mean, rstd, dp, dq, groups, channels, pixels, own, silu):
    """Fill `dx`, and `dp` and `dq` of each picture and channel; all arrays are flat."""
    for g in prange(mean.size):
        _pull_back_group(np.int64(g), dy, x, dx, p, q, mean[g], rstd[g], dp, dq, groups, channels,
                         pixels, own, silu)


@serial
def _pull_back_group(g, dy, x, dx, p, q, mean, rstd, dp, dq, groups, channels, pixels, own, silu):
    """Fill `dx`, `dp` and `dq` for group `g`, counted over all pictures.

    Notes
    -----
    Two passes.  With u = p x_hat + q the first puts du = f'(u) dy in `dx`, and sums up::

        dq = sum(du),    dp = sum(du x_hat)

    They give the means of the three paths of `tinydiff.ops.group_norm_backward` (N entries)::

        dx = rstd (p du  -  via_mean  -  x_hat via_std)
        via_mean = sum_c(p dq) / N,    via_std = sum_c(p dp) / N

    and the second pass puts them together: ``dx = rstd p du + (x - mean) slope + constant``.
    """
    N = channels * pixels
    own_channels = g * channels                                       # in dp and dq
    first = (g if own else g % groups) * channels                     # in p and q
    via_mean = via_std = 0.0
    for c in range(channels):
        sum_du = sum_du_x = 0.0
        begin = g * N + c * pixels
        for start in range(begin, begin + pixels, PIECE):
            stop = min(start + PIECE, begin + pixels)
            part, part_x = _channel_sums(dy[start:stop], x[start:stop], dx[start:stop],
                                         mean, rstd * p[first + c], q[first + c], silu)
            sum_du += part
            sum_du_x += part_x
        dq[own_channels + c], dp[own_channels + c] = sum_du, rstd * sum_du_x
        via_mean += p[first + c] * sum_du / N
        via_std += p[first + c] * rstd * sum_du_x / N

    slope = np.float32(-rstd * rstd * via_std)
    constant = np.float32(-rstd * via_mean)
    for c in range(channels):
        direct = rstd * p[first + c]
        begin = g * N + c * pixels
        x_c, dx_c = x[begin:begin + pixels], dx[begin:begin + pixels]
        for i in range(pixels):
            dx_c[i] = dx_c[i] * direct + (x_c[i] - mean) * slope + constant


@inlined
def _channel_sums(dy, x, dx, mean, scale, shift, silu):
    """Put ``du = f'(u) dy`` in `dx` and return ``sum(du)`` and ``sum(du (x - mean))``."""
    sum_du = sum_du_x = np.float32(0.0)
    if silu:
        for i in range(x.size):
            centred = x[i] - mean
            du = dy[i] * silu_slope(centred * scale + shift)
            dx[i] = du
            sum_du += du
            sum_du_x += du * centred
    else:
        for i in range(x.size):
            dx[i] = dy[i]
            sum_du += dy[i]
            sum_du_x += dy[i] * (x[i] - mean)
    return sum_du, sum_du_x
