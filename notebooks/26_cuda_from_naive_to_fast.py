# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#       format_version: '1.3'
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # What makes a CUDA kernel fast?
#
# Not fewer multiplications: all versions of the matrix product below do the same ones. They differ
# in how often they ask memory for a number. No GPU is needed to see that: an emulator
# (`tinydiff.kernels.emulator`) runs the project's own `.cu` files thread by thread on the
# processor, and counts what each line asks for. It also finds races, which a GPU only hides.
#
# 1. One thread per entry, and what 32 neighbours ask for together;
# 2. shared memory, and the barrier that it needs;
# 3. registers, vectors, tensor cores: the whole ladder;
# 4. the same ideas in a convolution.
#
# It needs a C++ compiler (g++ or clang++), and under a minute on two cores. The kernels are in
# `kernels/matmul.cu` and `kernels/conv2d.cu`: read them beside this page.

# %%
from functools import cache

import matplotlib.pyplot as plt
import numpy as np

from tinydiff.kernels.conv2d import conv2d_forward
from tinydiff.kernels.emulator import EmulationError, emulate, emulation, sites
from tinydiff.kernels.emulator.counts import table, total
from tinydiff.kernels.matmul import VERSIONS, matmul
from tinydiff.kernels.rounding import tf32
from tinydiff.kernels.source import FOLDER

SEED = 0
rng = np.random.default_rng(SEED)
a, b = rng.standard_normal((2, 128, 128), dtype=np.float32)

# %% [markdown]
# ## 1. Who are a thread's neighbours?
#
# A GPU runs threads in *warps* of 32, which ask memory together. Memory answers in *sectors* of 32
# bytes, eight floats: a warp that reads 32 neighbouring floats needs 4 of them, a warp that reads
# 32 floats from 32 places needs 32, and throws seven eighths of the bytes away.
#
# $$c_{mn} = \sum_k a_{mk}\, b_{kn}$$
#
# Version 1 gives each entry of $c$ a thread, and lets neighbouring threads go down a column.

# %%
exact = a.astype(np.float64) @ b                                      # (128, 128)


@cache
def counted(version):
    """Run a version, and return its result and what its lines asked of memory."""
    with emulation(count=True) as run:
        c = matmul(a, b, version)
    return c, run.counts

# %%
text = (FOLDER / "matmul.cu").read_text()
c, naive = counted(1)
print(table(naive, text))
c.shape

# %%
np.testing.assert_allclose(c, exact, atol=1e-4)
read, write = naive
assert write.each == 16                              # a warp writes to 16 rows of c: 16 sectors
assert read.each == (16 + 1) / 2                     # 16 rows of a, one sector of b

# %% [markdown]
# "each" is what a request took, "least" what so many bytes could have taken. Version 2 exchanges
# x and y: neighbouring threads go along a row. Not one line of arithmetic has changed.

# %%
c, coalesced = counted(2)
print(table(coalesced, text))
total(naive, "global") / total(coalesced, "global")

# %%
np.testing.assert_allclose(c, exact, atol=1e-4)
assert coalesced[1].each == coalesced[1].least / coalesced[1].requests == 4
assert total(naive, "global") > 4 * total(coalesced, "global")

# %% [markdown]
# ## 2. What if the threads of a block share what they read?
#
# All 16 threads in a row of a block read the same row of $a$. Version 3 lets the block copy a tile
# of $a$ and one of $b$ into *shared memory*, a few kilobytes on the chip, and read from there.

# %%
c, tiled = counted(3)
print(table(tiled, text))
total(coalesced, "global") / total(tiled, "global")

# %%
np.testing.assert_allclose(c, exact, atol=1e-4)
assert total(tiled, "global") < total(coalesced, "global") / 7

# %% [markdown]
# But now threads depend on each other: a number may only be read when its owner has written it.
# `__syncthreads()` makes all wait for all. Here are the barriers of the file; the emulator can
# switch one off by its place. Shared memory is full of NaN at first, so what comes out is wrong
# here. A GPU would often be lucky: its warps run nearly side by side.

# %%
for site in sites("matmul.cu")[:2]:
    print(site.place, site.text)
complete, _ = sites("matmul.cu")[:2]
left, right = a[:33, :35].copy(), b[:35, :17].copy()
with emulation(seed=1, ignore=[complete.place]):
    wrong = matmul(left, right, 3)                                    # (33, 17)
np.isnan(wrong).mean()

# %%
assert "the tiles are complete" in complete.text
assert not np.allclose(wrong, left @ right, atol=1e-3)

# %% [markdown]
# In race mode each access is checked, and the two threads that nothing orders are named, with
# their lines. This does not depend on luck, nor on who came first.

# %%
try:
    with emulation(race=True, ignore=[complete.place]):
        matmul(left, right, 3)
except EmulationError as error:
    message = str(error)
print(message)

# %%
assert "race on" in message
assert message.count("thread (") == 2
assert message.count("matmul.cu:") == 2

