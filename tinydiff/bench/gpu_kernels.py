"""Each version of each kernel beside PyTorch's: sizes of Stable Diffusion, batches that last."""
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from math import prod

from tinydiff.bench.gpu_sides import PRECISIONS, Sides, versions

KERNELS = "tinydiff.kernels"


def measure(bench):
    """Time all kernels that there are."""
    for name, contest in CONTESTS.items():
        if find_spec(f"{KERNELS}.{name}") is None:
            bench.notes.append(f"{name}: there is no {KERNELS}.{name} yet")
            continue
        try:
            contest(bench, Sides(bench), import_module(f"{KERNELS}.{name}"))
        except Exception as fault:
            bench.notes.append(f"{name}: {type(fault).__name__}: {' '.join(str(fault).split())}")


def conv2d(bench, sides, module):
    """Time convolution: forward, gradient in the input, gradient in the weight."""
    layers = [(1, 8, 8, 8, 3)] if bench.where == "cpu" else [
        (4, 320, 320, 64, 3), (4, 640, 640, 32, 3), (4, 1280, 1280, 16, 3), (4, 320, 320, 64, 1)]
    for layer in layers:
        for precision in PRECISIONS:
            _conv2d(bench, sides, module, layer, precision)


def _conv2d(bench, sides, module, layer, precision):
    B, C, O, size, K = layer
    shapes = {"x": (B, C, size, size), "w": (O, C, K, K), "b": (O,), "dy": (B, O, size, size)}
    x, w, b, dy = (sides.ours(name, shape) for name, shape in shapes.items())
    pad = (K // 2, K // 2), (K // 2, K // 2)
    theirs = cudnn(sides, precision, shapes, K // 2) if bench.torch else {}
    directions = {"forward": lambda v: module.forward(x, w, b, 1, pad, v),
                  "dx": lambda v: module.backward_x(dy, x.shape, w, 1, pad, v),
                  "dweight": lambda v: module.backward_weight(dy, x, w.shape, 1, pad, v)}
    for direction, run in directions.items():
        bench.contest(f"conv {K}x{K} {C}->{O} at {size}x{size}, batch {B}, {direction}", precision,
                      {module.VERSIONS[v]: partial(run, v) for v in versions(module, precision)},
                      theirs.get(direction, {}),
                      (2.0 * B * O * C * K * K * size * size, f"operations, {precision}"))


def cudnn(sides, precision, shapes, pad):
    """Return cuDNN's three functions, as PyTorch calls them."""
    torch = sides.torch
    x, w, b, dy = (sides.theirs(name, shape, precision) for name, shape in shapes.items())

    def gradient(of):
        mask = [of == "dx", of == "dweight", False]
        return lambda: [g for g in torch.ops.aten.convolution_backward(
            dy, x, w, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, mask) if g is not None]

    return {"forward": {"cuDNN": sides.guarded(
                precision, lambda: torch.nn.functional.conv2d(x, w, b, padding=pad))},
            **{of: {"cuDNN": sides.guarded(precision, gradient(of))} for of in ("dx", "dweight")}}


def attention(bench, sides, module):
    """Time attention forward and backward, of pixels among themselves and of pixels to a text."""
    sizes = [(1, 2, 16, 16, 16)] if bench.where == "cpu" else [
        (4, 8, 4096, 4096, 40), (4, 8, 1024, 1024, 80), (16, 8, 4096, 77, 40),
        (4, 5, 4096, 4096, 64)]
    for size in sizes:
        for precision in PRECISIONS:
            _attention(bench, sides, module, size, precision)


def _attention(bench, sides, module, size, precision):
    B, heads, N, M, d = size
    shapes = {name: (B, rows, heads * d) for name, rows in
              (("q", N), ("k", M), ("v", M), ("do", N))}
    q, k, v, do = (sides.ours(name, shape) for name, shape in shapes.items())
    runs = {module.VERSIONS[version]: partial(module.attention_forward, q, k, v, heads,
                                              precision=precision, version=version)
            for version in versions(module, precision)}
    theirs = sdpa(sides, precision, shapes, heads) if bench.torch else ({}, {})
    name = f"attention {N} to {M} tokens, {heads} heads of {d}, batch {B}"
    work, key = 4.0 * B * heads * N * M * d, f"operations, {precision}"
    bench.contest(f"{name}, forward", precision,
                  {who: partial(_first, run) for who, run in runs.items()}, theirs[0], (work, key))
    bench.contest(f"{name}, backward", precision,
                  {who: _backward_of(run, do) for who, run in runs.items()}, theirs[1],
                  (2.5 * work, key))


def _first(run):
    return run()[0]


def _backward_of(run, dy):
    """Return a function that pulls `dy` back; the forward pass is run once, when first called."""
    saved = []

    def backward():
        if not saved:
            saved.append(run()[1])
        return saved[0].backward(dy, saved[0].arrays)
    return backward


def sdpa(sides, precision, shapes, heads):
    """Return PyTorch's scaled dot-product attention, forward and backward."""
    torch = sides.torch
    q, k, v, do = (sides.theirs(name, shape, precision).unflatten(-1, (heads, -1)).transpose(1, 2)
                   for name, shape in shapes.items())
    call = lambda *qkv: torch.nn.functional.scaled_dot_product_attention(*qkv)
    joined = lambda o: o.transpose(1, 2).flatten(2)
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    kept = []

    def backward():
        if not kept:
            kept.append(call(*leaves))
        return [joined(g) for g in torch.autograd.grad(kept[0], leaves, do, retain_graph=True)]

    return ({"SDPA": sides.guarded(precision, lambda: joined(call(q, k, v)))},
            {"SDPA": sides.guarded(precision, backward)})


def group_norm(bench, sides, module):
    """Time group norm with SiLU: bound by memory, so its work is counted in bytes."""
    for B, C, size in [(2, 32, 8)] if bench.where == "cpu" else [(64, 320, 64), (64, 640, 32)]:
        _group_norm(bench, sides, module, (B, C, size, size))


def _group_norm(bench, sides, module, shape):
    C = shape[1]
    shapes = {"x": shape, "w": (C,), "b": (C,)}
    inputs, dy = [sides.ours(*item) for item in shapes.items()], sides.ours("dy", shape)
    runs = {module.VERSIONS[v]: partial(module.group_norm_silu_forward, *inputs, 32, version=v)
            for v in module.VERSIONS}
    theirs = ({}, {})
    if bench.torch:
        functional, grad = bench.torch.nn.functional, bench.torch.autograd.grad
        x, w, b = (sides.theirs(*item, "float32").requires_grad_() for item in shapes.items())
        dt = sides.theirs("dy", shape, "float32")
        call = lambda: functional.silu(functional.group_norm(x, 32, w, b))
        theirs = ({"PyTorch": lambda: call().detach()},
                  {"PyTorch, forward too": lambda: grad(call(), (x, w, b), dt)})
    name = f"group norm + SiLU {C} at {shape[2]}x{shape[3]}, batch {shape[0]}"
    bytes_moved = 4.0 * prod(shape)
    bench.contest(f"{name}, forward", "float32",
                  {who: partial(_first, run) for who, run in runs.items()}, theirs[0],
                  (2 * bytes_moved, "bytes copied"))
    bench.contest(f"{name}, backward", "float32",
                  {f"{who}, forward too": partial(_both, run, dy) for who, run in runs.items()},
                  theirs[1], (5 * bytes_moved, "bytes copied"))


def _both(run, dy):
    saved = run()[1]
    return saved.backward(dy, saved.arrays)[:3]


def matmul(bench, sides, module):
    """Time the teaching ladder beside cuBLAS."""
    n = 64 if bench.where == "cpu" else 4096
    a, b = sides.ours("a", (n, n)), sides.ours("b", (n, n))
    for precision in PRECISIONS:
        theirs = {}
        if bench.torch:
            at, bt = (sides.theirs(name, (n, n), precision) for name in "ab")
            theirs = {"cuBLAS": sides.guarded(precision, lambda at=at, bt=bt: at @ bt)}
        ours = {module.VERSIONS[v]: (lambda v=v: module.matmul(a, b, version=v))
                for v in versions(module, precision)}
        bench.contest(f"product of {n} x {n} matrices", precision, ours, theirs,
                      (2.0 * n**3, f"operations, {precision}"))


def softmax(bench, sides, module):
    """Time softmax along the rows of a matrix: read once, written once."""
    shape = (64, 32) if bench.where == "cpu" else (2**17, 1024)
    x = sides.ours("x", shape)
    theirs = {}
    if bench.torch:
        xt = sides.theirs("x", shape, "float32")
        theirs = {"PyTorch": lambda: bench.torch.softmax(xt, dim=-1)}
    ours = {module.VERSIONS[v]: lambda v=v: module.softmax_forward(x, version=v)[0]
            for v in module.VERSIONS}
    bench.contest(f"softmax of {shape[0]} rows of {shape[1]}", "float32", ours, theirs,
                  (8.0 * prod(shape), "bytes copied"))


def adamw(bench, sides, module):
    """Time AdamW with the moving average: 5 arrays read, 4 written."""
    n = 2**10 if bench.where == "cpu" else 2**26
    arrays = [sides.ours(name, (n,)) for name in ("value", "grad", "m", "v", "average")]
    arrays[3] = abs(arrays[3])
    options = {"k": 10, "lr": 1e-4, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.01,
               "clip": 1.0, "share": 0.01}

    def ours():
        module.adamw_update(*arrays, **options)
        return arrays[0][:1]

    theirs = {}
    if bench.torch:
        torch = bench.torch
        p, average = (sides.theirs(name, (n,), "float32") for name in ("value", "average"))
        p.grad = sides.theirs("grad", (n,), "float32")
        optimiser = torch.optim.AdamW([p], lr=1e-4, betas=(0.9, 0.99), weight_decay=0.01,
                                      fused=True)

        def update():
            optimiser.step()
            torch._foreach_lerp_([average], [p], 0.01)
            return p[:1]

        theirs = {"PyTorch, fused, and a lerp": update}
    bench.contest(f"AdamW and average of {n} numbers", "float32", {"ours": ours}, theirs,
                  (36.0 * n, "bytes copied"))


CONTESTS = {"conv2d": conv2d, "attention": attention, "group_norm": group_norm,
            "matmul": matmul, "softmax": softmax, "adamw": adamw}
