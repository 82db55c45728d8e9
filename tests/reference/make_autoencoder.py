"""Make tests/reference/autoencoder/: what diffusers' AutoencoderKL computes.

Run in an environment with torch and diffusers (written with 2.13.0 and 0.42.1)::

    python tests/reference/make_autoencoder.py

The configurations come from tests/autoencoder_configs.py, weights and inputs from
tests/unet_configs.py; only results are stored: published.json has, for each published
configuration, the number of tensors and parameters and a digest of their names and shapes;
each .npz file has

==================  ===============================================================
versions            of torch and diffusers
shapes              the state dict's ``{name: shape}``, as JSON
x_hat, mean,        in float64: the decoded draw, and the two moments of the latents
logvar
d_x                 in float64: the gradient in x of the sum of all three outputs, each
                    weighted by its cotangent
checksums, norms    in float64, per tensor: one random component of the parameter's
                    gradient (`unet_configs.checksum`), and the gradient's norm
x_hat32, ...        the same in float32
==================  ===============================================================
"""
import json
import sys
from math import prod
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from autoencoder_configs import CASES, PUBLISHED, cotangents, inputs
from unet_configs import checksum, digest, weight

FOLDER = Path(__file__).parent / "autoencoder"


def build(config, dtype):
    """Return diffusers' model of `config` in evaluation mode, filled by `unet_configs.weight`."""
    import torch
    from diffusers import AutoencoderKL

    model = AutoencoderKL.from_config(config).eval()
    values = {name: torch.from_numpy(weight(name, tuple(p.shape))).to(dtype)
              for name, p in model.state_dict().items()}
    model.load_state_dict(values, assign=True)
    return model


def run(model, case, dtype):
    """Return the outputs and the gradient in x; the parameters' ``grad`` is filled too."""
    import torch

    given = {name: torch.from_numpy(a).to(dtype) for name, a in inputs(case).items()}
    given["x"].requires_grad_()
    posterior = model.encode(given["x"]).latent_dist
    x_hat = model.decode(posterior.mean + posterior.std * given["eps"]).sample
    outputs = {"x_hat": x_hat, "mean": posterior.mean, "logvar": posterior.logvar}
    dy = cotangents(case)
    torch.autograd.backward(list(outputs.values()),
                            [torch.from_numpy(dy[name]).to(dtype) for name in outputs])
    return {name: y.detach().numpy() for name, y in outputs.items()} | {
        "d_x": given["x"].grad.numpy()}


def reference(case):
    """Return everything that the comparison with `case` needs, as a dict of arrays."""
    import diffusers
    import torch

    single = run(build(case.config, torch.float32), case, torch.float32)
    model = build(case.config, torch.float64)
    double = run(model, case, torch.float64)
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return {"versions": np.array(f"torch {torch.__version__}, diffusers {diffusers.__version__}"),
            "shapes": np.array(json.dumps({n: list(g.shape) for n, g in grads.items()})),
            **double,
            "checksums": np.array([checksum(name, g) for name, g in grads.items()]),
            "norms": np.array([np.linalg.norm(g) for g in grads.values()]),
            **{f"{name}32": value for name, value in single.items()}}


def published_shapes(config):
    """Return diffusers' ``{name: shape}`` of a full-sized model, which takes no memory."""
    import torch
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        model = AutoencoderKL.from_config(config)
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
        print(f"{path.name}: {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
