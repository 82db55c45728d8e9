"""Walks of diffusers' schedulers on a stand-in network, for the parity of `tinydiff.samplers`.

A case says which scheduler with which fields, how many steps, what the network predicts, and
which sampler with which options is the same method.  `walk` needs torch and diffusers; what it
returns for `CASES` is kept in tests/reference/schedulers.npz, by make_schedulers.py there.
"""
from typing import NamedTuple

import numpy as np

SHAPE = (2, 3)
START = np.random.default_rng(0).normal(size=SHAPE)
OFFSET = {"epsilon": 0.0, "sample": 0.1, "v_prediction": -0.2, "flow_prediction": 0.3}


class Case(NamedTuple):
    """One scheduler beside one sampler; `fields` and `options` are tuples of pairs."""

    scheduler: str
    fields: tuple
    steps: int
    kind: str
    sampler: str
    options: tuple = ()

    def name(self):
        parts = [self.scheduler, *(f"{k}={v}" for k, v in self.fields), self.steps, self.kind]
        return ",".join(map(str, parts))


class Walk(NamedTuple):
    """What a scheduler did: its sigmas (steps + 1), its timesteps, the samples after each step in
    its own scale, and the noise it added.
    """

    sigmas: np.ndarray
    timesteps: np.ndarray
    samples: np.ndarray
    noise: np.ndarray


def network(x, kind):
    """Some function of the variance-preserving sample: any will do."""
    return np.tanh(x) * (0.5 if kind == "sample" else 1.0) + OFFSET[kind]


def cases(step_counts, kinds, spacings):
    """Every scheduler over these; Karras' sigmas on and off."""
    found = []

    def add(scheduler, sampler, options=(), extra=(), kinds=kinds, karras=(False, True)):
        for steps in step_counts:
            for kind in kinds:
                for spacing in spacings if scheduler != "DPMSolverSinglestepScheduler" else (None,):
                    fields = (*extra, ("timestep_spacing", spacing)) if spacing else extra
                    found.append(Case(scheduler, fields, steps, kind, sampler, options))
                if True in karras and steps > 1:
                    found.append(Case(scheduler, (*extra, ("use_karras_sigmas", True)), steps,
                                      kind, sampler, options))

    plain = (False,)
    add("EulerDiscreteScheduler", "euler")
    add("EulerAncestralDiscreteScheduler", "euler_ancestral", karras=plain,
        kinds=[k for k in kinds if k != "sample"])
    add("HeunDiscreteScheduler", "heun")
    add("LMSDiscreteScheduler", "lms")
    for order in (1, 2, 3):
        for form in ("midpoint", "heun") if order == 2 else ("midpoint",):
            add("DPMSolverMultistepScheduler", "dpmpp_2m" if order == 2 else "dpmpp",
                (("order", order), ("form", form)),
                (("solver_order", order), ("solver_type", form)))
    add("DPMSolverMultistepScheduler", "dpmpp_sde", (("order", 2),),
        (("solver_order", 2), ("algorithm_type", "sde-dpmsolver++")))
    for order in (1, 2):
        add("DPMSolverSinglestepScheduler", "dpmpp_single", (("order", order),),
            (("solver_order", order),), karras=plain)
    add("DPMSolverSinglestepScheduler", "dpmpp_single", (("order", 3), ("form", "heun")),
        (("solver_order", 3), ("solver_type", "heun")), karras=plain)
    add("DPMSolverSinglestepScheduler", "dpm_solver", (("order", 2),),
        (("solver_order", 2), ("algorithm_type", "dpmsolver"),
         ("final_sigmas_type", "sigma_min"), ("lower_order_final", False)), karras=plain)
    for order in (1, 2, 3):
        add("UniPCMultistepScheduler", "unipc", (("order", order), ("scale", "bh2")),
            (("solver_order", order), ("solver_type", "bh2")))
    add("UniPCMultistepScheduler", "unipc", (("order", 2), ("scale", "bh1")),
        (("solver_order", 2), ("solver_type", "bh1")), karras=plain)
    for steps in step_counts:
        for skip in (True, False):
            found.append(Case("PNDMScheduler", (("skip_prk_steps", skip),), steps, "epsilon",
                              "pndm"))
        found += [Case("DDIMInverseScheduler", (), steps, kind, "ddim_invert") for kind in kinds]
        found += [Case("FlowMatchEulerDiscreteScheduler", (("shift", shift),), steps,
                       "flow_prediction", "flow") for shift in (1.0, 3.0)]
    return found


