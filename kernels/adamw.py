"""AdamW and the moving average in one kernel: how each version is launched and checked.

    python -m tinydiff.kernels.adamw             # check every version

=======  ===================================  ======================================
version  idea                                 requests of a warp for 128 numbers
=======  ===================================  ======================================
1        one thread per number                4 for each array read or written
2        four numbers per thread, a float4    1
=======  ===================================  ======================================

`adamw_update` is the twin of `tinydiff.optim.adamw_update`, whose lines read 28 arrays and write
19; there can be no fewer than 5 and 4.
"""
from math import sqrt

import numpy as np

from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.kernels.launch import address, ceil_div, compile_kernel, device_or_host, to_host

VERSIONS = {1: "adamw_v1_fused", 2: "adamw_v2_vectors"}
MACROS = {"adamw.cu": [{}]}
THREADS = 256                           # in a block


def adamw_update(value, grad, m, v, average=None, *, k, lr, betas, eps, weight_decay,
                 clip=1.0, share=0.0, version=2):
    """Update in place; see `tinydiff.optim.adamw_update`."""
    arrays = [value, grad, m, v, average]
    given = [a for a in arrays if a is not None]
    if not all(a.dtype == np.float32 and a.flags.c_contiguous for a in given) or not value.size:
        return NotImplemented
    beta1, beta2 = betas
    rates = [np.float32(float(r)) for r in (
        clip, 1 - beta1, 1 - beta2, 1 / sqrt(1 - beta2**k), eps, lr / (1 - beta1**k),
        lr * weight_decay, share)]
    # A float4 begins at a multiple of 16 bytes; the last few numbers fill none.
    four = version == 2 and all(address(a) % 16 == 0 for a in given)
    done = value.size // 4 * 4 if four else 0
    if done:
        _launch(2, done // 4, [a if a is None else a.reshape(-1)[:done] for a in arrays], rates)
    if done < value.size:
        rest = [a if a is None else a.reshape(-1)[done:] for a in arrays]
        _launch(1, value.size - done, rest, rates)
    return None


def _launch(version, n, arrays, rates):
    """Run a version on `n` threads, the rest of the last block idle."""
    kernel = compile_kernel("adamw.cu", VERSIONS[version])
    kernel((ceil_div(n, THREADS),), (THREADS,), (*arrays, np.int32(n), *rates))


def check(rng, n=1003, versions=tuple(VERSIONS), xp=np):
    """Compare versions with the formula in float64, with and without an average.

    Parameters
    ----------
    rng : numpy.random.Generator
    n : int
    versions : sequence of int
    xp : module
        numpy, which runs the emulator, or cupy.

    Raises
    ------
    AssertionError
        If the error of one is more than twice float32's own.
    """
    start = rng.standard_normal((5, n), dtype=np.float32)
    start[3] **= 2                                      # v is a mean of squares
    rates = {"k": 3, "lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01,
             "clip": 0.7, "share": 0.1}
    right = [_definition(*start.astype(dtype), **rates) for dtype in (np.float32, np.float64)]
    for version in versions:
        for arrays in (5, 4):                           # value, grad, m, v, and average
            got = [xp.asarray(a.copy()) for a in start[:arrays]]
            adamw_update(*got, **rates, version=version)
            for ours, reference32, reference64 in zip(got, *right, strict=False):
                assert_as_accurate_as(to_host(ours), reference32, reference64)
        print(f"{VERSIONS[version]}: right for {n} numbers")


def _definition(value, grad, m, v, average, *, k, lr, betas, eps, weight_decay, clip, share):
    """Return what all five become, in the lines of tinydiff/optim.py."""
    beta1, beta2 = betas
    g = clip * grad
    m = m + (1 - beta1) * (g - m)
    v = v + (1 - beta2) * (g * g - v)
    step = lr / (1 - beta1**k) * m / (np.sqrt(v) / sqrt(1 - beta2**k) + eps)
    value = value - (step + lr * weight_decay * value)
    return value, grad, m, v, average + share * (value - average)


if __name__ == "__main__":
    check(np.random.default_rng(0), xp=device_or_host())
