"""The emulator runs CUDA kernels as a device would, and finds the mistakes a device would hide.

Every mistake is made here on purpose, in a kernel of a few lines.
"""
import numpy as np
import pytest

from tinydiff.kernels.emulator import (
    EmulationError,
    emulate,
    obstacle,
)

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))

KERNELS = r"""
#include "ptx.cuh"

extern "C" __global__ void reverse(const float* x, float* y, int n) {
    __shared__ float tile[64];
    int i = threadIdx.x;
    tile[i] = x[blockIdx.x * 64 + i];
    __syncthreads();                                    // the tile is complete
    y[blockIdx.x * 64 + i] = tile[63 - i];
}

extern "C" __global__ void reverse_warp(const float* x, float* y) {
    __shared__ float tile[2][32];
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    tile[warp][lane] = x[threadIdx.x];
    __syncwarp();                                       // the warp's row is complete
    y[threadIdx.x] = tile[warp][31 - lane];
}

extern "C" __global__ void total(const float* x, float* sum, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) atomicAdd(sum, x[i]);                    // all add to one number
}

extern "C" __global__ void past_the_end(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) y[i] = 2 * x[i];
}

extern "C" __global__ void past_a_row(float* y) {
    __shared__ float row[31], other[33];
    other[threadIdx.x] = 1;
    row[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = row[threadIdx.x];
}

extern "C" __global__ void some_return(float* y, int n) {
    if (int(threadIdx.x) >= n) return;
    __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void two_barriers(float* y) {
    if (threadIdx.x % 2) __syncthreads();
    else
        __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void warp_sum(const float* x, float* y, unsigned mask) {
    float sum = x[threadIdx.x];
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(mask, sum, d);
    y[threadIdx.x] = sum;
}

extern "C" __global__ void one_forgotten(float* y, int n) {
    if (int(threadIdx.x) < n) y[threadIdx.x] = 1;
}

extern "C" __global__ void never_written(float* y) {
    __shared__ float tile[64];
    y[threadIdx.x] = tile[threadIdx.x];
}
"""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "mistakes.cu"
    path.write_text(KERNELS)
    return lambda name: emulate(str(path), name)


def line(text):
    """The place of the first line of `KERNELS` that holds a text."""
    number = next(i for i, each in enumerate(KERNELS.splitlines(), 1) if text in each)
    return f"mistakes.cu:{number}"


def reversed_by(kernel, **options):
    x, y = normal(128), np.full(128, np.nan, np.float32)
    kernel("reverse")((2,), (64,), (x, y, np.int32(128)), **options)
    np.testing.assert_array_equal(y.reshape(2, 64), x.reshape(2, 64)[:, ::-1])


# ---- what is right passes ----

@pytest.mark.parametrize("race", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_right_kernel_passes_in_any_order(kernel, seed, race):
    reversed_by(kernel, seed=seed, race=race)


# ---- what is wrong is found ----

@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_missing_barrier_gives_wrong_numbers(kernel, seed):
    with pytest.raises(AssertionError):
        reversed_by(kernel, seed=seed, ignore=[line("the tile is complete")])


def test_race_mode_names_a_missing_barrier(kernel):
    with pytest.raises(EmulationError) as error:
        reversed_by(kernel, race=True, ignore=[line("the tile is complete")])
    text = str(error.value)
    assert "race on tile" in text
    assert line("tile[i] = x") in text
    assert line("= tile[63 - i]") in text
    assert text.count("thread (") == 2


def test_race_mode_names_an_access_past_the_end(kernel):
    x, y = normal(64), normal(64)
    with pytest.raises(EmulationError, match=r"thread \(0,0,0\) reads out of bounds at "
                       rf"{line('i <= n')}: 4 bytes, 4 bytes past the end of x"):
        kernel("past_the_end")((3,), (32,), (x, y, np.int32(64)), race=True)
