"""Check every version of the convolution kernels, and time them on a device.

``python -m tinydiff.kernels.conv2d_check`` checks, on a device if there is one, else on the
emulator; ``--count`` then counts what they ask of memory (a minute), which takes no device;
``--bench`` times them on the device, at Stable Diffusion's sizes.
"""
import sys
from functools import partial

import numpy as np

from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.kernels.conv2d import (
    PRECISION,
    VERSIONS,
    backward_weight,
    backward_x,
    conv2d_backward,
    conv2d_forward,
    forward,
)
from tinydiff.kernels.emulator import emulation
from tinydiff.kernels.launch import device_or_host, to_host
from tinydiff.kernels.rounding import rounded

SECTOR = 32                             # bytes


def check(rng, sizes=(2, 9, 9, 13, 5, 3), versions=tuple(VERSIONS), xp=np):
    """Compare versions with NumPy in float64, by the rule of `assert_as_accurate_as`.

    Parameters
    ----------
    rng : numpy.random.Generator
    sizes : (int, int, int, int, int, int)
        B, C, H, W, O and the kernel's side, for stride 1 and 2 with padding 1.
    versions : sequence of int
    xp : module
        numpy, which runs the emulator, or cupy.

    Raises
    ------
    AssertionError
        If the error of one is more than twice float32's own.
    """
    B, C, H, W, O, K = sizes
    x, weight = (rng.standard_normal(shape, np.float32) for shape in ((B, C, H, W), (O, C, K, K)))
    for version, stride in ((version, stride) for version in versions for stride in (1, 2)):
        y, cache = conv2d_forward(xp.asarray(x), xp.asarray(weight), None, stride, version=version)
        dy = rng.standard_normal(y.shape, np.float32)
        dx, dweight, _ = conv2d_backward(xp.asarray(dy), cache.arrays)

        seen = [rounded(a, PRECISION[version]) for a in (x, weight, dy)]
        single, double = ([*formulas(*(a.astype(dtype) for a in seen), stride)]
                          for dtype in (np.float32, np.float64))
        for ours, theirs, right in zip((y, dx, dweight), single, double, strict=True):
            assert_as_accurate_as(to_host(ours), theirs, right)
        print(f"{VERSIONS[version]}, stride {stride}: y, dx and dweight are right")


def formulas(x, weight, dy, stride):
    """Return y, dx and dweight, one tap after another; padding 1."""
    x = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    y, dx, dweight = np.zeros_like(dy), np.zeros_like(x), np.zeros_like(weight)
    rows, columns = dy.shape[2:]
    for i, j in np.ndindex(*weight.shape[2:]):
        seen = (slice(None), slice(None), slice(i, i + stride * rows, stride),
                slice(j, j + stride * columns, stride))
        y += np.einsum("oc,bcpq->bopq", weight[:, :, i, j], x[seen])
        dx[seen] += np.einsum("oc,bopq->bcpq", weight[:, :, i, j], dy)
        dweight[:, :, i, j] = np.einsum("bopq,bcpq->oc", dy, x[seen])
    return y, dx[:, :, 1:-1, 1:-1], dweight


def launches(x, weight, dy):
    """Return ``(direction, function of a version)`` three times, with padding 1 and stride 1."""
    padding = ((1, 1), (1, 1))
    return (("y", partial(forward, x, weight, None, 1, padding)),
            ("dx", partial(backward_x, dy, x.shape, weight, 1, padding)),
            ("dweight", partial(backward_weight, dy, x, weight.shape, 1, padding)))


def count(C=16, O=128, H=8, W=16):
    """Count what every version asks of memory, on the emulator, for one picture and 3x3 kernels.

    Parameters
    ----------
    C, O, H, W : int
        Small, since each access is looked at; by default one tile of versions 3 to 5.

    Yields
    ------
    direction : str
    version : int
    moved : float
        Bytes of global memory for each product, by whole sectors, as if there were no caches.
    passes : float
        Passes of shared memory for 1000 products.
    """
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.standard_normal(shape, np.float32)
                     for shape in ((1, C, H, W), (O, C, 3, 3), (1, O, H, W)))
    products = O * H * W * C * 9
    for direction, run in launches(x, weight, dy):
        for version in VERSIONS:
            with emulation(count=True) as counted:
                run(version)
            sums = dict.fromkeys(("global", "shared"), 0)
            for line in counted.counts:
                sums[line.space] += line.moved
            yield (direction, version, SECTOR * sums["global"] / products,
                   1000 * sums["shared"] / products)


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
        "y", "dx" or "dweight".
    version : int
    seconds : float
        The fastest of `repeats`.
    """
    import cupy

    for B, C, side in shapes:
        x, dy = (cupy.random.standard_normal((B, C, side, side), np.float32) for _ in range(2))
        weight = cupy.random.standard_normal((C, C, 3, 3), np.float32)
        for direction, run in launches(x, weight, dy):
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


def main(arguments):
    """Check every version, then time it if asked to."""
    xp = device_or_host()
    check(np.random.default_rng(0), xp=xp)
    if "--count" in arguments:
        print("direction  version        bytes moved per product, shared passes per 1000")
        for direction, version, moved, passes in count():
            print(f"{direction:9s}  {VERSIONS[version]:13s}  {moved:6.3f}  {passes:6.1f}")
    if "--bench" not in arguments:
        return
    if xp is np:
        sys.exit("--bench needs a CUDA device and CuPy: pip install 'tinydiff[cuda]'")
    for (B, C, side), direction, version, seconds in bench():
        rate = 2 * B * C * C * 9 * side * side / seconds / 1e12
        print(f"({B}, {C}, {side}, {side})  {direction:7s}  {VERSIONS[version]:13s}"
              f"  {1e3 * seconds:8.3f} ms  {rate:6.1f} TFLOP/s")


if __name__ == "__main__":
    main(sys.argv[1:])
