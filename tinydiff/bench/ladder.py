"""What each step bought: the kernels against the loops that they came from.

    python -m tinydiff.bench.ladder [--json FILE]

measures on the processor at hand, in seconds, and prints the tables of kernels/README.md.  All in
one process; NumPy's BLAS has as many threads as the kernels.  A figure is the median of several
calls, after one that is not counted.
"""
import argparse
import time
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits

from tinydiff import ops
from tinydiff.backends.table import mode, obstacle, use
from tinydiff.bench.machine import processor
from tinydiff.jsonfile import write_json

RUNS = 5                                # calls behind each figure, at least
BUDGET = 0.1                            # seconds of calls, at least
PART = 16                               # plain loops do so small a part of the work: they are slow


class Table(NamedTuple):
    """Figures, a row for each step.

    Attributes
    ----------
    title : str
    columns : list of str
    rows : list of (str, list of float or None)
        None: this step does not share its work among threads.
    """

    title: str
    columns: list
    rows: list


class Step(NamedTuple):
    """One row to measure.

    Attributes
    ----------
    name : str
    calls : list of callable
        One for each column, such as forward and backward.
    flops : sequence of int
        Additions and multiplications of each call; if empty, the figures are milliseconds.
    shared : bool
        Whether several threads share the work.
    """

    name: str
    calls: list
    flops: tuple = ()
    shared: bool = True


def run(quick=False):
    """Measure everything.

    Parameters
    ----------
    quick : bool, default False
        Tiny arrays and one call each: to see that it runs.

    Yields
    ------
    Table
    """
    least = (1, 0.0) if quick else (RUNS, BUDGET)
    sizes = (32, 64) if quick else (512, 1024)
    yield _measure("Matrix product, GFLOP/s", [f"{size} x {size}" for size in sizes],
                   products(sizes), least)
    layers = [(16, 64, 8), (16, 16, 8)] if quick else [(64, 64, 16), (64, 16, 32)]
    for B, C, H in layers:
        yield _measure(f"3x3 convolution, {C} to {C} channels, {B} pictures of {H} x {H}, GFLOP/s",
                       ["y", "dx", "dweight"], convolutions(B, C, H), least)
    yield Table("3x3 convolution, largest error, as a multiple of NumPy's own in float32",
                [f"{C} channels: {what}" for _, C, _ in layers for what in ("y", "dx", "dweight")],
                [(name, [error for layer in layers for error in errors(which, *layer)])
                 for name, which in (("direct tiles", "precise"), ("Winograd", "fast"))])
    B, C, H, N = (2, 8, 8, 64) if quick else (16, 64, 32, 1024)
    norm = normal(B, C, H, H), normal(C, seed=1), normal(C, seed=2), 8
    attention = *normal(3, 1, N, 256), 4
    yield _measure(f"Group norm of {B} x {C} x {H} x {H} in 8 groups; attention, {N} tokens, "
                   "4 heads of 64; milliseconds", ["forward", "backward"],
                   [Step(f"{what}, {name}", passes(which, op, *arguments))
                    for what, op, arguments in (("group norm + SiLU", "group_norm_silu", norm),
                                                ("attention", "attention", attention))
                    for name, which in (("NumPy", "reference"), ("kernel", "fast"))], least)


