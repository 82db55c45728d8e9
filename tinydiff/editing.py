"""Editing: starting from a picture instead of noise, keeping known pixels, and ways in between.

=================  ========================================================  ================
function           what it does                                              from
=================  ========================================================  ================
`part_way`         img2img: the last share of a walk, from a noisy picture   arXiv:2108.01073
`inpaint_sample`   known pixels are put back, noisy, at every level;         arXiv:2201.09865
                   with `repeat` they and the rest get time to agree
`slerp`            between two draws of noise, along the sphere              (Shoemake, 1985)
=================  ========================================================  ================
"""
from itertools import pairwise

import numpy as np

from tinydiff.diffusion import Step, check_levels, q_sample, q_step
from tinydiff.samplers.ddpm import ddpm_step


def part_way(x0, levels, strength, noise):
    """Cut a walk short, and say where it starts: img2img.

    Parameters
    ----------
    x0 : (B, ...) ndarray
        The picture, or its latents.
    levels : sequence of Level
        The whole walk, from noise to clean data.
    strength : float
        The share of the steps that is walked: near 0 keeps the picture, 1 forgets it.
    noise : (B, ...) ndarray
        Standard normal.

    Returns
    -------
    x_t : (B, ...) ndarray
        The picture, as noisy as the first level that is left.
    levels : list of Level
        The rest of the walk, one step at least.

    Raises
    ------
    ValueError
        If `strength` is not in (0, 1].

    References
    ----------
    .. [1] C. Meng et al., "SDEdit", 2021, arXiv:2108.01073, Algorithm 1.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> walk = [Level(2.0, 0.0, 1.0), Level(1.0, 0.6, 0.8), CLEAN]
    >>> part_way(np.array([1.0]), walk, 0.5, np.array([0.5]))[0]
    array([1.])
    """
    strength = float(strength)
    if not 0 < strength <= 1:
        raise ValueError(f"strength={strength}: a number above 0 (keep the picture) up to 1 "
                         "(forget it) is needed")
    steps = len(levels) - 1
    rest = list(levels[steps - max(1, round(strength * steps)):])
    return q_sample(x0, noise, rest[0].signal, rest[0].noise), rest


def inpaint_sample(denoise, x_T, levels, known, mask, *, noise, repeat=1):
    """Yield every step of DDPM with some pixels known: replacement, or RePaint.

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.
    x_T : (B, ...) ndarray
    levels : sequence of Level
        Variance-preserving, falling to clean data.
    known : (B, ...) ndarray
        The picture; read where `mask` is 1.
    mask : ndarray that broadcasts to `x_T`
        1 where the picture is known, 0 where it is to be drawn.
    noise : callable
        ``noise(k)`` returns the k-th standard normal draw; three a step are used.
    repeat : int, default 1
        How often each step is done.  1 is replacement: the rest never gets to answer what is put
        in.  RePaint goes back up a step and down again, 10 times in the paper.

    Yields
    ------
    step : Step
        Of every repetition; the last one's ``x_s`` has exactly the known pixels.

    Raises
    ------
    ValueError
        If `repeat` is below 1, or the mask has another shape or entries other than 0 and 1.

    References
    ----------
    .. [1] A. Lugmayr et al., "RePaint", 2022, arXiv:2201.09865, Eq. 8 and Algorithm 1 (there the
       repetitions jump back 10 steps at a time; here one).
    """
    check_levels(levels)
    mask = check_mask(mask, x_T)
    if type(repeat) is not int or repeat < 1:
        raise ValueError(f"repeat={repeat!r}: a whole number from 1 is needed")
    x_t, draw = x_T, iter(range(3 * repeat * len(levels)))
    for t, s in pairwise(levels):
        for again in reversed(range(repeat)):
            x0_hat, eps_hat = denoise(x_t, t)
            drawn = ddpm_step(x_t, x0_hat, t, s, "small", noise(next(draw)))
            put_back = q_sample(known, noise(next(draw)), s.signal, s.noise)
            x_s = mask * put_back + (1 - mask) * drawn
            yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
            x_t = q_step(x_s, noise(next(draw)), s, t) if again else x_s


def check_mask(mask, x):
    """Return a mask in the dtype of `x`, or say what is wrong with it.

    Raises
    ------
    ValueError
        If it does not broadcast to the shape of `x`, or has entries other than 0 and 1.
    """
    fits = mask.ndim <= x.ndim and all(
        m in (1, n) for m, n in zip(mask.shape[::-1], x.shape[::-1], strict=False))
    if not fits:
        raise ValueError(f"the mask has shape {mask.shape}, which does not fit {x.shape}: one "
                         "number a pixel is needed")
    mask = mask.astype(x.dtype)
    if not ((mask == 0) | (mask == 1)).all():
        raise ValueError("the mask must be 1 where the picture is known and 0 where it is not")
    return mask


def slerp(a, b, share):
    """Go from one draw of noise to another along the sphere, so that it stays as long as noise is.

    Parameters
    ----------
    a, b : (...) ndarray
        Two draws of the same shape, taken as vectors.
    share : float
        0 is `a`, 1 is `b`.

    Returns
    -------
    between : (...) ndarray
        On the straight line the middle would be shorter by a factor of sqrt(2), and look it.

    Notes
    -----
    With the angle w between the two::

        between = sin((1 - share) w) / sin(w) * a  +  sin(share w) / sin(w) * b

    Examples
    --------
    >>> slerp(np.array([1.0, 0.0]), np.array([0.0, 1.0]), 0.5).round(4)
    array([0.7071, 0.7071])
    """
    share = float(share)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    cosine = float((a * b).sum()) / lengths if lengths else 1.0
    w = float(np.arccos(min(1.0, max(-1.0, cosine))))
    if w < 1e-4 or np.pi - w < 1e-4:                    # along one line there is no arc to follow
        return (1.0 - share) * a + share * b
    return (float(np.sin((1 - share) * w)) * a + float(np.sin(share * w)) * b) / float(np.sin(w))
