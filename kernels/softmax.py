"""Softmax kernels: how each version is launched and checked.

    python -m tinydiff.kernels.softmax           # check every version

=======  ==============================================  =======================================
version  idea                                            reads of x, and how a row is reduced
=======  ==============================================  =======================================
1        one thread per row                              3, none of them side by side
2        a block per row                                 3, side by side; trees in shared memory
3        a warp per row, maximum and sum in one pass     2, side by side; shuffles
=======  ==============================================  =======================================

`softmax_forward` and `softmax_backward` are twins of the pair in tinydiff/ops/softmax.py.
"""
import numpy as np

from tinydiff.backends.table import Saved
from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.kernels.launch import ceil_div, compile_kernel, device_or_host, empty, to_host

VERSIONS = {1: "v1_naive", 2: "v2_block", 3: "v3_online"}
BACKWARD = {1: "v1_naive", 2: "v2_block", 3: "v3_warp"}
MACROS = {"softmax.cu": [{}], "softmax_backward.cu": [{}]}
THREADS = 128                           # in a block, as in the .cu files


def softmax_forward(x, axis=-1, out=None, *, version=3):
    """Turn scores into probabilities; see `tinydiff.ops.softmax_forward`."""
    if not _supported(x, axis) or (out is not None and not _supported(out, axis)):
        return NotImplemented
    y = empty(x.shape, like=x) if out is None else out
    rows, n = x.size // x.shape[-1], x.shape[-1]
    kernel = compile_kernel("softmax.cu", f"softmax_{VERSIONS[version]}")
    kernel(_grid(rows, version), (THREADS,), (x, y, np.int32(rows), np.int32(n)))
    return y, Saved(softmax_backward, (y, version))


def softmax_backward(dy, arrays):
    """Pull `dy` back; see `tinydiff.ops.softmax_backward`."""
    y, version = arrays
    dy = dy.astype(np.float32, order="C", copy=False)
    dx = empty(y.shape, like=y)
    rows, n = y.size // y.shape[-1], y.shape[-1]
    kernel = compile_kernel("softmax_backward.cu", f"softmax_backward_{BACKWARD[version]}")
    kernel(_grid(rows, version), (THREADS,), (dy, y, dx, np.int32(rows), np.int32(n)))
    return dx


def _supported(x, axis):
    """Say whether rows of float32 lie one after another."""
    return (x.dtype == np.float32 and x.flags.c_contiguous and axis in (-1, x.ndim - 1)
            and x.size > 0)


def _grid(rows, version):
    """Return how many blocks it takes: of rows, of one row, or of four warps with a row each."""
    return (ceil_div(rows, {1: THREADS, 2: 1, 3: THREADS // 32}[version]),)


def check(rng, shape=(5, 33, 67), versions=tuple(VERSIONS), xp=np):
    """Compare versions, forward and backward, with NumPy in float64.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : tuple of int
    versions : sequence of int
    xp : module
        numpy, which runs the emulator, or cupy.

    Raises
    ------
    AssertionError
        If the error of one is more than twice float32's own.
    """
    x = 4 * rng.standard_normal(shape, dtype=np.float32)
    dy = rng.standard_normal(shape, dtype=np.float32)
    x[..., -1] = -np.inf                                # impossible,
    x[0] = -np.inf                                      # and rows of nothing else
    right = [_definition(x.astype(dtype), dy.astype(dtype)) for dtype in (np.float32, np.float64)]
    for version in versions:
        y, cache = softmax_forward(xp.asarray(x), version=version)
        dx = softmax_backward(xp.asarray(dy), cache.arrays)
        for got, reference32, reference64 in zip((y, dx), *right, strict=True):
            assert_as_accurate_as(to_host(got), reference32, reference64)
        print(f"softmax_{VERSIONS[version]}: right for {shape}, forward and backward")


def _definition(x, dy):
    """Return y and dx, in the lines of tinydiff/ops/softmax.py."""
    y = np.exp(x - np.maximum(x.max(axis=-1, keepdims=True), np.finfo(x.dtype).min))
    y /= np.maximum(y.sum(axis=-1, keepdims=True), 1)
    return y, y * (dy - (dy * y).sum(axis=-1, keepdims=True))


if __name__ == "__main__":
    check(np.random.default_rng(0), xp=device_or_host())
