"""Group norm on the GPU, with or without the modulation and SiLU after it: launches.

==========  =================================  ================================================
version     idea                               what it saves
==========  =================================  ================================================
1 two-pass  a thread for each group, for its   nothing: one thread reads a group twice while
            moments; one for each number       most of the GPU has nothing to do
2 one-pass  a block for each group; moments    one of three reads of x, and the launches: forward
            merged by warp shuffles            is one kernel, backward one and a small one
==========  =================================  ================================================

Only x, mean and rstd are kept for the backward pass, which makes the rest again.
"""
import numpy as np

from tinydiff.backends.table import Saved
from tinydiff.kernels.launch import ceil_div, compile_kernel, empty

VERSIONS = {1: "group_norm_v1_moments", 2: "group_norm_v2"}
FILE = "group_norm.cu"
MACROS = {FILE: [{}]}
PIECES = 4                              # parts of a channel, in the sums of the backward pass


def group_norm_forward(x, weight, bias, num_groups, eps=1e-5, *, version=2):
    """Normalise each group of channels, see `tinydiff.ops.group_norm_forward`."""
    return _forward(x, weight, bias, num_groups, eps, None, None, False, version)


def group_norm_backward(dy, arrays, needs_dweight=True):
    """Pull `dy` back through `group_norm_forward`."""
    return _backward(dy, arrays, needs_dweight, False)[:3]


def group_norm_silu_forward(x, weight, bias, num_groups, eps=1e-5, scale=None, shift=None, *,
                            version=2):
    """Normalise, scale, shift and apply SiLU, see `tinydiff.ops.group_norm_silu_forward`.

    `version` is one of `VERSIONS`; NotImplemented in place of a result says that the kernels do
    not know these arrays.
    """
    return _forward(x, weight, bias, num_groups, eps, scale, shift, True, version)


def group_norm_silu_backward(dy, arrays, needs_dweight=True):
    """Pull `dy` back through `group_norm_silu_forward`."""
    return _backward(dy, arrays, needs_dweight, True)


def _forward(x, weight, bias, num_groups, eps, scale, shift, silu, version):
    """Launch the kernels of `version`; the cache holds x itself."""
    moved = () if scale is None and shift is None else (scale, shift)
    if not _known(x, weight, bias, *moved) or not x.size or x.ndim < 2 or x.shape[1] % num_groups:
        return NotImplemented
    B, C = x.shape[:2]
    if not weight.shape == bias.shape == (C,) or any(a.shape != (B, C) for a in moved):
        return NotImplemented

    x, weight, bias, *moved = (a.astype(np.float32, order="C", copy=False)
                               for a in (x, weight, bias, *moved))
    factors = weight, bias, *(moved or (None, None))
    groups, pixels = B * num_groups, x.size // (B * C)
    y, mean, rstd = empty(x.shape, like=x), empty((groups,), like=x), empty((groups,), like=x)
    C, channels, pixels, silu = map(np.int32, (C, C // num_groups, pixels, silu))
    if version == 1:
        kernel = compile_kernel(FILE, "group_norm_v1_moments")
        kernel((ceil_div(groups, 32),), (32,),                   # one thread per group
               (x, mean, rstd, np.int32(groups), channels * pixels, np.float32(eps)))
        kernel = compile_kernel(FILE, "group_norm_v1_apply")
        kernel((ceil_div(x.size, 256),), (256,),                 # one thread per number
               (x, mean, rstd, *factors, y, np.int64(x.size), C, channels, pixels, silu))
    else:
        kernel = compile_kernel(FILE, "group_norm_v2")
        kernel((groups,), (_threads(channels * pixels),),        # one block per group
               (x, *factors, y, mean, rstd, C, channels, pixels, np.float32(eps), silu))
    backward = group_norm_silu_backward if silu else group_norm_backward
    return y, Saved(backward, (x, mean, rstd, *factors, version))


def _backward(dy, arrays, needs_dweight, silu):
    """Launch the kernels for dx, and one that puts together the parameters' gradients."""
    x, mean, rstd, weight, bias, scale, shift, version = arrays
    B, C = x.shape[:2]
    channels, pixels = C // (mean.size // B), x.size // (B * C)
    dy = dy.astype(np.float32, order="C", copy=False)
    dx, dp, dq = empty(x.shape, like=x), empty((B, C), like=x), empty((B, C), like=x)
    given = dy, x, mean, rstd, weight, bias, scale, shift
    sizes = tuple(map(np.int32, (C, channels, pixels)))
    silu = np.int32(silu)
    if version == 1:
        kernel = compile_kernel(FILE, "group_norm_v1_sums")
        kernel((ceil_div(B * C, 32),), (32,),                    # one thread per channel
               (*given, dp, dq, np.int32(B * C), *sizes, silu))
        kernel = compile_kernel(FILE, "group_norm_v1_dx")
        kernel((ceil_div(x.size, 256),), (256,),                 # one thread per number
               (*given, dp, dq, dx, np.int64(x.size), *sizes, silu))
    else:
        kernel = compile_kernel(FILE, "group_norm_v2_backward")
        kernel((mean.size,), (_threads(channels * pixels),),     # one block per group
               (*given, dp, dq, dx, *sizes, np.int32(PIECES), silu),
               shared_mem=8 * channels * PIECES)

    dweight = dbias = dscale = None
    if needs_dweight:
        dweight, dbias = empty((C,), like=x), empty((C,), like=x)
    if scale is not None:
        dscale = empty((B, C), like=x)
    if needs_dweight or scale is not None:
        kernel = compile_kernel(FILE, "group_norm_parameters")
        kernel((ceil_div(C, 64),), (64,),                        # one thread per channel
               (dp, dq, weight, bias, scale, dweight, dbias, dscale, np.int32(B), np.int32(C)))
    return dx, dweight, dbias, dscale, dq if scale is not None else None


def _known(*arrays):
    """Say whether these are float32 arrays of one kind."""
    return len({type(a) for a in arrays}) == 1 and all(a.dtype == np.float32 for a in arrays)


def _threads(numbers):
    """Return how many threads share so many numbers: whole warps, and some numbers for each."""
    return min(max(ceil_div(int(numbers), 4 * 32) * 32, 32), 512)
