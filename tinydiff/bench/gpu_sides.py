"""The two sides of a contest on a GPU: the same numbers for both, precisions set for both."""
from contextlib import contextmanager

import numpy as np

from tinydiff.backends.device import follow, move, to_host
from tinydiff.bench.fill import values

PRECISIONS = ("float32", "tf32", "float16")


def on_host(result):
    """Bring a result, ours or PyTorch's, to the host as one list of float32 arrays."""
    results = result if isinstance(result, (tuple, list)) else [result]
    return [np.asarray(r.detach().float().cpu() if hasattr(r, "detach") else to_host(r), np.float32)
            for r in results if r is not None]


def difference(ours, theirs):
    """Return the largest difference, as a share of the largest entry of the array it is in."""
    return max((float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30))
                for a, b in zip(ours, theirs, strict=False)), default=0.0)


@contextmanager
def torch_precision(torch, precision):
    """Set both of PyTorch's TF32 flags, cuDNN's (on by default) and cuBLAS's (off)."""
    flags = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [flag.allow_tf32 for flag in flags]
    try:
        for flag in flags:
            flag.allow_tf32 = precision == "tf32"
        yield
    finally:
        for flag, value in zip(flags, before, strict=True):
            flag.allow_tf32 = value


class Sides:
    """The same numbers for both sides.

    Parameters
    ----------
    bench : Bench
    """

    def __init__(self, bench):
        self.torch = bench.torch
        self.where = bench.where
        self.like = move(np.empty(0, np.float32), self.where)

    def ours(self, name, shape):
        """Return a float32 array."""
        return follow(values(name, shape), self.like)

    def theirs(self, name, shape, precision):
        """Return a tensor, of float16 where that is the precision."""
        half = precision == "float16"
        return self.torch.from_numpy(values(name, shape)).to(
            self.where, self.torch.float16 if half else self.torch.float32)

    def guarded(self, precision, function):
        """Run PyTorch's function with its flags set, and without a graph of gradients."""
        def run():
            with torch_precision(self.torch, precision):
                return function()
        return run


def measure_limits(bench):
    """See what the machine can do: bytes copied, and products in each precision, in a second."""
    sides, dry = Sides(bench), bench.where == "cpu"
    numbers = 2**12 if dry else 2**28
    bench.contest("copy of 1 GiB, read and written", "float32", {"CuPy": _copy(sides, numbers)}, {})
    if bench.rows[-1].seconds:
        bench.limits["bytes copied"] = 2 * 4 * numbers / bench.rows[-1].seconds
    if bench.torch is None:
        return
    n = 64 if dry else 8192
    for precision in PRECISIONS:
        a, b = (sides.theirs(name, (n, n), precision) for name in "ab")
        product = sides.guarded(precision, lambda a=a, b=b: (a @ b)[:1])
        bench.contest(f"product of {n} x {n} matrices", precision, {}, {"cuBLAS": product})
        if bench.rows[-1].seconds:
            bench.limits[f"operations, {precision}"] = 2 * n**3 / bench.rows[-1].seconds


def _copy(sides, numbers):
    """Return a function that copies within the device's memory."""
    x = sides.ours("x", (numbers,))
    y = x.copy()

    def copy():
        y[...] = x
        return y[:1]
    return copy


def versions(module, precision):
    """Return the numbers of a module's versions that multiply in this precision."""
    of = getattr(module, "PRECISION", {})
    return [v for v in module.VERSIONS if of.get(v, "float32") == precision]
