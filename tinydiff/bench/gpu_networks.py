"""A training step and the sampling of the shipped model, beside PyTorch eager and compiled."""
from itertools import pairwise

import numpy as np

from tinydiff.backends.precision import precision, use_precision
from tinydiff.bench import tinydiff_side, workloads

PRECISIONS = ("float32", "tf32")
COMPILING = 150                         # seconds that must be left for torch.compile


def measure(bench):
    """Time ours, as it is and as CUDA graphs, beside PyTorch eager."""
    for name in PRECISIONS if bench.where == "cuda" else PRECISIONS[:1]:
        with use_precision(name):
            for contest in (train_step, sample):
                try:
                    contest(bench)
                except Exception as fault:
                    bench.notes.append(f"{contest.__name__}, {name}: {type(fault).__name__}: "
                                       f"{' '.join(str(fault).split())}")


def measure_compiled(bench):
    """Time PyTorch compiled, if there is time for compiling."""
    if bench.torch is None or bench.where == "cpu":
        return
    for contest in (train_step, sample):
        if bench.left < COMPILING:
            bench.notes.append(f"{contest.__name__}: no time for torch.compile")
            continue
        try:
            contest(bench, compiled=True)
        except Exception as fault:
            bench.notes.append(f"{contest.__name__}, torch.compile: {type(fault).__name__}: "
                               f"{' '.join(str(fault).split()):.300}")


def _set_flags(bench):
    """Give PyTorch the precision that ours is in."""
    if bench.torch:
        bench.torch.backends.cudnn.allow_tf32 = precision() == "tf32"
        bench.torch.backends.cuda.matmul.allow_tf32 = precision() == "tf32"


def train_step(bench, compiled=False):
    """One update of a batch of 64: forward, loss, backward, clipping, AdamW, average."""
    _set_flags(bench)
    work = workloads.train_step()
    spec = {**work.spec, "device": bench.where, "layout": "default"}
    if bench.where == "cpu":
        spec["inputs"] = {n: [2, *shape[1:]] for n, shape in spec["inputs"].items()}
        spec["timestep"] = spec["timestep"][:2]
    theirs, ours = {}, {}
    if bench.torch:
        from tinydiff.bench import torch_side

        job = torch_side.TrainStep(spec)
        if compiled:
            job.model = bench.torch.compile(job.model)
        theirs = {"PyTorch compiled" if compiled else "PyTorch eager": _step(job)}
    if not compiled:
        plain = tinydiff_side.TrainStep(spec)
        graph = tinydiff_side.TrainStep({**spec, "graph": True})
        ours = {"tinydiff": _step(plain), "tinydiff, CUDA graph": _step(graph)}
    bench.contest(f"{work.what}", precision(), ours, theirs)
    if not compiled and graph.trainer.recorded and graph.trainer.recorded.why:
        bench.notes.append(f"training step: {graph.trainer.recorded.why}")


def _step(job):
    """Make one update, and return nothing to compare: later updates differ."""
    def run():
        job()
        return []
    return run


def sample(bench, compiled=False):
    """One prompt to one latent by DDIM with guidance; PyTorch is given text and noise."""
    from tinydiff.pipelines import load

    _set_flags(bench)
    pipe = load(workloads.MODEL)
    steps = workloads.STEPS if bench.where == "cuda" else 1
    levels = pipe.scheduler.levels(steps)
    given = pipe.encode(["", workloads.PROMPT]).hidden, pipe.noise("x_T", 0, [0], workloads.SEED)
    theirs, ours = {}, {}
    if bench.torch:
        theirs = {"PyTorch compiled" if compiled else "PyTorch eager": torch_sampler(
            bench, *given, levels, compiled)}
    if not compiled:
        ours = {"tinydiff": _sampler(load(workloads.MODEL), bench.where, False, steps),
                "tinydiff, CUDA graph": _sampler(load(workloads.MODEL), bench.where, True, steps)}
    bench.contest(f"prompt to latent, {steps} steps, guidance {workloads.GUIDANCE:g}",
                  precision(), ours, theirs)


def _sampler(pipe, where, graph, steps):
    """Return a function that draws one latent where `where` says."""
    pipe.to(where, graph=graph)

    def draw():
        *_, last = pipe.steps(workloads.PROMPT, steps=steps, guidance=workloads.GUIDANCE,
                              seed=workloads.SEED)
        return last.x_s
    return draw


def torch_sampler(bench, hidden, x_T, levels, compiled):
    """Return the same in PyTorch, from the same noise."""
    from tinydiff.bench import torch_unet

    torch, where = bench.torch, bench.where
    folder = workloads._folder() / "unet"
    unet = torch_unet.load(folder).to(where).eval()
    unet = torch.compile(unet) if compiled else unet
    hidden, x_T = (torch.from_numpy(np.ascontiguousarray(x)).to(where) for x in (hidden, x_T))

    def draw():
        with torch.inference_mode():
            x = x_T
            for t, s in pairwise(levels):
                null, own = unet(torch.cat([x, x]), torch.tensor([t.t - 1], device=where),
                                 hidden)[0].chunk(2)
                v = null + workloads.GUIDANCE * (own - null)
                x0_hat, eps_hat = t.signal * x - t.noise * v, t.noise * x + t.signal * v
                x = s.signal * x0_hat + s.noise * eps_hat
            return x
    return draw
