"""Check every version of the convolution kernels, and time them on a device.

``python -m tinydiff.kernels.conv2d_check`` checks on the emulator, and on a device if there is
one; with ``--bench`` it then times them there, at Stable Diffusion's sizes.
"""
import sys
from functools import partial

import numpy as np

from tinydiff.kernels.conv2d import (
    VERSIONS,
    backward_weight,
    backward_x,
    conv2d_backward,
    conv2d_forward,
    forward,
)

DIRECTIONS = ("y", "dx", "dweight")


def check(xp=np, B=2, C=9, H=9, W=13, O=5, K=3):
    """Compare every version with the formula in float64.

    Parameters
    ----------
    xp : module, default numpy
        numpy for the emulator, cupy for a device.
    B, C, H, W, O, K : int
        Sizes; K is the kernel's side.  Stride 1 and 2, padding 1.

    Yields
    ------
    version, stride : int
    errors : list of float
        Of y, dx and dweight, as a part of the largest entry.

    Raises
    ------
    AssertionError
        If a version is wrong.
    """
    rng = np.random.default_rng(0)
    x, weight = (xp.array(rng.standard_normal(shape, np.float32))
                 for shape in ((B, C, H, W), (O, C, K, K)))
    for version in VERSIONS:
        for stride in (1, 2):
            y, cache = conv2d_forward(x, weight, None, stride, version=version)
            dy = xp.array(rng.standard_normal(y.shape, np.float32))
            got = y, *conv2d_backward(dy, cache.arrays)[:2]
            errors = [float(abs(a - b).max() / abs(b).max())
                      for a, b in zip(got, formulas(xp, x, weight, dy, stride), strict=True)]
            limit = 1e-5 if version <= 3 else 2e-3            # factors of 24 or of 11 bits
            assert max(errors) < limit, f"version {version}, stride {stride}: errors {errors}"
            yield version, stride, errors


def formulas(xp, x, weight, dy, stride):
    """Return y, dx and dweight in float64, one tap after another; padding 1."""
    x = xp.pad(x.astype(np.float64), ((0, 0), (0, 0), (1, 1), (1, 1)))
    weight, dy = weight.astype(np.float64), dy.astype(np.float64)
    y, dx, dweight = 0.0, xp.zeros_like(x), xp.zeros_like(weight)
    rows, columns = dy.shape[2:]
    for i, j in np.ndindex(*weight.shape[2:]):
        seen = (slice(None), slice(None), slice(i, i + stride * rows, stride),
                slice(j, j + stride * columns, stride))
        y = y + xp.einsum("oc,bcpq->bopq", weight[:, :, i, j], x[seen])
        dx[seen] += xp.einsum("oc,bopq->bcpq", weight[:, :, i, j], dy)
        dweight[:, :, i, j] = xp.einsum("bopq,bcpq->oc", dy, x[seen])
    return y, dx[:, :, 1:-1, 1:-1], dweight


def bench(shapes=((2, 320, 64), (2, 640, 32), (2, 1280, 16)), repeats=20):
    """Time every version on the device, for 3x3 kernels.

    Parameters
    ----------
    shapes : sequence of (int, int, int)
        Pictures, channels in and out, side of a picture.
    repeats : int

    Yields
    ------
    shape : tuple
    direction : str
        One of `DIRECTIONS`.
    version : int
    seconds : float
        The fastest of `repeats`.
    """
    import cupy

    padding = ((1, 1), (1, 1))
    for B, C, side in shapes:
        x, dy = (cupy.random.standard_normal((B, C, side, side), np.float32) for _ in range(2))
        weight = cupy.random.standard_normal((C, C, 3, 3), np.float32)
        runs = (partial(forward, x, weight, None, 1, padding),
                partial(backward_x, dy, x.shape, weight, 1, padding),
                partial(backward_weight, dy, x, weight.shape, 1, padding))
        for direction, run in zip(DIRECTIONS, runs, strict=True):
            for version in VERSIONS:
                run(version)                                  # compiled, and warm
                yield (B, C, side), direction, version, min(
                    _seconds(cupy, run, version) for _ in range(repeats))


def _seconds(cupy, run, version):
    """Return how long the device works on one call."""
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    run(version)
    end.record()
    end.synchronize()
    return cupy.cuda.get_elapsed_time(start, end) / 1000


def device():
    """Return cupy if it finds a device, else None."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy if cupy.cuda.is_available() else None


def main(arguments):
    """Check every version, then time it if asked to."""
    cupy = device()
    for xp in (np, cupy) if cupy else (np,):
        print("on the device" if xp is cupy else "on the emulator")
        for version, stride, errors in check(xp):
            print(f"  {VERSIONS[version]:13s} stride {stride}:",
                  *(f" {name} {error:.1e}" for name, error in zip(DIRECTIONS, errors, strict=True)))
    if "--bench" not in arguments:
        return
    if not cupy:
        sys.exit("--bench needs a CUDA device and cupy: pip install 'tinydiff[cuda]'")
    for (B, C, side), direction, version, seconds in bench():
        rate = 2 * B * C * C * 9 * side * side / seconds / 1e12
        print(f"({B}, {C}, {side}, {side})  {direction:7s}  {VERSIONS[version]:13s}"
              f"  {1e3 * seconds:8.3f} ms  {rate:6.1f} TFLOP/s")


if __name__ == "__main__":
    main(sys.argv[1:])
