"""Make tests/reference/clip/: what transformers' CLIPModel and its image half compute.

Run in an environment with torch and transformers (written with 2.13.0 and 5.24.0)::

    python tests/reference/make_clip.py

The configurations, weights and inputs come from tests/clip_configs.py; only results
are stored.  Each .npz file has

=====================  ============================================================
versions               of torch and transformers
shapes                 the state dict's ``{name: shape}``, as JSON, published names
image, text            in float64: ``image_embeds``, ``text_embeds``
loss                   in float64: the contrastive loss
checksums, norms       in float64, per tensor: one random component of the gradient of
                       the loss (`unet_configs.checksum`), and the gradient's norm
hidden, pooled,        in float64, of the image half alone: ``last_hidden_state``,
penultimate            ``image_embeds`` (not normed), ``hidden_states[-2]``
d_pictures             in float64: the gradient in the pictures of ``sum(dhidden *
                       hidden) + ...`` over these three outputs
image32, text32        as transformers computes them in float32
=====================  ============================================================
"""
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from clip_configs import CASES, cotangents, ids, pictures, weight
from unet_configs import checksum

FOLDER = Path(__file__).parent / "clip"


def fill(model, dtype):
    """Give every tensor the value that its name stands for."""
    import torch

    model = model.eval().to(dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(weight(name, tuple(p.shape))))
    return model


def build(case, dtype):
    """Return transformers' CLIPModel of `case`."""
    from transformers import CLIPConfig, CLIPModel

    return fill(CLIPModel(CLIPConfig(text_config=case.text, vision_config=case.vision,
                                     projection_dim=case.projection_dim)), dtype)


def build_vision(case, dtype):
    """Return transformers' CLIPVisionModelWithProjection of `case`."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return fill(CLIPVisionModelWithProjection(
        CLIPVisionConfig(**case.vision, projection_dim=case.projection_dim)), dtype)


def run(model, case):
    """Return ``image_embeds``, ``text_embeds`` and the loss, as tensors."""
    import torch

    x = torch.from_numpy(pictures(case)).to(next(model.parameters()).dtype)
    out = model(input_ids=torch.from_numpy(ids(case)), pixel_values=x, return_loss=True)
    return {"image": out.image_embeds, "text": out.text_embeds, "loss": out.loss}


def run_vision(model, case):
    """Return the image half's outputs, and the pictures with their gradient, as tensors."""
    import torch

    x = torch.from_numpy(pictures(case)).to(next(model.parameters()).dtype).requires_grad_()
    out = model(pixel_values=x, output_hidden_states=True)
    outputs = {"hidden": out.last_hidden_state, "pooled": out.image_embeds,
               "penultimate": out.hidden_states[-2]}
    sum((torch.from_numpy(d) * outputs[name]).sum() for name, d in cotangents(case).items()
        ).backward()
    return {**outputs, "d_pictures": x.grad}


def reference(case):
    """Return everything that the comparison with `case` needs, as a dict of arrays."""
    import torch
    import transformers

    single = run(build(case, torch.float32), case)
    model = build(case, torch.float64)
    double = run(model, case)
    double["loss"].backward()
    vision = run_vision(build_vision(case, torch.float64), case)

    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return {"versions": np.array(versions),
            "shapes": np.array(json.dumps({name: list(g.shape) for name, g in grads.items()})),
            **{name: y.detach().numpy() for name, y in (double | vision).items()},
            "checksums": np.array([checksum(name, g) for name, g in grads.items()]),
            "norms": np.array([np.linalg.norm(g) for g in grads.values()]),
            **{f"{name}32": single[name].detach().numpy() for name in ("image", "text")}}


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **reference(case))
        print(f"{path.stat().st_size / 1e3:6.1f} kB  {path.name}")


if __name__ == "__main__":
    main()
