"""The emulator runs CUDA kernels as a device would, and finds the mistakes a device would hide.

Every mistake is made here on purpose, in a kernel of a few lines.
"""
from functools import partial

import numpy as np
import pytest

from tinydiff.kernels.emulator import (
    CompileError,
    EmulationError,
    emulate,
    emulation,
    obstacle,
    sites,
    unnoticed,
)
from tinydiff.kernels.rounding import tf32

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))

KERNELS = r"""
#include "ptx.cuh"

extern "C" __global__ void reverse(const float* x, float* y) {
    __shared__ float tile[64];
    int i = threadIdx.x;
    tile[i] = x[blockIdx.x * 64 + i];
    __syncthreads();                                    // the tile is complete
    y[blockIdx.x * 64 + i] = tile[63 - i];
    __syncthreads();                                    // nothing follows: redundant
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

extern "C" __global__ void total_unprotected(const float* x, float* sum) {
    sum[0] += x[blockIdx.x];
}

extern "C" __global__ void past_the_end(const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) y[i] = 2 * x[i];
}

extern "C" __global__ void write_past_the_end(float* y, int n) {
    if (threadIdx.x <= n) y[threadIdx.x] = 1;
}

extern "C" __global__ void past_a_row(float* y) {
    __shared__ float row[31];
    __shared__ float other[33];
    other[threadIdx.x] = 1;
    row[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = row[threadIdx.x] + other[threadIdx.x];
}

extern "C" __global__ void some_return(float* y, int n) {
    if (threadIdx.x >= n) return;
    __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void two_barriers(float* y) {
    if (threadIdx.x < 32) __syncthreads();              // one half
    else
        __syncthreads();                                // the other
    y[threadIdx.x] = 1;
}

extern "C" __global__ void warp_sum(const float* x, float* y, unsigned mask) {
    float sum = x[threadIdx.x];
    for (int d = 16; d; d /= 2) sum += __shfl_xor_sync(mask, sum, d);
    y[threadIdx.x] = sum;
}

extern "C" __global__ void half_a_warp_waits(float* y) {
    if (threadIdx.x < 16) __syncwarp();                 // lanes 16 to 31 never come
    else __syncthreads();
    y[threadIdx.x] = 1;
}

extern "C" __global__ void never_written(float* y) {
    __shared__ float tile[64];
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void misaligned(const float* x, float4* y) {
    y[0] = *reinterpret_cast<const float4*>(x + 1);
}

extern "C" __global__ void read_with_stride(const float* x, float* y, int stride) {
    __shared__ float tile[32 * 32];
    float value = x[threadIdx.x * stride];              // global, with a stride
    tile[threadIdx.x * stride] = value;                 // shared, with a stride
    y[threadIdx.x] = tile[threadIdx.x * stride];
}

extern "C" __global__ void copy_four(const float* x, float* y) {
    const float4 four = reinterpret_cast<const float4*>(x)[threadIdx.x];    // 16 bytes at once
    reinterpret_cast<float4*>(y)[threadIdx.x] = four;
}

extern "C" __global__ void copy_later(const float* x, float* y, int n) {
    __shared__ float4 tile[2][32];
    int i = threadIdx.x;
    for (int part = 0; part < 2; part++) {
        int at = 128 * part + 4 * i;
        copy_async16(&tile[part][i], x + at, at < n);
        copy_async_commit();
    }
    copy_async_wait<1>();                               // the first part has come
    __syncthreads();                                    // for all
    reinterpret_cast<float4*>(y)[31 - i] = tile[0][31 - i];
    copy_async_wait<0>();                               // and the second
    reinterpret_cast<float4*>(y + 128)[i] = tile[1][i];
}

// a is 16 x 16, b is 16 x 8: one mma of half or bfloat16, two of tf32.
extern "C" __global__ void product_tf32(const float* a, const float* b, float* c) {
    int g = threadIdx.x / 4, t = threadIdx.x % 4;
    float d[4] = {};
    for (int k = 0; k < 16; k += 8) {
        unsigned a_k[4], b_k[2];
        for (int r = 0; r < 4; r++)
            a_k[r] = to_tf32(a[(g + 8 * (r % 2)) * 16 + k + t + 4 * (r / 2)]);
        for (int r = 0; r < 2; r++) b_k[r] = to_tf32(b[(k + t + 4 * r) * 8 + g]);
        mma_tf32(d, a_k, b_k);
    }
    for (int e = 0; e < 4; e++) c[(g + 8 * (e / 2)) * 8 + 2 * t + e % 2] = d[e];
}

#define PRODUCT_16                                                                          \
    int g = threadIdx.x / 4, t = threadIdx.x % 4;                                           \
    float d[4] = {};                                                                        \
    unsigned a_k[4], b_k[2];                                                                \
    for (int r = 0; r < 4; r++) {                                                           \
        int at = (g + 8 * (r % 2)) * 16 + 2 * t + 8 * (r / 2);                              \
        a_k[r] = pack(a[at], a[at + 1]);                                                    \
    }                                                                                       \
    for (int r = 0; r < 2; r++) {                                                           \
        int at = (2 * t + 8 * r) * 8 + g;                                                   \
        b_k[r] = pack(b[at], b[at + 8]);                                                    \
    }                                                                                       \
    MULTIPLY(d, a_k, b_k);                                                                  \
    for (int e = 0; e < 4; e++) c[(g + 8 * (e / 2)) * 8 + 2 * t + e % 2] = d[e];

#define MULTIPLY mma_half
extern "C" __global__ void product_half(const half* a, const half* b, float* c) { PRODUCT_16 }
#undef MULTIPLY
#define MULTIPLY mma_bfloat16
extern "C" __global__ void product_bfloat16(const bfloat16* a, const bfloat16* b, float* c) {
    PRODUCT_16
}

extern "C" __global__ void round_all(const float* x, half* to_16, float* and_back, bfloat16* brain,
                                     unsigned* to_19, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    to_16[i] = to_half(x[i]);
    and_back[i] = to_float(to_16[i]);
    brain[i] = to_bfloat16(x[i]);
    to_19[i] = to_tf32(x[i]);
}

extern "C" __global__ void votes(const int* x, unsigned* y) {
    int lane = threadIdx.x;
    unsigned even = 0x55555555u;
    y[lane] = __ballot_sync(0xffffffffu, x[lane]);
    y[32 + lane] = __any_sync(0xffffffffu, x[lane]) + 2 * __all_sync(0xffffffffu, x[lane]);
    // Lanes with even numbers shuffle once more than the others: masks keep them apart.
    y[64 + lane] = lane % 2 ? 7 : __shfl_sync(even, lane, 4);
    y[96 + lane] = __shfl_down_sync(0xffffffffu, lane, 1);
    y[128 + lane] = __shfl_up_sync(0xffffffffu, lane, 1, 8);
    y[160 + lane] = __syncthreads_count(x[lane]);
}

extern "C" __global__ void largest(const int* x, int* most, int* least, int* before) {
    atomicMax(most, x[threadIdx.x]);
    atomicMin(least, x[threadIdx.x]);
    if (threadIdx.x == 0) before[0] = atomicCAS(before + 1, 5, 6) + atomicExch(before + 2, 9);
}

extern "C" __global__ void dynamic(const float* x, float* y) {
    extern __shared__ float all[];
    float* second = all + 32;
    second[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = second[31 - threadIdx.x];
}
"""


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def nan(*shape):
    return np.full(shape, np.nan, np.float32)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory):
    path = tmp_path_factory.mktemp("kernels") / "mistakes.cu"
    path.write_text(KERNELS)
    return partial(emulate, str(path))


