"""Samplers, one file per paper, of one signature: (denoise, x_T, levels, *, noise=None, ...)."""
from functools import partial
from inspect import Parameter, signature

from tinydiff.samplers.ddim import ddim_invert, ddim_sample, ddim_step
from tinydiff.samplers.ddpm import ddpm_sample, ddpm_step
from tinydiff.samplers.dpm_solver import dpm_solver_sample
from tinydiff.samplers.dpm_solver_pp import (
    dpmpp_multistep_sample,
    dpmpp_sde_sample,
    dpmpp_singlestep_sample,
)
from tinydiff.samplers.edm import edm_sample
from tinydiff.samplers.flow import flow_sample
from tinydiff.samplers.multistep import lms_sample, pndm_sample
from tinydiff.samplers.unipc import unipc_sample

SAMPLERS = {
    "ddim": ddim_sample,
    "ddpm": ddpm_sample,
    "dpm_solver": dpm_solver_sample,
    "dpmpp_2m": partial(dpmpp_multistep_sample, order=2),
    "dpmpp_3m": partial(dpmpp_multistep_sample, order=3),
    "dpmpp_2s": partial(dpmpp_singlestep_sample, order=2),
    "dpmpp_sde": dpmpp_sde_sample,
    "unipc": unipc_sample,
    "euler": partial(edm_sample, order=1),
    "heun": partial(edm_sample, order=2),
    "euler_ancestral": partial(ddim_sample, eta=1.0),
    "lms": lms_sample,
    "pndm": pndm_sample,
    "flow": flow_sample,
}


def own_options(name):
    """Return the names of the options that are a sampler's own, sorted.

    Examples
    --------
    >>> own_options("ddim"), own_options("dpmpp_2m")
    (['eta'], ['form', 'history', 'lower_order_final'])
    """
    chosen = getattr(SAMPLERS[name], "keywords", {})
    return sorted(p.name for p in signature(SAMPLERS[name]).parameters.values()
                  if p.kind is Parameter.KEYWORD_ONLY and p.name not in {"noise", *chosen})


def check_sampler(sampler, own):
    """Refuse a sampler that does not exist, and an option that is not its own.

    Raises
    ------
    ValueError
        Naming what there is.
    """
    if sampler not in SAMPLERS:
        raise ValueError(f"unknown sampler {sampler!r}; known: {', '.join(SAMPLERS)}")
    known = own_options(sampler)
    for name in own.keys() - set(known):
        raise ValueError(f"sampler {sampler!r} has no option {name!r}, only {', '.join(known)}")


__all__ = ["SAMPLERS", "check_sampler", "ddim_invert", "ddim_sample", "ddim_step", "ddpm_sample",
           "ddpm_step", "dpm_solver_sample", "dpmpp_multistep_sample", "dpmpp_sde_sample",
           "dpmpp_singlestep_sample", "edm_sample", "flow_sample", "lms_sample", "own_options",
           "pndm_sample", "unipc_sample"]
