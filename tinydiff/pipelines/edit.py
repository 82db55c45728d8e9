"""Editing with a text-to-image model: another picture's structure, missing parts, ways in between.

Each is a generator of steps, as `TextToImage.steps` is; the mathematics is `tinydiff.editing`'s.
"""
import numpy as np

from tinydiff.backends.device import follow
from tinydiff.backends.memory import keep_freed_memory
from tinydiff.editing import check_mask, inpaint_sample, part_way, slerp
from tinydiff.models.clip_text import TextEncoding
from tinydiff.pipelines.prompts import one_a_picture


def image_to_image(pipe, x, prompt, *, strength=0.6, steps=50, sampler=None, guidance=3.0,
                   seed=0, spacing=None, **own):
    """Draw a prompt over a picture: its large shapes stay, the rest follows the prompt.

    Parameters
    ----------
    pipe : TextToImage
    x : (B, 3, S, S) ndarray
        Pictures in [-1, 1], of the model's size.
    prompt : str or list of B str
    strength : float, default 0.6
        The share of the steps that is walked, in (0, 1].
    steps, sampler, guidance, seed, spacing, **own
        As for ``pipe.steps``.

    Yields
    ------
    step : Step

    Raises
    ------
    ValueError
        Naming what is out of range, or a picture of another size.
    """
    x, text, pictures = _prepared(pipe, x, prompt)
    noise = pipe.noise("x_T", 0, pictures, seed)
    x_t, levels = part_way(pipe.latents(x), pipe.scheduler.levels(steps, spacing), strength, noise)
    return pipe.walk(text, x_t, levels, sampler=sampler, guidance=guidance, seed=seed,
                     pictures=pictures, **own)


def inpaint(pipe, x, mask, prompt, *, repeat=1, steps=50, guidance=3.0, seed=0, spacing=None):
    """Draw what is missing of a picture; `completed` puts the known pixels back at the end.

    Parameters
    ----------
    pipe : TextToImage
    x : (B, 3, S, S) ndarray
    mask : (S, S) ndarray
        1 where the picture is known, 0 where it is to be drawn.  Of latents, those count as known
        whose pixels are all known.
    prompt : str or list of B str
    repeat : int, default 1
        RePaint's repetitions of each step, see `tinydiff.editing.inpaint_sample`.
    steps, guidance, seed, spacing
        As for ``pipe.steps``; the sampler is DDPM.

    Yields
    ------
    step : Step

    Raises
    ------
    ValueError
        Naming what is out of range, or a mask or picture of another size.
    """
    x, text, pictures = _prepared(pipe, x, prompt)
    if mask.shape != x.shape[2:]:
        raise ValueError(f"the mask has shape {mask.shape}, the picture {x.shape[2:]}: the same "
                         "size is needed")
    mask = check_mask(mask, x)
    f = 1 if pipe.vae is None else pipe.vae.factor
    S = mask.shape[0] // f
    known = mask.reshape(S, f, S, f).min(axis=(1, 3))                 # (S / f, S / f)
    draws = lambda k: pipe.noise("inpaint", k, pictures, seed)
    keep_freed_memory()
    return inpaint_sample(pipe.denoiser(text, guidance), pipe.noise("x_T", 0, pictures, seed),
                          pipe.scheduler.levels(steps, spacing), pipe.latents(x),
                          follow(known, x), noise=draws, repeat=repeat)


def completed(pipe, step, x, mask):
    """Decode the last step of `inpaint`, with the known pixels of `x` exactly as they were."""
    drawn = pipe.decode(step.x_s)
    mask = follow(check_mask(mask, x), drawn)
    return mask * follow(x, drawn) + (1 - mask) * drawn


def interpolate(pipe, prompt, to_prompt, *, frames=8, seed=0, to_seed=None, steps=50,
                sampler=None, guidance=3.0, spacing=None, **own):
    """Draw the pictures between two prompts, two seeds, or both.

    Parameters
    ----------
    pipe : TextToImage
    prompt, to_prompt : str
        What the first and the last frame show; text goes in a straight line.
    frames : int, default 8
        Pictures in all, 2 or more.
    seed, to_seed : int
        The noise of the first and of the last frame, which goes along the sphere; one seed for all
        by default.
    steps, sampler, guidance, spacing, **own
        As for ``pipe.steps``.

    Yields
    ------
    step : Step
        Of all frames at once.

    Raises
    ------
    ValueError
        Naming what is out of range.
    """
    if not isinstance(frames, int) or frames < 2:
        raise ValueError(f"frames={frames!r}: a whole number from 2 is needed")
    shares = np.linspace(0, 1, frames).tolist()
    ends = pipe.encode(one_a_picture([prompt, to_prompt], 1))
    text = TextEncoding(*(np.stack([(1 - share) * part[0] + share * part[1] for share in shares])
                          for part in ends))
    first, last = (pipe.noise("x_T", 0, [0], each)[0]
                   for each in (seed, seed if to_seed is None else to_seed))
    x_T = np.stack([slerp(first, last, share) for share in shares])
    return pipe.walk(text, x_T, pipe.scheduler.levels(steps, spacing), sampler=sampler,
                     guidance=guidance, seed=seed, pictures=range(frames), **own)


def _prepared(pipe, x, prompt):
    """Check the pictures' size; return them where the model is, the text, and their numbers."""
    S = pipe.size
    if x.ndim != 4 or x.shape[2:] != (S, S):
        raise ValueError(f"pictures of shape {x.shape}: this model draws (B, 3, {S}, {S})")
    prompts = one_a_picture(prompt, len(x)) if isinstance(prompt, str) else one_a_picture(prompt, 1)
    if len(prompts) != len(x):
        raise ValueError(f"{len(prompts)} prompts for {len(x)} pictures")
    return follow(x, pipe.unet.like()), pipe.encode(prompts), range(len(x))