def line(text):
    """The place of the first line of `KERNELS` that holds a text."""
    number = next(i for i, each in enumerate(KERNELS.splitlines(), 1) if text in each)
    return f"mistakes.cu:{number}"


def reverse(kernel, **options):
    x, y = normal(128), nan(128)
    kernel("reverse")((2,), (64,), (x, y), **options)
    np.testing.assert_array_equal(y.reshape(2, 64), x.reshape(2, 64)[:, ::-1])


def reverse_warp(kernel, **options):
    x, y = normal(64), nan(64)
    kernel("reverse_warp")((1,), (64,), (x, y), **options)
    np.testing.assert_array_equal(y.reshape(2, 32), x.reshape(2, 32)[:, ::-1])


def total(kernel, **options):
    x, y = np.ones(96, np.float32), np.zeros(1, np.float32)
    kernel("total")((3,), (32,), (x, y, np.int32(96)), **options)
    assert y[0] == 96


# ---- what is right passes, in any order ----

@pytest.mark.parametrize("race", [False, True], ids=["fast", "race"])
@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("run", [reverse, reverse_warp, total])
def test_a_right_kernel_passes(kernel, run, seed, race):
    run(kernel, seed=seed, race=race)


def test_the_order_of_threads_follows_from_the_seed(kernel):
    """Sums of rounded numbers tell one order from another."""
    def run(seed):
        y = np.zeros(1, np.float32)
        kernel("total")((30,), (64,), (normal(1920), y, np.int32(1920)), seed=seed)
        return y[0]

    assert run(0) == np.cumsum(normal(1920), dtype=np.float32)[-1]
    assert [run(seed) for seed in range(1, 6)] == [run(seed) for seed in range(1, 6)]
    assert len({run(seed) for seed in range(6)}) > 1