# %% [markdown]
# ## 3. How far does it go?
#
# Shared memory has 32 *banks*, which give one word each at a time: a request takes as many *passes*
# as there are words in its fullest bank. Version 3 asks it for two floats per product. If a thread
# computes 4 x 4 entries (version 4), then 8 floats serve 16 products, out of *registers*; with 8 x
# 8 entries read four at a time (version 5), 16 serve 64. Versions 6 and 7 hand tiles to *tensor
# cores*, which multiply whole 16 x 8 matrices for a warp, of rounded numbers.

# %%
results = {version: counted(version) for version in VERSIONS}
sectors = [total(counts, "global") for _, counts in results.values()]
passes = [total(counts, "shared") for _, counts in results.values()]
for version, name in VERSIONS.items():
    print(f"{name:20s} {sectors[version - 1]:8d} sectors {passes[version - 1]:7d} passes")

# %%
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
places = np.arange(len(VERSIONS))
axes.bar(places - 0.2, sectors, 0.4, label="sectors of global memory")
axes.bar(places + 0.2, passes, 0.4, label="passes of shared memory")
names = [name.removeprefix("matmul_").replace("_", "\n", 1) for name in VERSIONS.values()]
axes.set(yscale="log", ylim=(1e3, 2e6), xticks=places, xticklabels=names,
         ylabel="for 128 x 128 x 128")
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False)
plt.show()

# %%
for version in (1, 2, 3, 4, 5):
    np.testing.assert_allclose(results[version][0], exact, atol=1e-4)
np.testing.assert_allclose(results[6][0], tf32(a).astype(np.float64) @ tf32(b), atol=1e-4)
half = [x.astype(np.float16).astype(np.float64) for x in (a, b)]
np.testing.assert_allclose(results[7][0], half[0] @ half[1], atol=1e-4)
assert passes[2] > 3 * passes[3] > 5 * passes[4] > 5 * passes[5]      # versions 3, 4, 5, 6
assert sectors[0] > 50 * sectors[4]

# %% [markdown]
# Tensor cores are exact on what they are given; the rounding comes before: TF32 and float16 both
# keep 11 bits of a factor.

# %%
error = {version: np.abs(results[version][0] - exact).max() for version in (5, 6, 7)}
error

# %%
assert error[5] < 1e-4 < error[6] < 0.1
assert error[5] < 1e-4 < error[7] < 0.1

# %% [markdown]
# ## 4. And a convolution?
#
# $$y_{noyx} = b_o + \sum_{cij} x_{n,c,y+i-p,x+j-p}\, w_{ocij}$$
#
# The same ladder. Version 1: a thread per output. Version 2: the block stages its input tile with
# its halo in shared memory. Version 3: convolution is a matrix product whose one factor is never
# written down (an *implicit GEMM*), with register tiles.

# %%
x = rng.standard_normal((1, 16, 16, 16), dtype=np.float32)            # (B, C, H, W)
weight = rng.standard_normal((64, 16, 3, 3), dtype=np.float32)        # (O, C, 3, 3)
asked, y = {}, {}
for version in (1, 2, 3):
    with emulation(count=True) as run:
        y[version], _ = conv2d_forward(x, weight, version=version)    # (1, 64, 16, 16)
    asked[version] = total(run.counts, "global"), total(run.counts, "shared")
    print(f"version {version}: {asked[version][0]:7d} sectors, {asked[version][1]:7d} passes")

# %%
np.testing.assert_allclose(y[2], y[1], atol=1e-3)
np.testing.assert_allclose(y[3], y[1], atol=1e-3)
assert asked[1][0] > asked[2][0] > asked[3][0]

# %% [markdown]
# What the counts do not tell: time. Which of the two memories, or the arithmetic, is the one that a
# GPU waits for depends on the GPU; but a kernel that asks for less never waits for more.
#
# ## Exercise: banks
#
# A block transposes a 32 x 32 tile: it writes rows of shared memory and reads columns. A column of
# rows of 32 floats lies in one bank: 32 passes per request. Let each row have PAD unused floats at
# its end. How many make the banks differ?

# %%
TRANSPOSE = """
extern "C" __global__ void transpose(const float* x, float* y) {
    __shared__ float tile[32][32 + PAD];
    for (int row = 0; row < 32; row++) tile[row][threadIdx.x] = x[32 * row + threadIdx.x];
    __syncwarp();
    for (int row = 0; row < 32; row++) y[32 * row + threadIdx.x] = tile[threadIdx.x][row];
}
"""


def my_pad():
    """Return how many floats at the end of each row are unused."""
    raise NotImplementedError("which PAD moves each row on by a bank?")

# %%
def check_my_pad(pad):
    """Transpose a matrix with this padding, and count the passes."""
    x, y = a[:32, :32].copy(), np.full((32, 32), np.nan, np.float32)
    with emulation(count=True) as run:
        emulate(TRANSPOSE, "transpose", PAD=pad)((1,), (32,), (x, y))
    np.testing.assert_array_equal(y, x.T)
    for line in run.counts:
        assert line.moved == line.least, f"{line.kind} {line.space}: {line.each:.0f} passes each"


try:
    check_my_pad(my_pad())
    print("right: rows and columns lie in 32 banks each")
except NotImplementedError as missing:
    print(f"not solved yet ({missing}): fill in my_pad, run its cell again, then this one")
