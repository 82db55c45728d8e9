"""Layer norm on the GPU: how each version is launched and checked, forward and backward.

    python -m tinydiff.kernels.layer_norm        # check every version

=======  ================================  ===================================================
version  idea                              what it saves
=======  ================================  ===================================================
1 naive  a thread for each row, and one    nothing: a warp's reads lie D numbers apart
         for each column for dweight
2 warp   a warp for each row, moments      one of three reads of x, and each read is of
         merged by shuffles                neighbouring numbers
=======  ================================  ===================================================
"""
import numpy as np

from tinydiff.backends.table import Saved
from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.kernels.launch import ceil_div, compile_kernel, device_or_host, empty, to_host

VERSIONS = {1: "layer_norm_v1", 2: "layer_norm_v2"}
FILE = "layer_norm.cu"
MACROS = {FILE: [{}]}
WARPS = 4                               # rows of a block of version 2
SIDE = 8                                # as in the .cu file
CHUNK = 256                             # rows whose parts of dweight one block adds up


def layer_norm_forward(x, weight, bias, eps=1e-5, *, version=2):
    """Normalise each vector, see `tinydiff.ops.layer_norm_forward`.

    `version` is one of `VERSIONS`; NotImplemented in place of a result says that the kernels do
    not know these arrays.
    """
    arrays = x, weight, bias
    if (len({type(a) for a in arrays}) > 1 or any(a.dtype != np.float32 for a in arrays)
            or not x.size or not weight.shape == bias.shape == x.shape[-1:]):
        return NotImplemented
    x, weight, bias = (a.astype(np.float32, order="C", copy=False) for a in arrays)
    D = weight.size
    rows = x.size // D
    y, mean, rstd = empty(x.shape, like=x), empty((rows,), like=x), empty((rows,), like=x)
    kernel = compile_kernel(FILE, VERSIONS[version])
    kernel(*_per_row(rows, version), (x, weight, bias, y, mean, rstd, np.int32(rows), np.int32(D),
                                      np.float32(eps)))
    return y, Saved(layer_norm_backward, (x, mean, rstd, weight, version))


def layer_norm_backward(dy, arrays, needs_dweight=True):
    """Pull `dy` back through `layer_norm_forward`."""
    x, mean, rstd, weight, version = arrays
    dy = dy.astype(np.float32, order="C", copy=False)
    D, rows = weight.size, mean.size
    sizes = np.int32(rows), np.int32(D)
    dx = empty(x.shape, like=x)
    kernel = compile_kernel(FILE, f"{VERSIONS[version]}_dx")
    kernel(*_per_row(rows, version), (dy, x, weight, mean, rstd, dx, *sizes))
    if not needs_dweight:
        return dx, None, None

    kernel = compile_kernel(FILE, f"{VERSIONS[version]}_dweight")
    if version == 1:
        dweight, dbias = empty((D,), like=x), empty((D,), like=x)
        kernel((ceil_div(D, 64),), (64,),                        # one thread per column
               (dy, x, mean, rstd, dweight, dbias, *sizes))
        return dx, dweight, dbias
    chunks = ceil_div(rows, CHUNK)
    dweight, dbias = empty((chunks, D), like=x), empty((chunks, D), like=x)
    kernel((ceil_div(D, 32), chunks), (32, SIDE),                # one block per 32 columns
           (dy, x, mean, rstd, dweight, dbias, *sizes, np.int32(CHUNK)))
    return dx, dweight.sum(axis=0), dbias.sum(axis=0)


def _per_row(rows, version):
    """Return grid and block: of one thread per row, or of one warp."""
    if version == 1:
        return (ceil_div(rows, 64),), (64,)
    return (ceil_div(rows, WARPS),), (32 * WARPS,)


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
    x, dy = rng.standard_normal((2, *shape), dtype=np.float32)
    weight, bias = rng.standard_normal((2, shape[-1]), dtype=np.float32)
    right = [_definition(*(a.astype(dtype) for a in (x, weight, bias, dy)))
             for dtype in (np.float32, np.float64)]
    for version in versions:
        y, cache = layer_norm_forward(*map(xp.asarray, (x, weight, bias)), version=version)
        got = y, *layer_norm_backward(xp.asarray(dy), cache.arrays)
        for ours, reference32, reference64 in zip(got, *right, strict=True):
            assert_as_accurate_as(to_host(ours), reference32, reference64)
        print(f"{VERSIONS[version]}: right for {shape}, forward and backward")


def _definition(x, weight, bias, dy, eps=1e-5):
    """Return y, dx, dweight and dbias, in the lines of tinydiff/ops/norm.py."""
    mean = lambda a: a.mean(axis=-1, keepdims=True)
    x_hat = x - mean(x)
    rstd = (mean(x_hat * x_hat) + eps) ** -0.5
    x_hat = x_hat * rstd
    dx_hat = weight * dy
    dx = rstd * (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat))
    rows = tuple(range(x.ndim - 1))
    return weight * x_hat + bias, dx, (dy * x_hat).sum(axis=rows), dy.sum(axis=rows)


if __name__ == "__main__":
    check(np.random.default_rng(0), xp=device_or_host())