@pytest.mark.parametrize("race", [False, True], ids=["fast", "race"])
def test_shuffles_and_votes(kernel, race):
    x, y = np.arange(32, dtype=np.int32) % 3, np.zeros(192, np.uint32)
    kernel("votes")((1,), (32,), (x, y), seed=4, race=race)
    lanes = np.arange(32)
    ballot, votes, even, down, up, count = y.reshape(6, 32)
    assert (ballot == sum(1 << i for i in range(32) if i % 3)).all()
    assert (votes == 1).all()
    np.testing.assert_array_equal(even, np.where(lanes % 2, 7, 4))
    np.testing.assert_array_equal(down, np.minimum(lanes + 1, 31))
    np.testing.assert_array_equal(up, np.where(lanes % 8, lanes - 1, lanes))
    assert (count == 21).all()


def test_atomics_on_whole_numbers(kernel):
    most, least, before = (np.array(start, np.int32) for start in ([0], [99], [0, 5, 3]))
    x = np.random.default_rng(0).permutation(64).astype(np.int32) + 10
    kernel("largest")((1,), (64,), (x, most, least, before), seed=1, race=True)
    assert (most[0], least[0]) == (73, 10)
    assert before.tolist() == [8, 6, 9]


def test_dynamic_shared_memory(kernel):
    x, y = normal(32), nan(32)
    kernel("dynamic")((1,), (32,), (x, y), shared_mem=256, race=True)
    np.testing.assert_array_equal(y, x[::-1])
    with pytest.raises(EmulationError, match=r"writes out .* past the end of dynamic shared mem"):
        kernel("dynamic")((1,), (32,), (x, y), shared_mem=248, race=True)


@pytest.mark.parametrize("race", [False, True], ids=["fast", "race"])
def test_asynchronous_copies_arrive_when_they_are_waited_for(kernel, race):
    x, y = normal(256), nan(256)
    run = partial(kernel("copy_later"), (1,), (32,), (x, y, np.int32(192)), race=race, seed=2)
    run()
    np.testing.assert_array_equal(y[:192], x[:192])
    assert (y[192:] == 0).all()
    run(ignore=[line("and the second")])
    np.testing.assert_array_equal(y[:128], x[:128])
    assert np.isnan(y[128:]).all(), "not waited for: NaN until it comes"


# ---- tensor cores and rounding ----

