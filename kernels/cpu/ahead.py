"""Compile every kernel ahead: ``python -m tinydiff.kernels.cpu``.

Each operation runs forward and backward on small arrays.  Numba's compiler takes one function at a
time in a process, so several processes share the modules.
"""
import os
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context

import numpy as np
from tqdm import tqdm

from tinydiff.backends.table import TABLE, kernel, use
from tinydiff.kernels.cpu.jit import mark_compiled


def zeros(*shapes):
    """Return one float32 array of each shape."""
    return [np.zeros(shape, np.float32) for shape in shapes]


def calls():
    """Return ``(function, arguments, options)`` that reach every kernel; the slowest first."""
    rates = {"k": 1, "lr": 0.1, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01}
    x, few, w, b = zeros((9, 16, 16, 16), (1, 16, 16, 16), (16, 16, 3, 3), 16)
    small, many_w, many_b = zeros((2, 128, 4, 4), (128, 128, 3, 3), 128)
    rows, square, mask = zeros((2, 256, 16), (16, 16), (256, 256))
    return [
        ("conv2d_forward", (x, w, b), {}),
        ("conv2d_forward", (few, w, b), {}),
        ("conv2d_forward", (small, many_w, many_b), {}),
        ("conv2d_forward", (x, w, b, 2), {}),
        ("conv2d_forward", (x, w[:, :, :1, :1].copy(), b, 1, 0), {}),
        ("attention_forward", (rows, rows, rows, 2), {}),
        ("attention_forward", (rows, rows, rows, 2, mask), {}),
        ("group_norm_forward", (x, b, b, 2), {}),
        ("group_norm_silu_forward", (x, b, b, 2), {}),
        ("linear_forward", (rows, square, b), {}),
        ("layer_norm_forward", (rows, b, b), {}),
        ("geglu_forward", (rows,), {}),
        ("gelu_tanh_forward", (x,), {}),
        ("quick_gelu_forward", (x,), {}),
        ("silu_forward", (x,), {}),
        ("transpose_forward", (rows,), {}),
        ("adamw_update", zeros(8, 8, 8, 8), rates),
    ]


def module(name):
    """Return the module that the table gives for a function."""
    return TABLE[name.rpartition("_")[0]].cpu


def compile_module(wanted):
    """Run everything that `calls` lists for a module, in each mode; return the seconds it took."""
    start = time.perf_counter()
    for mode in ("fast", "precise"):
        with use(mode):
            for name, arguments, options in calls():
                if module(name) == wanted:
                    result = kernel(name)(*arguments, **options)
                    assert result is not NotImplemented, name
                    if name.endswith("_forward"):
                        y, saved = result
                        saved.backward(np.zeros_like(y), saved.arrays)
    return time.perf_counter() - start


def main():
    """Compile, and say what took how long."""
    start = time.perf_counter()
    modules = list(dict.fromkeys(module(name) for name, _, _ in calls()))
    with ProcessPoolExecutor(min(os.cpu_count(), len(modules)), get_context("spawn")) as pool:
        jobs = {pool.submit(compile_module, each): each for each in modules}
        for job in tqdm(as_completed(jobs), total=len(jobs), desc="compiling", unit="module"):
            tqdm.write(f"{job.result():5.1f} s  {jobs[job]}")
    mark_compiled()
    print(f"compiled in {time.perf_counter() - start:.0f} s, for good")
