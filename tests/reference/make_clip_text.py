"""Make tests/reference/clip_text/: what transformers' CLIPTextModel computes.

Run in an environment with torch and transformers (written with 2.13.0 and 5.23.0)::

    python tests/reference/make_clip_text.py

The configurations, weights and inputs come from tests/clip_text_configs.py; only results
are stored.  Each .npz file has

==================  ===============================================================
versions            of torch and transformers
shapes              the state dict's ``{name: shape}``, as JSON, published names
hidden, pooled,     in float64: ``last_hidden_state``; ``pooler_output``, or ``text_embeds``
penultimate         of a model with projection; ``hidden_states[-2]``
d_tokens, d_places  in float64: the gradient in the two embedding tables of
                    ``sum(dhidden * hidden) + ...`` over the three outputs
checksums, norms    in float64, per tensor: one random component of the parameter's
                    gradient (`unet_configs.checksum`), and the gradient's norm
hidden32, ...       the three outputs as transformers computes them in float32
==================  ===============================================================
"""
import json
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from clip_text_configs import CASES, cotangents, ids
from unet_configs import checksum, weight

FOLDER = Path(__file__).parent / "clip_text"


def published_name(name):
    """Return a tensor's name in published files; transformers 5 leaves the prefix out."""
    return name if name.startswith("text_") else f"text_model.{name}"


def build(case, dtype):
    """Return transformers' model of `case` in evaluation mode, filled by `unet_configs.weight`."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = {field: value for field, value in case.config.items() if field != "architectures"}
    cls = CLIPTextModelWithProjection if case.projected else CLIPTextModel
    model = cls(CLIPTextConfig(**config)).eval().to(dtype)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.from_numpy(weight(published_name(name), tuple(p.shape))))
    return model


def run(model, case):
    """Return the three outputs, as tensors."""
    import torch

    out = model(torch.from_numpy(ids(case)), output_hidden_states=True)
    pooled = out.text_embeds if case.projected else out.pooler_output
    return {"hidden": out.last_hidden_state, "pooled": pooled,
            "penultimate": out.hidden_states[-2]}


def reference(case):
    """Return everything that the comparison with `case` needs, as a dict of arrays."""
    import torch
    import transformers

    single = run(build(case, torch.float32), case)
    model = build(case, torch.float64)
    double = run(model, case)
    loss = sum((torch.from_numpy(d) * double[name]).sum() for name, d in cotangents(case).items())
    loss.backward()

    grads = {published_name(name): p.grad.numpy() for name, p in model.named_parameters()}
    table = "text_model.embeddings.{}_embedding.weight"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}"
    return {"versions": np.array(versions),
            "shapes": np.array(json.dumps({name: list(g.shape) for name, g in grads.items()})),
            **{name: y.detach().numpy() for name, y in double.items()},
            "d_tokens": grads[table.format("token")],
            "d_places": grads[table.format("position")],
            "checksums": np.array([checksum(name, g) for name, g in grads.items()]),
            "norms": np.array([np.linalg.norm(g) for g in grads.values()]),
            **{f"{name}32": y.detach().numpy() for name, y in single.items()}}


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, case in CASES.items():
        path = FOLDER / f"{name}.npz"
        np.savez_compressed(path, **reference(case))
        print(f"{path.stat().st_size / 1e3:6.1f} kB  {path.name}")


if __name__ == "__main__":
    main()