def normal(*shape, seed=0):
    """Return standard normal float32 numbers, the same at each call."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def products(sizes):
    """Return the steps from three loops to the product of `tinydiff.kernels.cpu.gemm`."""
    each = [_products(size) for size in sizes]
    return [Step(steps[0].name, [call for step in steps for call in step.calls],
                 [flop for step in steps for flop in step.flops], steps[0].shared)
            for steps in zip(*each, strict=True)]


def _products(size):
    from tinydiff.kernels.cpu import gemm, rungs, simd

    M, N, K = (-(-size // unit) * unit for unit in (simd.MR, simd.NR, 1))   # whole tiles
    a, b, c = normal(M, K), normal(K, N, seed=1), np.empty((M, N), np.float32)
    flat = a.reshape(-1), b.reshape(-1), c.reshape(-1)
    all_of_it, some = [2 * M * N * K], M // PART
    part = [2 * some * N * K]
    return [
        Step("three loops", [partial(rungs.product_plain, a[:some], b, c[:some])], part, False),
        Step("innermost loop along rows", [partial(rungs.product_rows, a[:some], b, c[:some])],
             part, False),
        Step("register tiles", [partial(rungs.product_tiles, *flat, M, N, K)], all_of_it, False),
        Step("register tiles, packed, in blocks",
             [partial(gemm.multiply, flat[0], K, 1, flat[1], N, 1, gemm.NO_BIAS, flat[2], M, N, K)],
             all_of_it),
        Step("NumPy's BLAS", [partial(np.matmul, a, b, out=c)], all_of_it),
    ]


def convolutions(B, C, H):
    """Return the steps from the definition's loops to Winograd's shortcut."""
    x, weight, bias = normal(B, C, H, H), normal(C, C, 3, 3, seed=1), normal(C, seed=2)
    flop = 2 * x.size * 9 * C
    return [
        Step("loops of the definition", loops(x[:max(1, B // PART)], weight),
             [flop // B * max(1, B // PART)] * 3, shared=False),
        *(Step(name, passes(which, "conv2d", x, weight, bias,
                            wanted=({"needs_dweight": False}, {"needs_dx": False})), [flop] * 3)
          for name, which in (("columns, then NumPy's BLAS", "reference"),
                              ("direct tiles", "precise"), ("Winograd", "fast"))),
    ]


def loops(x, weight):
    """Return calls that make y, dx and dweight by the definition; dy is x."""
    from tinydiff.kernels.cpu import rungs

    x_padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return [lambda: rungs.convolve(x_padded, weight, np.empty_like(x)),
            lambda: rungs.convolve_backward_x(x, weight, np.zeros_like(x_padded)),
            lambda: rungs.convolve_backward_weight(x, x_padded, np.zeros_like(weight))]


def passes(which, op, *arguments, wanted=({},)):
    """Return a call of an operation's forward pass, and one of its backward pass for each `wanted`.

    Parameters
    ----------
    which : str
        The mode, see `tinydiff.use`.
    op : str
    arguments : sequence
        Of the forward pass.
    wanted : sequence of dict
        Options of the backward pass.
    """
    forward, backward = getattr(ops, f"{op}_forward"), getattr(ops, f"{op}_backward")

    def run_forward():
        with use(which):
            return forward(*arguments)

    y, cache = run_forward()
    dy = normal(*y.shape, seed=3)
    return [run_forward, *(partial(backward, dy, cache, **options) for options in wanted)]


def errors(which, B, C, H):
    """Return the largest errors of y, dx and dweight, over those of the definition in float32."""
    arguments = normal(B, C, H, H), normal(C, C, 3, 3, seed=1)
    ours, theirs, right = (
        _values(mode, [a.astype(dtype) for a in arguments])
        for mode, dtype in ((which, np.float32), ("reference", np.float32),
                            ("reference", np.float64)))
    return [float(abs(a - c).max() / abs(b - c).max())
            for a, b, c in zip(ours, theirs, right, strict=True)]


def _values(which, arguments):
    """Return y, dx and dweight."""
    with use(which):
        y, cache = ops.conv2d_forward(*arguments)
        dy = normal(*y.shape, seed=3).astype(y.dtype)
        return y, *ops.conv2d_backward(dy, cache)[:2]


def seconds(call, runs, budget):
    """Return the median time of `call`: of `runs` calls or more, until `budget` seconds passed."""
    call()                              # compiles, and finds the arrays
    times = []
    while len(times) < runs or sum(times) < budget:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


@contextmanager
def threads(count):
    """Give the kernels and NumPy's BLAS `count` threads."""
    import numba

    before = numba.get_num_threads()
    numba.set_num_threads(count)
    try:
        with threadpool_limits(count, user_api="blas"):
            yield
    finally:
        numba.set_num_threads(before)


def _measure(title, kinds, steps, least):
    """Time every step's calls, with one thread and with all."""
    import numba

    counts = sorted({1, numba.config.NUMBA_NUM_THREADS})
    columns = [f"{kind}, {n} thread{'s' * (n > 1)}" for kind in kinds for n in counts]
    rows = []
    for step in steps:
        figures = []
        for nth, call in enumerate(step.calls):
            for n in counts:
                if n > 1 and not step.shared:
                    figures.append(None)
                    continue
                with threads(n):
                    took = seconds(call, *least)
                figures.append(step.flops[nth] / took / 1e9 if step.flops else 1e3 * took)
        rows.append((step.name, figures))
    return Table(title, columns, rows)


def markdown(table):
    """Write a table as a README shows it.

    Examples
    --------
    >>> print(markdown(Table("Speed", ["1 thread", "2 threads"], [("loops", [0.42, None])])))
    **Speed**
    <BLANKLINE>
    | step | 1 thread | 2 threads |
    |---|---:|---:|
    | loops | 0.42 | |
    """
    lines = [f"**{table.title}**", "", f"| step | {' | '.join(table.columns)} |",
             "|---" + "|---:" * len(table.columns) + "|"]
    for name, figures in table.rows:
        cells = ["" if f is None else f" {f:.2f}" if f < 10 else f" {f:.0f}" for f in figures]
        lines.append(f"| {name} |{' |'.join(cells)} |")
    return "\n".join(lines)


def facts():
    """Say what is measured here.

    Returns
    -------
    facts : dict of str to str
    """
    import numba

    from tinydiff.kernels.cpu.simd import LANES
    blas = {f"{lib['internal_api']} {lib['version']}" for lib in threadpool_info()
            if lib["user_api"] == "blas"}
    return {"processor": processor(), "registers": f"{LANES} float32", "numpy": np.__version__,
            "numba": numba.__version__, "BLAS": ", ".join(sorted(blas)) or "unknown"}


def main(argv=None):
    """Measure, and print the tables as they come."""
    parser = argparse.ArgumentParser(prog="python -m tinydiff.bench.ladder",
                                     description="measure what each step of the kernels bought")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    parser.add_argument("--quick", action="store_true", help="tiny arrays: to see that it runs")
    args = parser.parse_args(argv)
    mode()                              # OMP_NUM_THREADS counts from here on
    if obstacle():
        parser.error(f"nothing to measure: {obstacle()}")

    about, tables = facts(), []
    print("; ".join(f"{name}: {value}" for name, value in about.items()))
    for table in run(args.quick):
        tables.append(table)
        print("", markdown(table), sep="\n", flush=True)
    if args.json:
        write_json(args.json, {"facts": about, "tables": [table._asdict() for table in tables]})


if __name__ == "__main__":
    main()