@pytest.mark.parametrize("race", [False, True], ids=["fast", "race"])
@pytest.mark.parametrize("kind", ["tf32", "half", "bfloat16"])
def test_a_tensor_core_multiplies(kernel, kind, race):
    a, b, c = normal(16, 16), normal(16, 8, seed=1), nan(16, 8)
    bits = lambda x: (x.view(np.uint32) + 0x8000 >> 16).astype(np.uint16)
    given, seen = {"tf32": (lambda x: x, tf32),
                   "half": (lambda x: x.astype(np.float16),) * 2,
                   "bfloat16": (bits, lambda x: (bits(x).astype(np.uint32) << 16).view(np.float32)),
                   }[kind]
    kernel(f"product_{kind}")((1,), (32,), (given(a), given(b), c), race=race)
    exact = seen(a).astype(np.float64) @ seen(b).astype(np.float64)
    np.testing.assert_allclose(c, exact, rtol=1e-6, atol=2e-6)


def test_a_tensor_core_takes_a_whole_warp(kernel):
    with pytest.raises(EmulationError, match=r"mistakes.cu:\d+: only lanes 0x0000ffff of a warp"):
        kernel("product_tf32")((1,), (16,), (normal(16, 16), normal(16, 8), nan(16, 8)))


def test_numbers_are_rounded_as_the_device_does():
    rng = np.random.default_rng(0)
    ties = np.array([1 + 2**-11, 1 + 3 * 2**-11, 65519.99, 65520, 65536, 2**-25, 1.5 * 2**-24,
                     6.1e-5, 6.09e-5, 0, np.inf], np.float32)
    x = np.concatenate([ties, -ties, normal(3000) * 10.0**rng.integers(-9, 6, 3000)])
    x = x.astype(np.float32)
    half, back, brain = np.zeros(x.size, np.float16), nan(x.size), np.zeros(x.size, np.uint16)
    to_19 = np.zeros(x.size, np.uint32)
    emulate(KERNELS, "round_all")((12,), (256,), (x, half, back, brain, to_19, np.int32(x.size)))
    with np.errstate(over="ignore", under="ignore"):
        np.testing.assert_array_equal(half.view(np.uint16), x.astype(np.float16).view(np.uint16))
    np.testing.assert_array_equal(back, half.astype(np.float32))
    bits = x.view(np.uint32).astype(np.uint64)
    np.testing.assert_array_equal(brain, bits + 0x7FFF + (bits >> 16 & 1) >> 16)
    finite = np.isfinite(x)
    np.testing.assert_array_equal(to_19.view(np.float32)[finite], tf32(x)[finite])


# ---- missing barriers and atomics ----

@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_missing_barrier_gives_wrong_numbers(kernel, seed):
    with pytest.raises(AssertionError):
        reverse(kernel, seed=seed, ignore=[line("the tile is complete")])


@pytest.mark.parametrize("run, missing, write, read", [
    (reverse, "the tile is complete", "tile[i] = x", "= tile[63 - i]"),
    (reverse_warp, "the warp's row is complete", "tile[warp][lane] =", "= tile[warp][31 - lane]"),
])
def test_race_mode_names_a_missing_barrier(kernel, run, missing, write, read):
    with pytest.raises(EmulationError) as error:
        run(kernel, race=True, ignore=[line(missing)])
    text = str(error.value)
    assert "race on tile: thread (" in text
    assert line(write) in text
    assert line(read) in text
    assert text.count("thread (") == 2


def test_what_no_atomic_protects_is_a_race_among_threads_and_among_blocks(kernel):
    with pytest.raises(EmulationError, match=r"race on sum: thread \(0,0,0\) .* thread \(31,0,0\)"):
        total(kernel, race=True, ignore=[line("all add to one number")])
    with pytest.raises(AssertionError):
        total(kernel, ignore=[line("all add to one number")])
    with pytest.raises(EmulationError, match=r"block \(1,0,0\): .*race on sum.*of another block"):
        kernel("total_unprotected")((2,), (1,), (normal(2), normal(1)), race=True)


