"""Walks of diffusers' schedulers as a model's folder asks for them: the whole of a
scheduler_config.json, the timesteps that the network is told included.

`scheduler_walks` compares one method beside another on given levels; here nothing is given but the
file.  `walk` needs torch and diffusers; what it returns for `CASES` is kept in
tests/reference/published.npz:

    PYTHONPATH=tests python tests/published_walks.py
"""
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

FILE = Path(__file__).parent / "reference" / "published.npz"
SHAPE = (2, 3, 2, 2)
START = np.random.default_rng(0).normal(size=SHAPE)
OFFSET = {"epsilon": 0.0, "sample": 0.1, "v_prediction": -0.2, "flow_prediction": 0.3}
BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
SPREAD = np.array([1.0, 3.0]).reshape(2, 1, 1, 1)       # of the two pictures
IN_SIGMA = ("Euler", "Heun", "LMS")


class Case(NamedTuple):
    """A class, its fields, and how many steps of it."""

    scheduler: str
    fields: tuple
    steps: int

    def name(self):
        parts = [self.scheduler, *(f"{k}={v}" for k, v in self.fields), self.steps]
        return ",".join(map(str, parts))

    @property
    def kind(self):
        flow = self.scheduler.startswith("Flow")
        return "flow_prediction" if flow else dict(self.fields).get("prediction_type", "epsilon")

    def config(self):
        """Return the file's content."""
        flow = self.scheduler.startswith("Flow")
        return {"_class_name": self.scheduler, **({} if flow else BETAS), **dict(self.fields)}


def network(x, timestep, kind):
    """Some function of the variance-preserving sample and of the time: any will do."""
    wave = 1 + 0.3 * np.sin(float(timestep) / 100)
    size = 2 * SPREAD if kind == "sample" else 1.0       # leaves [-1, 1], to be squeezed
    return np.tanh(x) * wave * size + OFFSET[kind]


def cases():
    """Every class, with each field that says which levels it visits."""
    found = []
    add = lambda scheduler, steps, **fields: found.append(
        Case(f"{scheduler}Scheduler", tuple(fields.items()), steps))
    for name in ("EulerDiscrete", "LMSDiscrete", "HeunDiscrete", "DPMSolverMultistep",
                 "UniPCMultistep"):
        for steps in (2, 7):
            add(name, steps, use_karras_sigmas=True)
            add(name, steps, use_exponential_sigmas=True)
            add(name, steps)
        add(name, 7, use_karras_sigmas=True, timestep_spacing="leading", steps_offset=1)
        add(name, 7, use_exponential_sigmas=True, timestep_spacing="trailing",
            prediction_type="v_prediction")
        add(name, 7, timestep_spacing="leading", steps_offset=1)
        add(name, 8, timestep_spacing="trailing")
        add(name, 1, use_karras_sigmas=True)
    add("DPMSolverMultistep", 7, algorithm_type="sde-dpmsolver++", use_karras_sigmas=True)
    add("DPMSolverMultistep", 7, solver_type="heun", use_karras_sigmas=True)
    add("DPMSolverMultistep", 20, use_karras_sigmas=True, lower_order_final=False)
    add("DPMSolverMultistep", 7, solver_order=1, use_karras_sigmas=True)
    add("UniPCMultistep", 7, solver_order=3, use_karras_sigmas=True)
    add("EulerAncestralDiscrete", 7)
    add("PNDM", 7, skip_prk_steps=True, steps_offset=1, set_alpha_to_one=True)
    add("PNDM", 10, set_alpha_to_one=True)
    for name in ("DDIM", "DDPM", "DPMSolverMultistep", "UniPCMultistep"):
        for most in (1.0, 1.7):
            add(name, 5, thresholding=True, dynamic_thresholding_ratio=0.8, sample_max_value=most,
                prediction_type="sample", timestep_spacing="trailing")
        add(name, 5, thresholding=True, sample_max_value=100.0, timestep_spacing="leading")
    add("DDIM", 5, prediction_type="sample")             # which clips
    for shift in (1.0, 3.0):
        for steps in (1, 2, 7):
            add("FlowMatchEulerDiscrete", steps, shift=shift)
    return found


