"""Make tests/reference/dit/: what diffusers' DiTTransformer2DModel computes.

Run in an environment with torch and diffusers (written with 2.13.0 and 0.42.1)::

    python tests/reference/make_dit.py

As make_unet.py does: configurations, weights and inputs come from tests/dit_configs.py, and only
results are stored.  published.json has, for each published configuration, the number of tensors
and parameters and a digest of names and shapes; each .npz file has the versions, the names and
shapes, output, d_sample, checksums and norms of the parameters' gradients in float64, and output32
and d_sample32.  Where a case is tied, the copies' gradients are added up.

In float64 two things are put right that diffusers computes in float32 whatever the model's
precision: the sinusoids of the timestep, and those of the places.
"""
import json
import sys
from math import prod
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from dit_configs import CASES, PUBLISHED, cotangent, gradient_sums, inputs, weight
from reference.make_unet import sinusoid64
from unet_configs import digest

FOLDER = Path(__file__).parent / "dit"


def positions(rows, columns, dim, side):
    """Return the table of places (rows * columns, dim), number by number, in float64."""
    table = np.empty((rows, columns, dim))
    quarter = dim // 4
    for y in range(rows):
        for x in range(columns):
            for i in range(quarter):
                frequency = 10000 ** (-i / quarter)
                across, down = x * side / columns * frequency, y * side / rows * frequency
                table[y, x, i], table[y, x, quarter + i] = np.sin(across), np.cos(across)
                table[y, x, 2 * quarter + i] = np.sin(down)
                table[y, x, 3 * quarter + i] = np.cos(down)
    return table.reshape(rows * columns, dim)


def build(case, dtype):
    """Return diffusers' model of `case` in evaluation mode, filled by `dit_configs.weight`."""
    import torch
    from diffusers import DiTTransformer2DModel

    model = DiTTransformer2DModel.from_config(case.config).eval()
    values = {name: torch.from_numpy(weight(name, tuple(p.shape), case.tied)).to(dtype)
              for name, p in model.state_dict().items()}
    model.load_state_dict(values, assign=True)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__ == "Timesteps":
                module.forward = sinusoid64(module)
        embed = model.pos_embed
        rows, columns = (n // embed.patch_size for n in case.size)
        table = positions(rows, columns, embed.pos_embed.shape[-1], embed.base_size)
        embed.pos_embed = torch.from_numpy(table)[None]
        embed.height, embed.width = rows, columns         # the table is theirs: compute no other
    return model


def run(model, case, dtype):
    """Return the output, and the gradient of ``sum(dy * output)`` in the sample.

    The parameters' ``grad`` is filled too.
    """
    import torch

    given = inputs(case)
    sample = torch.from_numpy(given["sample"]).to(dtype).requires_grad_()
    t = torch.as_tensor(given["timestep"], dtype=dtype).expand(len(sample))
    y = model(sample, t, torch.from_numpy(given["class_labels"])).sample
    y.backward(torch.from_numpy(cotangent(case)).to(dtype))
    return {"output": y.detach().numpy(), "d_sample": sample.grad.numpy()}


def reference(case):
    """Return everything that the comparison with `case` needs, as a dict of arrays."""
    import diffusers
    import torch

    single = run(build(case, torch.float32), case, torch.float32)
    model = build(case, torch.float64)
    double = run(model, case, torch.float64)
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    shapes = {name: list(p.shape) for name, p in model.state_dict().items()}
    assert shapes.keys() == grads.keys()
    sums = gradient_sums(grads, case.tied)
    versions = f"torch {torch.__version__}, diffusers {diffusers.__version__}"
    return {"versions": np.array(versions), "shapes": np.array(json.dumps(shapes)), **double,
            "names": np.array(json.dumps(list(sums))),
            "checksums": np.array([sum_ for sum_, _ in sums.values()]),
            "norms": np.array([norm for _, norm in sums.values()]),
            **{f"{name}32": value for name, value in single.items()}}


def published_shapes(config):
    """Return diffusers' ``{name: shape}`` of a full-sized model, which takes no memory."""
    import torch
    from diffusers import DiTTransformer2DModel, Transformer2DModel

    cls = Transformer2DModel if config.get("_class_name") == "Transformer2DModel" \
        else DiTTransformer2DModel
    with torch.device("meta"):
        model = cls.from_config(config)
    assert type(model) is DiTTransformer2DModel
    return {name: tuple(p.shape) for name, p in model.state_dict().items()}


def main():
    FOLDER.mkdir(exist_ok=True)
    models = {}
    for name, config in PUBLISHED.items():
        shapes = published_shapes(config)
        models[name] = {"tensors": len(shapes), "sha256": digest(shapes),
                        "numbers": sum(prod(shape) for shape in shapes.values())}
    (FOLDER / "published.json").write_text(json.dumps(models, indent=2) + "\n")
    for name, case in CASES.items():
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **reference(case))
        print(f"{path.stat().st_size / 1e3:6.1f} kB  {path.name}")


if __name__ == "__main__":
    main()