CASES = [*cases((1, 2, 10), ("epsilon",), ("leading",)),
         *cases((7,), ("v_prediction",), ("linspace",))]
ALL = [*cases((1, 2, 3, 5, 10, 20, 50), ("epsilon", "sample", "v_prediction"),
              ("leading", "linspace", "trailing")),
       *cases((1000,), ("epsilon",), ("linspace",))]


def walk(case):
    """Run diffusers' scheduler in float64, or say why it cannot.

    Returns
    -------
    walk : Walk, or the exception's text
    """
    import diffusers
    import torch

    fields = dict(case.fields)
    if case.scheduler != "FlowMatchEulerDiscreteScheduler":
        fields |= {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
        if case.kind != "epsilon":
            fields["prediction_type"] = case.kind
    if case.scheduler == "DDIMInverseScheduler":
        fields |= {"clip_sample": False}
    if case.scheduler.startswith(("DPMSolverS", "DPMSolverM")):
        fields.setdefault("lower_order_final", True)
    scheduler = getattr(diffusers, case.scheduler)(**fields)
    try:
        scheduler.set_timesteps(case.steps)
        for table in ("sigmas", "alphas_cumprod"):     # its numbers, but arithmetic in float64
            if hasattr(scheduler, table):
                setattr(scheduler, table, getattr(scheduler, table).double())
        return _walk(case, scheduler, torch)
    except (IndexError, NotImplementedError, ValueError, RuntimeError, AssertionError) as fault:
        return f"{type(fault).__name__}: {fault}"


def _walk(case, scheduler, torch):
    in_sigma = case.scheduler.startswith(("Euler", "Heun", "LMS"))
    sigmas = scheduler.sigmas.double() if hasattr(scheduler, "sigmas") else None
    x = torch.from_numpy(START)
    if in_sigma:
        x = x * (1 + sigmas[0] ** 2).sqrt()
    generator, draws, samples = torch.Generator().manual_seed(1), [], []
    twin = torch.Generator().manual_seed(1)
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(x, timestep) if hasattr(
            scheduler, "scale_model_input") else x
        out = torch.from_numpy(network(scaled.numpy(), case.kind))
        own = {}
        if case.sampler == "euler_ancestral":
            own = {"generator": generator}
            draws.append(torch.randn(SHAPE, generator=twin, dtype=torch.float64).numpy())
        elif case.sampler == "dpmpp_sde":
            z = torch.randn(SHAPE, generator=twin, dtype=torch.float64)
            own = {"variance_noise": z}
            draws.append(z.numpy())
        x = scheduler.step(out, timestep, x, **own).prev_sample.double()
        samples.append(x.numpy())
    timesteps = scheduler.timesteps.double().numpy()
    if sigmas is None:
        kept = _without_repeats(timesteps)
        alpha_bar = scheduler.alphas_cumprod.double().numpy()[kept.astype(int)]
        sigmas = np.append(((1 - alpha_bar) / alpha_bar) ** 0.5, _last_sigma(case, scheduler))
    elif case.scheduler.startswith("Heun"):
        sigmas = np.append(sigmas.numpy()[:-1:2], 0.0) if case.steps > 1 else sigmas.numpy()
    return Walk(np.asarray(sigmas, np.float64), timesteps, np.stack(samples),
                np.stack(draws) if draws else np.zeros((0, *SHAPE)))


def _without_repeats(timesteps):
    return np.array([t for k, t in enumerate(timesteps) if k == 0 or t != timesteps[k - 1]])


def _last_sigma(case, scheduler):
    """PNDM lands on the schedule's first level, unless told to land on clean data."""
    if case.scheduler != "PNDMScheduler":
        return 0.0
    alpha_bar = float(scheduler.final_alpha_cumprod)
    return ((1 - alpha_bar) / alpha_bar) ** 0.5
