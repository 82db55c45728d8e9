"""The matrix product: how each version is launched and checked.

    python -m tinydiff.kernels.matmul            # check every version
    python -m tinydiff.kernels.matmul --count    # count what each asks of memory, on the emulator

Production uses the vendor's library; this is the ladder on which the other kernels' ideas stand.

version  idea                                     reads of global memory per product
-------  ---------------------------------------  ----------------------------------------------
1        one thread per entry                     2, each of them apart from its neighbours'
2        neighbours along a row                   2, side by side
3        tiles in shared memory                   2 / TILE                = 1/8 at TILE = 16
4        4 x 4 entries per thread                 2 / 64                  = 1/32
5        8 x 8 entries, four floats at a time     2 / 128                 = 1/64
6        tensor cores, TF32                       2 / 64
7        tensor cores, float16                    2 / 64, of half the bytes
"""
import sys

import numpy as np

from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.kernels.emulator import emulation
from tinydiff.kernels.emulator.counts import total
from tinydiff.kernels.launch import ceil_div, compile_kernel, device_or_host, empty, to_host
from tinydiff.kernels.rounding import rounded

VERSIONS = {1: "matmul_v1_naive", 2: "matmul_v2_coalesced", 3: "matmul_v3_tiled",
            4: "matmul_v4_registers", 5: "matmul_v5_vectors", 6: "matmul_v6_tf32",
            7: "matmul_v7_half"}
PRECISION = {6: "tf32", 7: "float16"}               # of the factors; the others are float32
MACROS = {"matmul.cu": [{"TILE": 16}, {"TILE": 8}]}
SIDE = {4: 64, 5: 128, 6: 64, 7: 64}                # entries along a side of a block's part of c


def matmul(a, b, version=5, tile=16):
    """Multiply matrices.

    Parameters
    ----------
    a : (M, K) float32 ndarray
        NumPy or CuPy.
    b : (K, N) float32 ndarray
    version : int, default 5
        One of `VERSIONS`; 5 is the last one that rounds as float32 does.
    tile : int, default 16
        Threads along a side of a block, in versions 1 to 3.

    Returns
    -------
    c : (M, N) float32 ndarray
    """
    (M, K), N = a.shape, b.shape[1]
    if b.shape[0] != K:
        raise ValueError(f"a has {K} columns and b {b.shape[0]} rows; they must be as many")
    if version == 7:
        a, b = rounded(a, "float16"), rounded(b, "float16")
    c = empty((M, N), like=a, dtype=np.float32)

    if version == 1:
        block = (tile, tile)                                    # one thread per entry
        grid = (ceil_div(M, tile), ceil_div(N, tile))           # x goes down the rows
    elif version < 4:
        block = (tile, tile)                                    # one thread per entry
        grid = (ceil_div(N, tile), ceil_div(M, tile))           # x goes along the columns
    else:
        block = (16, 16) if version < 6 else (128,)             # 256 threads, or 4 warps
        grid = (ceil_div(N, SIDE[version]), ceil_div(M, SIDE[version]))
    kernel = compile_kernel("matmul.cu", VERSIONS[version], TILE=tile)
    kernel(grid, block, (a, b, c, *map(np.int32, (M, N, K))))
    return c


def check(rng, shape=(33, 65, 19), versions=tuple(VERSIONS), xp=np):
    """Compare versions with NumPy in float64, by the rule of `assert_as_accurate_as`.

    Parameters
    ----------
    rng : numpy.random.Generator
    shape : (int, int, int), default (33, 65, 19)
        M, N and K: sizes that no tile divides.
    versions : sequence of int
    xp : module
        numpy, which runs the emulator, or cupy.

    Raises
    ------
    AssertionError
        If the error of one is more than twice float32's own.
    """
    M, N, K = shape
    a = rng.standard_normal((M, K), dtype=np.float32)
    b = rng.standard_normal((K, N), dtype=np.float32)
    for version in versions:
        seen = [rounded(x, PRECISION.get(version, "float32")) for x in (a, b)]
        reference32, reference64 = (np.matmul(*(x.astype(dtype) for x in seen))
                                    for dtype in (np.float32, np.float64))
        got = matmul(xp.asarray(a), xp.asarray(b), version)
        assert_as_accurate_as(to_host(got), reference32, reference64)
        print(f"{VERSIONS[version]}: right for {M} x {K} by {K} x {N}")


def count(size=128):
    """Print how many sectors and passes each version takes for square matrices."""
    a = np.ones((size, size), np.float32)
    print(f"{size} x {size} x {size}            sectors, global memory  passes, shared memory")
    for version, name in VERSIONS.items():
        with emulation(count=True) as run:
            matmul(a, a, version)
        print(f"{name:20s}  {total(run.counts, 'global'):28,d}  {total(run.counts, 'shared'):21,d}")


if __name__ == "__main__":
    if "--count" in sys.argv:
        count()
    else:
        check(np.random.default_rng(0), xp=device_or_host())
