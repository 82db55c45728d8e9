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
# # What does a single thread of a CUDA kernel do?
#
# On a device, thousands of threads run the same few lines at once, and no debugger shows one of
# them. Here we run a convolution without a device, and stop inside of one thread:
#
# 1. a kernel in Numba's simulator, where each CUDA thread is a thread of Python;
# 2. a debugger stops in one of them, and goes on line by line;
# 3. the second version shares its input among threads: why it needs two barriers;
# 4. the same kernel in CUDA C++ on the emulator, which says what goes wrong without one;
# 5. the gradient.
#
# Everything is imported from `tinydiff.kernels`, where you can set breakpoints of your own. At the
# end there is a kernel to write. Under a minute on two cores.

# %%
import os

os.environ["NUMBA_ENABLE_CUDASIM"] = "1"                  # before Numba is first imported

import numpy as np

from tinydiff import ops
from tinydiff.datasets import load_digits
from tinydiff.kernels import conv2d_numba

SEED = 0
x = load_digits().array([0])                                          # (1, 1, 8, 8), in [-1, 1]
x.shape

# %% [markdown]
# ## 1. One thread, one pixel
#
# $$y_{n,o,p,q} = b_o + \sum_{c,i,j} x_{n,\,c,\,p+i-1,\,q+j-1}\; w_{o,c,i,j}$$
#
# Two kernels of 3 x 3 numbers find the edges of a handwritten zero: the first those between left
# and right, the second those between top and bottom.

