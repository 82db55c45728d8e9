"""Each CUDA kernel module checked on its own, where the arrays say: a device, or the emulator.

    python tests/device_checks.py              # small sizes, on the GPU if there is one

What a module offers itself, ``check(rng, xp=cupy)``, is used; the others are checked here, every
version, forward and backward, against the readable definition on inputs rounded the same way.
"""
import sys
from importlib import import_module
from pathlib import Path

import numpy as np

from tinydiff import ops
from tinydiff.backends.device import to_host
from tinydiff.kernels.accuracy import assert_as_accurate_as

KERNELS = Path(__file__).resolve().parents[1] / "kernels"


def modules():
    """Return the names of the modules that launch versions of a .cu file's kernels."""
    texts = {path.stem: path.read_text(encoding="utf-8") for path in sorted(KERNELS.glob("*.py"))}
    return [name for name, text in texts.items() if "\nVERSIONS" in text and '.cu"' in text]


def check(name, xp, seed=0):
    """Check one module on arrays of `xp`, numpy or cupy; raise if a version is wrong."""
    module = import_module(f"tinydiff.kernels.{name}")
    rng = np.random.default_rng(seed)
    if hasattr(module, "check"):
        module.check(rng, xp=xp)
    else:
        CHECKS[name](module, rng, xp)


def precision(module, version):
    """Return what a version multiplies."""
    return getattr(module, "PRECISION", {}).get(version, "float32")


def close(got, want, name, most):
    """Compare where intermediate results are rounded too: by the largest entry."""
    error = np.abs(to_host(got) - want).max() / max(np.abs(want).max(), 1e-30)
    assert error < most, f"{name}: {error:.1e} of the largest entry"


def conv2d(module, rng, xp):
    """Odd sizes, both strides, kernels of 3 and of 1."""
    from tinydiff.kernels.rounding import rounded

    forward, backward = ops.conv2d_forward.reference, ops.conv2d_backward.reference
    for stride, K in ((1, 3), (2, 3), (1, 1)):
        x, w, b = (rng.standard_normal(s, dtype=np.float32)
                   for s in ((2, 5, 9, 11), (7, 5, K, K), 7))
        pad = (K // 2, K // 2), (K // 2, K // 2)
        for version in module.VERSIONS:
            r = lambda a, v=version: rounded(a, precision(module, v))
            dy = rng.standard_normal(forward(x, w, b, stride, pad)[0].shape, dtype=np.float32)
            put = [xp.asarray(a) for a in (x, w, b, dy)]
            got = (module.forward(*put[:3], stride, pad, version),
                   module.backward_x(put[3], x.shape, put[1], stride, pad, version),
                   module.backward_weight(put[3], put[0], w.shape, stride, pad, version))
            wants = []
            for dtype in (np.float32, np.float64):
                xr, wr, dyr, bias = (a.astype(dtype) for a in (r(x), r(w), r(dy), b))
                y, cache = forward(xr, wr, bias, stride, pad)
                wants.append((y, *backward(dyr, cache)[:2]))
            for ours, theirs, exact in zip(got, *wants, strict=True):
                assert_as_accurate_as(to_host(ours), theirs, exact, factor=3)


def attention(module, rng, xp):
    """Odd lengths, a short context, a mask; heads of 16 and of 40."""
    forward, backward = ops.attention_forward.reference, ops.attention_backward.reference
    for B, heads, N, M, d, masked in ((1, 2, 33, 33, 16, True), (2, 1, 37, 7, 40, False)):
        q, k, v, do = (rng.standard_normal((B, rows, heads * d), dtype=np.float32)
                       for rows in (N, M, M, N))
        mask = ops.causal_mask(N) if masked else None
        o, cache = forward(*(a.astype(np.float64) for a in (q, k, v)), heads, mask)
        want = [o, *backward(do.astype(np.float64), cache)]
        for version in module.VERSIONS:
            reduced = precision(module, version)
            y, saved = module.attention_forward(
                *map(xp.asarray, (q, k, v)), heads, None if mask is None else xp.asarray(mask),
                precision=reduced, version=version)
            got = [y, *saved.backward(xp.asarray(do), saved.arrays)]
            for name, a, b in zip(("o", "dq", "dk", "dv"), got, want, strict=True):
                close(a, b, f"{module.VERSIONS[version]}: {name}",
                      1e-5 if reduced == "float32" else 1e-2)


def group_norm(module, rng, xp):
    """With SiLU and without, with the time's scale and shift and without."""
    x, w, b, scale, shift, dy = (rng.standard_normal(s, dtype=np.float32) for s in (
        (2, 12, 5, 7), 12, 12, (2, 12), (2, 12), (2, 12, 5, 7)))
    for op, extra in (("group_norm", ()), ("group_norm_silu", ()),
                      ("group_norm_silu", (1e-5, scale, shift))):
        forward, backward = (getattr(ops, f"{op}_{way}").reference for way in
                             ("forward", "backward"))
        double = [a.astype(np.float64) if isinstance(a, np.ndarray) else a
                  for a in (x, w, b, 4, *extra)]
        y, cache = forward(*double)
        want = [a for a in (y, *backward(dy.astype(np.float64), cache)) if a is not None]
        for version in module.VERSIONS:
            put = [xp.asarray(a) if isinstance(a, np.ndarray) else a for a in (x, w, b, 4, *extra)]
            y, saved = getattr(module, f"{op}_forward")(*put, version=version)
            got = [y, *saved.backward(xp.asarray(dy), saved.arrays)]
            for a, exact in zip([a for a in got if a is not None], want, strict=True):
                close(a, exact, f"{op}, version {version}", 1e-5)


CHECKS = {"conv2d": conv2d, "attention": attention, "group_norm": group_norm}


if __name__ == "__main__":
    sys.path.insert(0, str(KERNELS.parent))
    from tinydiff.backends.device import obstacle

    where = np if obstacle() else import_module("cupy")
    for each in modules():
        check(each, where)
        print(f"{each}: right on {where.__name__} arrays", flush=True)
