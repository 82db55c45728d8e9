"""Make tests/reference/unet/: what diffusers' UNet2DConditionModel computes.

Run in an environment with torch and diffusers (written with 2.13.0 and 0.42.1)::

    python tests/reference/make_unet.py

The configurations, weights and inputs come from tests/unet_configs.py; only
results are stored: published.json has, for each published configuration, the number of
tensors and parameters and a digest of their names and shapes; each .npz file has

==================  ===============================================================
versions            of torch and diffusers
shapes              the state dict's ``{name: shape}``, as JSON
output              in float64
d_sample, ...       in float64: the gradients of ``sum(dy * output)`` in the inputs
checksums, norms    in float64, per tensor: one random component of the parameter's
                    gradient (`unet_configs.checksum`), and the gradient's norm
output32, ...       output and input gradients as diffusers computes them in float32
==================  ===============================================================

In float64 one thing is put right: diffusers computes the sinusoids of the timestep in
float32 whatever the model's precision, where the angle t * 1 alone is off by up to
t * 6e-8.  They are computed in float64 here, and left as they are in float32.
"""
import json
import sys
from math import log, prod
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from unet_configs import CASES, PUBLISHED, checksum, cotangent, digest, inputs, weight

FOLDER = Path(__file__).parent / "unet"
DIFFERENTIABLE = ("sample", "context", "class_labels", "text_embeds")


def sinusoid64(proj):
    """Return a float64 stand-in for ``proj.forward``; `proj` is a diffusers ``Timesteps``."""
    import torch

    def forward(t):
        half = proj.num_channels // 2
        i = torch.arange(half, dtype=torch.float64)
        frequency = torch.exp(-log(10000) * i / (half - proj.downscale_freq_shift))
        angle = t.double()[:, None] * frequency
        parts = [angle.cos(), angle.sin()] if proj.flip_sin_to_cos else [angle.sin(), angle.cos()]
        parts.append(torch.zeros(len(t), proj.num_channels % 2, dtype=torch.float64))
        return torch.cat(parts, dim=1)
    return forward


def build(config, dtype):
    """Return diffusers' model of `config` in evaluation mode, filled by `unet_configs.weight`."""
    import torch
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel.from_config(config).eval()
    values = {name: torch.from_numpy(weight(name, tuple(p.shape))).to(dtype)
              for name, p in model.state_dict().items()}
    model.load_state_dict(values, assign=True)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__ == "Timesteps":
                module.forward = sinusoid64(module)
    return model


def run(model, given, dy, dtype):
    """Return the output, and the gradients of ``sum(dy * output)`` in each real input.

    Parameters
    ----------
    model : UNet2DConditionModel
        Its parameters' ``grad`` is filled too.
    given : dict
        As `unet_configs.inputs` makes it.
    dy : ndarray
    dtype : torch.dtype
    """
    import torch

    args = {}
    for name, value in given.items():
        args[name] = torch.as_tensor(value)
        if args[name].is_floating_point():
            args[name] = args[name].to(dtype)
        if name in DIFFERENTIABLE and args[name].ndim > 1:
            args[name].requires_grad_()
    added = {name: args[name] for name in ("text_embeds", "time_ids") if name in args}
    y = model(args["sample"], args["timestep"], args.get("context"),
              class_labels=args.get("class_labels"), added_cond_kwargs=added).sample
    y.backward(torch.from_numpy(dy).to(dtype))
    grads = {f"d_{name}": a.grad.numpy() for name, a in args.items() if a.requires_grad}
    return {"output": y.detach().numpy(), **grads}


def reference(case):
    """Return everything that the comparison with `case` needs, as a dict of arrays."""
    import diffusers
    import torch

    given, dy = inputs(case), cotangent(case)
    single = run(build(case.config, torch.float32), given, dy, torch.float32)
    model = build(case.config, torch.float64)
    double = run(model, given, dy, torch.float64)

    shapes = {name: list(p.shape) for name, p in model.named_parameters()}
    assert shapes.keys() == model.state_dict().keys()
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    return {"versions": np.array(versions),
            "shapes": np.array(json.dumps(shapes)),
            **double,
            "checksums": np.array([checksum(name, g) for name, g in grads.items()]),
            "norms": np.array([np.linalg.norm(g) for g in grads.values()]),
            **{f"{name}32": value for name, value in single.items()}}


def published_shapes(config):
    """Return diffusers' ``{name: shape}`` of a full-sized model, which takes no memory."""
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel.from_config(config)
    return {name: tuple(p.shape) for name, p in model.state_dict().items()}


def main():
    FOLDER.mkdir(exist_ok=True)
    models = {}
    for name, config in PUBLISHED.items():
        shapes = published_shapes(config)
        models[name] = {"tensors": len(shapes), "sha256": digest(shapes),
                        "parameters": sum(prod(shape) for shape in shapes.values())}
    (FOLDER / "published.json").write_text(json.dumps(models, indent=2) + "\n")
    for name, case in CASES.items():
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **reference(case))
        print(f"{path.stat().st_size / 1e3:6.1f} kB  {path.name}")


if __name__ == "__main__":
    main()