# %%
edge = np.float32([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
weight = np.stack([edge, edge.T])[:, None] / 8                        # (2, 1, 3, 3)
bias = np.zeros(2, np.float32)                                        # (2,)

y = conv2d_numba.forward(x, weight, bias, version=1)                  # (1, 2, 8, 8)
x.shape, weight.shape, y.shape

# %%
np.testing.assert_allclose(y, ops.conv2d_forward(x, weight, bias)[0], atol=1e-6)

# %%
from tinydiff.pictures import sheet

sheet(np.concatenate([x, y[:, :1], y[:, 1:]]), columns=3, scale=16)

# %% [markdown]
# The whole kernel. `cuda.grid(3)` tells each thread who it is; all else is an ordinary loop. There
# is one thread for each pixel of each output plane, in blocks of 4 x 4; any beyond the picture
# would return at once.

# %%
import inspect

print(inspect.getsource(conv2d_numba.conv2d_v1_naive.py_func))

# %% [markdown]
# ## 2. Stop in one of them
#
# A simulated thread is a thread of Python, so `breakpoint()` works in it. Without a condition it
# would stop in each of the 128 threads. You can write the line into the file; here `stop_at` writes
# it into a copy of the kernel, and `typing` types the commands that you would type at the prompt.
# (In a notebook of your own, leave `typing` out and use the prompt.)

# %%
from tinydiff.kernels.stepping import stop_at, typing

kernel = stop_at(conv2d_numba.conv2d_v1_naive, "of_c += x",
                 when="o == 0 and p == 2 and q == 5 and i == 0 and j == 2")
y_again = np.full_like(y, np.nan)                                     # (1, 2, 8, 8)
grid, block = (2, 2, 2), (4, 4, 1)                        # blocks, threads in each: 128 in all
with typing("p (n, o, p, q)", "p (u, v)", "p float(of_c)",
            "p float(x[n, c, u, v]), float(weight[o, c, i, j])",
            "next", "p float(of_c)") as session:
    kernel[grid, block](x, weight, bias, y_again, 1, 1, 1)            # stride, top, left
print(session.transcript)

# %% [markdown]
# The thread of pixel (2, 5) stood before tap (0, 2), which looks at pixel (1, 6) of x. It is the
# third tap; the sum of the first two is what it should be. All other threads ran on, and the result
# is the same.

# %%
so_far = x[0, 0, 1, 4] * weight[0, 0, 0, 0] + x[0, 0, 1, 5] * weight[0, 0, 0, 1]
after = so_far + x[0, 0, 1, 6] * weight[0, 0, 0, 2]
assert f"\n{float(so_far)}\n" in session.transcript
assert f"\n{float(after)}\n" in session.transcript
assert session.stops == 1
np.testing.assert_array_equal(y_again, y)

# %% [markdown]
# ## 3. Threads that share
#
# Each pixel of x is read by nine threads for each output plane, every time from the device's slow
# global memory. In the second version a block first copies its *patch* of x, with a halo of one
# pixel around it, into shared memory: 36 numbers for 16 threads, so some of them copy more than
# one. No thread may look at the patch before all have copied, hence the barrier,
# `cuda.syncthreads()`: nobody passes it until everybody has reached it. And nobody may
# write the next channel's patch while another still reads this one, hence the second.
#
# Let us stop a thread right behind the first barrier. Most of what it sees there others have
# written.

# %%
kernel = stop_at(conv2d_numba.conv2d_v2_tiled, "for i in range",
                 when="o == 0 and p == 4 and q == 0")
y_tiled = np.full_like(y, np.nan)                                     # (1, 2, 8, 8)
with typing("p (tx, ty)", "p (first_u, first_v)",
            "p [round(float(number), 2) for number in patch]") as session:
    kernel[grid, block, 0, 4 * 6 * 6](x, weight, bias, y_tiled, 1, 1, 1)      # bytes of the patch
print(session.transcript)

# %% [markdown]
# `(tx, ty)` is the thread's place in its block; `patch[0]` is pixel `(first_u, first_v)` of x, and
# lies outside of the picture here. Row after row, the patch is a window of the padded picture:

# %%
import re

seen = re.findall(r"\n\[(.*)\]\n", session.transcript)[0]
patch = np.array(seen.split(", "), float).reshape(6, 6)
x_padded = np.pad(x[0, 0], 1)
np.testing.assert_allclose(patch, x_padded[4:10, 0:6], atol=0.006)
np.testing.assert_array_equal(y_tiled, y)
patch.shape, x_padded.shape

# %% [markdown]
# ## 4. The same in CUDA C++, and what happens without a barrier
#
# `kernels/conv2d.cu` holds the same two versions for a device. The project's emulator compiles that
# very file for this processor and runs it, thread by thread, in an order that a seed decides. The
# results agree to the last bit: the same additions in the same order.

# %%
from tinydiff.kernels import conv2d
from tinydiff.kernels.emulator import EmulationError, emulation, obstacle, sites

can_emulate = not obstacle()                              # it needs a C++ compiler
if can_emulate:
    with emulation(seed=SEED):
        y_cuda, _ = conv2d.conv2d_forward(x, weight, bias, version=2)         # (1, 2, 8, 8)
    np.testing.assert_array_equal(y_cuda, y)
else:
    print("left out:", obstacle())

# %% [markdown]
# Now switch the first barrier off. Some thread reads what another has not written yet. On a device
# that may go well a thousand times; the emulator's race mode looks at every access, and names the
# lines. (x twice, as two channels: with one, nobody writes a second patch.)

# %%
def without(barrier):
    """Run version 2 with one of its barriers switched off; return what the emulator says."""
    two_channels = (np.concatenate([a, a], axis=1) for a in (x, weight))
    try:
        with emulation(race=True, ignore=(barrier.place,)):
            conv2d.conv2d_forward(*two_channels, bias, version=2)
    except EmulationError as error:
        return str(error)


barriers = [site for site in sites("conv2d.cu") if site.place.startswith("conv2d.cu:")]
for barrier in barriers if can_emulate else []:
    print(barrier.text, without(barrier), sep="\n    ")

# %%
if can_emulate:
    assert len(barriers) == 2
    assert all("race" in without(barrier) for barrier in barriers)

# %% [markdown]
# ## 5. Backward: from "who reads me" to "whom do I read"
#
# Forward, pixel $x_{u,v}$ is read by all windows that see it. So its gradient is a sum over
# those windows:
#
# $$\frac{\partial L}{\partial x_{n,c,u,v}} = \sum_{o,i,j}
# \frac{\partial L}{\partial y_{n,\,o,\,u+1-i,\,v+1-j}}\; w_{o,c,i,j}.$$
#
# Again one thread sums for one number. The other way round, each thread of y *adding* to the nine
# pixels that it has read, threads would write to the same place at once. The thread of
# $\partial x_{0,0}$, in the corner, only finds four windows:

# %%
dy = np.ones_like(y)                                                  # (1, 2, 8, 8)
dx = np.full_like(x, np.nan)                                          # (1, 1, 8, 8)
kernel = stop_at(conv2d_numba.conv2d_dx_v1_naive, "of_o += dy",
                 when="o == 0 and u == 0 and v == 0")
with typing("p (p, q), (i, j)") as session:
    kernel[(2, 2, 1), (4, 4, 1)](dy, weight, dx, 1, 1, 1)
windows = re.findall(r"\(\((\d), (\d)\), \((\d), (\d)\)\)", session.transcript)
print("window (p, q), tap (i, j):", *windows, sep="\n")
session.stops, dx.shape

# %%
assert session.stops == 4
assert all((int(p) + int(i), int(q) + int(j)) == (1, 1) for p, q, i, j in windows)   # u+1, v+1
_, cache = ops.conv2d_forward(x, weight, bias)
np.testing.assert_allclose(dx, ops.conv2d_backward(dy, cache)[0], atol=1e-6)

# %% [markdown]
# ## Exercise: the gradient of the bias
#
# $b_o$ is added to every pixel of output plane $o$ of every picture, so
#
# $$\frac{\partial L}{\partial b_o} = \sum_{n,p,q} \frac{\partial L}{\partial y_{n,o,p,q}}.$$
#
# Write the kernel: one thread for each $o$, which is `cuda.grid(1)`. There are more threads than
# planes. When your answer is wrong, put `if o == 1: breakpoint()` into it.

# %%
from numba import cuda


@cuda.jit
def my_dbias(dy, dbias):
    """One thread per output plane: sum dy over pictures and pixels."""
    raise NotImplementedError("let threads beyond the last plane return, then sum")


# %%
def check_my_dbias():
    """Compare with the op, on several pictures."""
    dy = np.random.default_rng(SEED).standard_normal((3, 2, 8, 8), dtype=np.float32)
    dbias = np.full(2, np.nan, np.float32)
    my_dbias[1, 4](dy, dbias)
    _, cache = ops.conv2d_forward(np.concatenate([x] * 3), weight, bias)
    np.testing.assert_allclose(dbias, ops.conv2d_backward(dy, cache)[2], rtol=1e-4, atol=1e-4)


try:
    check_my_dbias()
    print("right: one thread, one sum")
except NotImplementedError as missing:
    print(f"not solved yet ({missing}): fill in my_dbias, run its cell again, then this one")