def test_every_barrier_and_atomic_is_listed_and_the_redundant_ones_are_found(tmp_path):
    path = tmp_path / "mistakes.cu"
    path.write_text(KERNELS[:KERNELS.index('extern "C" __global__ void total_unprotected')])
    kernel = partial(emulate, str(path))
    there = sites(str(path))
    assert [site.kind for site in there] == ["__syncthreads", "__syncthreads", "__syncwarp",
                                             "atomicAdd"]
    assert there[0].place == line("the tile is complete")

    checks = [partial(run, kernel) for run in (reverse, reverse_warp, total)]
    left = unnoticed(str(path), checks)
    assert [site.text for site in left] == [
        "__syncthreads();                                    // nothing follows: redundant"]
    with pytest.raises(AssertionError, match=r"no check executes mistakes.cu:\d+: "):
        unnoticed(str(path), checks[:2])


# ---- out of bounds ----

def test_race_mode_names_an_access_past_the_end(kernel):
    x, y = normal(64), normal(64)
    with pytest.raises(EmulationError, match=r"block \(2,0,0\): thread \(0,0,0\) reads out of "
                       rf"bounds at {line('i <= n')}: 4 bytes, 4 bytes past the end of x"):
        kernel("past_the_end")((3,), (32,), (x, y, np.int32(64)), race=True)


def test_a_write_past_the_end_is_noticed_without_race_mode_and_nothing_is_changed(kernel):
    y = np.zeros(16, np.float32)
    with pytest.raises(EmulationError, match="writes out of bounds, between y and the end of memo"):
        kernel("write_past_the_end")((1,), (32,), (y, np.int32(16)))
    assert (y == 0).all()


def test_a_read_past_the_end_gives_nan_without_race_mode(kernel):
    x, y = normal(65)[:64], nan(65)
    kernel("past_the_end")((3,), (32,), (x, y, np.int32(64)))
    assert np.isnan(y[64])


def test_an_access_past_a_shared_array_is_named_though_another_one_follows(kernel):
    with pytest.raises(EmulationError, match=r"thread \(31,0,0\) writes out of bounds at "
                       rf"{line('row[threadIdx.x] = threadIdx')}: .* past the end of row"):
        kernel("past_a_row")((1,), (32,), (nan(32),), race=True)


def test_null_and_misaligned_pointers_are_named(kernel):
    with pytest.raises(EmulationError, match=r"reads through a null pointer at mistakes.cu:\d+"):
        kernel("reverse")((1,), (64,), (None, nan(64)), race=True)
    with pytest.raises(EmulationError, match=r"16 bytes at mistakes.cu:\d+ .* of 16"):
        kernel("misaligned")((1,), (1,), (normal(8), nan(4)), race=True)


# ---- what is never written, and who never comes ----

def test_shared_memory_that_nobody_wrote_is_nan(kernel):
    y = np.zeros(64, np.float32)
    kernel("never_written")((1,), (64,), (y,))
    assert np.isnan(y).all()


def test_a_barrier_that_some_threads_do_not_reach_is_named(kernel):
    with pytest.raises(EmulationError, match=r"mistakes.cu:\d+: __syncthreads is reached by 5 of "
                       r"64 threads, the others \(thread \(\d+,0,0\)\) have returned"):
        kernel("some_return")((1,), (64,), (nan(64), np.int32(5)))
    with pytest.raises(EmulationError, match="threads wait at different __syncthreads: .* at "
                       f"{line('one half')}, .* at {line('the other')}"):
        kernel("two_barriers")((1,), (64,), (nan(64),))
    with pytest.raises(EmulationError, match=f"{line('lanes 16 to 31 never')}: .* waits for lanes "
                       "of its mask 0xffffffff that never come; 16 threads wait at a __sync"):
        kernel("half_a_warp_waits")((1,), (32,), (nan(32),))