CASES = cases()


class Walk(NamedTuple):
    """The sigmas (steps + 1), the timesteps, and the samples after each step,
    variance-preserving but for flow's.
    """

    sigmas: np.ndarray
    timesteps: np.ndarray
    samples: np.ndarray


def noise_of(case):
    """Return what is drawn at each step."""
    return np.random.default_rng(1).normal(size=(case.steps, *SHAPE))


def scheduler_of(case):
    """Return diffusers' scheduler for a case, with its table in float64."""
    import diffusers

    scheduler = getattr(diffusers, case.scheduler).from_config(case.config())
    if hasattr(scheduler, "alphas_cumprod"):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()
    scheduler.set_timesteps(case.steps)
    return scheduler


def walk(case):
    """Walk as a pipeline does, from `START`."""
    import torch

    scheduler, in_sigma = scheduler_of(case), case.scheduler.startswith(IN_SIGMA)
    sigmas = np.zeros(0)
    if hasattr(scheduler, "sigmas"):
        scheduler.sigmas = scheduler.sigmas.double()
        sigmas = scheduler.sigmas.numpy()
    preserving = lambda x, k: x / np.sqrt(1 + sigmas[k] ** 2) if in_sigma else x
    x = torch.from_numpy(START) * (np.sqrt(1 + sigmas[0] ** 2) if in_sigma else 1.0)
    noise = torch.from_numpy(noise_of(case))
    samples, own = [], {}
    if case.scheduler == "DDIMScheduler":       # else the two halves no longer make up x_t
        own = {"use_clipped_model_output": True}
    for k, timestep in enumerate(scheduler.timesteps):
        scaled = x
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(x, timestep)
        out = torch.from_numpy(network(scaled.double().numpy(), timestep, case.kind))
        if dict(case.fields).get("algorithm_type") == "sde-dpmsolver++":
            own = {"variance_noise": noise[k]}
        with _draws(scheduler, noise[min(k, case.steps - 1)]):
            x = scheduler.step(out, timestep, x, **own).prev_sample.double()
        samples.append(preserving(x.numpy(), min(k + 1, len(sigmas) - 1)))
    return Walk(sigmas, scheduler.timesteps.double().numpy(), np.stack(samples))


class _draws:                                            # noqa: N801 - reads as a function
    """Within it, a scheduler that draws noise draws this."""

    def __init__(self, scheduler, z):
        import sys
        self.module, self.z = sys.modules[type(scheduler).__module__], z

    def __enter__(self):
        self.before = getattr(self.module, "randn_tensor", None)
        if self.before:
            self.module.randn_tensor = lambda *arguments, **options: self.z

    def __exit__(self, *fault):
        if self.before:
            self.module.randn_tensor = self.before


def stored():
    """Return ``{case name: Walk}`` and their table, as `main` wrote them."""
    with np.load(FILE) as file:
        names, alpha_bar = json.loads(str(file["names"])), file["alpha_bar"]
        parts = {field: np.split(file[field], np.cumsum(file["sizes"][:-1, k]))
                 for k, field in enumerate(Walk._fields)}
    walks = {}
    for i, name in enumerate(names):
        found = Walk(*(parts[field][i].astype(np.float64) for field in Walk._fields))
        walks[name] = found._replace(samples=found.samples.reshape(-1, *SHAPE))
    return walks, alpha_bar


def main():
    """Write the file."""
    import warnings

    warnings.simplefilter("ignore")
    walks = [walk(case) for case in CASES]
    arrays = {field: np.concatenate([getattr(found, field).ravel() for found in walks])
              for field in Walk._fields}
    arrays["samples"] = arrays["samples"].astype(np.float32)
    sizes = [[getattr(found, field).size for field in Walk._fields] for found in walks]
    table = scheduler_of(Case("DDIMScheduler", (), 1)).alphas_cumprod.numpy()
    np.savez_compressed(FILE, **arrays, sizes=np.array(sizes), alpha_bar=table,
                        names=json.dumps([case.name() for case in CASES]))
    print(f"{FILE.name}: {len(walks)} walks, {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
