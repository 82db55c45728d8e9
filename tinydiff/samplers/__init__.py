"""Samplers, one file per paper, of one signature: (denoise, x_T, levels, *, noise=None, ...)."""
from tinydiff.samplers.ddim import ddim_sample, ddim_step
from tinydiff.samplers.ddpm import ddpm_sample, ddpm_step

SAMPLERS = {
    "ddim": ddim_sample,                 # own option: eta
    "ddpm": ddpm_sample,                 # own option: variance
}

__all__ = ["SAMPLERS", "ddim_sample", "ddim_step", "ddpm_sample", "ddpm_step"]