def test_a_shuffle_with_the_wrong_mask_is_noticed(kernel):
    x, y = normal(32), nan(32)
    kernel("warp_sum")((1,), (32,), (x, y, np.uint32(0xFFFFFFFF)))
    np.testing.assert_allclose(y, x.sum(), rtol=1e-5)
    with pytest.raises(EmulationError, match="lane 16 is not in the mask 0x0000ffff that it"):
        kernel("warp_sum")((1,), (32,), (x, y, np.uint32(0xFFFF)))
    kernel("warp_sum")((1,), (16,), (x, y, np.uint32(0xFFFF)))
    assert np.isnan(y[:16]).all(), "lanes that are not there show nothing"


# ---- counting ----

@pytest.mark.parametrize("stride, sectors, passes",
                         [(1, 4, 1), (2, 8, 2), (3, 12, 1), (8, 32, 8), (32, 32, 32)])
def test_sectors_and_bank_conflicts_are_counted(kernel, stride, sectors, passes):
    with emulation(count=True) as run:
        kernel("read_with_stride")((1,), (32,), (normal(1024), nan(32), np.int32(stride)))
    seen = {(count.place, count.space, count.kind): count for count in run.counts}
    assert seen[line("global, with a stride"), "global", "read"][4:] == (1, sectors, 4)
    assert seen[line("shared, with a stride"), "shared", "write"][4:] == (1, passes, 1)
    assert seen[line("y[threadIdx.x] = tile[threadIdx.x * st"), "shared", "read"].each == passes


def test_four_floats_at_once_are_one_request(kernel):
    x, y = normal(128), nan(128)
    with emulation(count=True) as run:
        kernel("copy_four")((1,), (32,), (x, y))
    np.testing.assert_array_equal(y, x)
    assert [(count.kind, count.requests, count.moved) for count in run.counts] == [
        ("read", 1, 16), ("write", 1, 16)]


# ---- what does not fit is refused in one line ----

@pytest.mark.parametrize("args, message", [
    ((normal(128),), r"reverse takes 2 arguments \(x, y\), got 1"),
    ((normal(128).astype(np.float64), nan(128)), "argument 1, x, is an array of float32, got floa"),
    ((normal(256)[::2], nan(128)), "argument 1, x, is an array that must be contiguous"),
    ((normal(128), 3.0), "argument 2, y, is an array, got float"),
])
def test_arrays_must_fit_the_parameters(kernel, args, message):
    with pytest.raises(TypeError, match=message):
        kernel("reverse")((2,), (64,), args)


@pytest.mark.parametrize("n, message", [
    (96, r"argument 3, n, is a scalar: pass np.int32\(96\)"),
    (np.float32(96), "argument 3, n, is a scalar of int32, got float32"),
    (np.int64(96), "argument 3, n, is a scalar of int32, got int64"),
])
def test_scalars_must_fit_the_parameters(kernel, n, message):
    with pytest.raises(TypeError, match=message):
        kernel("total")((3,), (32,), (normal(96), nan(1), n))


def test_launches_that_no_device_could_do_are_refused(kernel):
    for grid, block, shared, message in [((1,), (1025,), 0, "has 1025 threads; from 1 to 1024"),
                                         ((1,), (0,), 0, "has 0 threads"),
                                         ((1, 70000), (64,), 0, "a grid of"),
                                         ((1,), (64,), 300_000, "shared_mem=300000")]:
        with pytest.raises(ValueError, match=message):
            kernel("reverse")(grid, block, (normal(128), nan(128)), shared_mem=shared)


def test_errors_in_the_text_are_the_compilers_with_their_line(kernel):
    with pytest.raises(CompileError, match=r"kernel.cu:2:5: error: .*(not |un)declared"):
        emulate('extern "C" __global__ void f() {\n    x = 1;\n}\n', "f")((1,), (1,), ())
    with pytest.raises(ValueError, match=r"mistakes.cu has no kernel 'revers': there are rev"):
        kernel("revers")((1,), (1,), ())
    with pytest.raises(FileNotFoundError, match=r"no kernel file 'conv3d.cu' in "):
        emulate("conv3d.cu", "f")((1,), (1,), ())
