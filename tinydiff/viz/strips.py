"""Filmstrips: a picture drowning in noise, and a picture coming out of it."""
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tinydiff.backends.random import normal
from tinydiff.diffusion import q_sample
from tinydiff.pictures import to_image

GAP = 10                                # white pixels around frames and captions
INK = (70, 70, 70)


def denoising_strip(steps, frames=9, picture=0, scale=4, x0=True):
    """Show one picture's way out of the noise, left to right.

    Parameters
    ----------
    steps : iterable of Step
        All steps of one sampling, in order, as `TextToImage.steps` yields them; arrays
        (B, C, H, W) with C = 1 or 3, pictures in [-1, 1].
    frames : int, default 9
        How many of the samples to show, evenly chosen; the first (pure noise) and the last
        (the picture) are always among them.  N steps have N + 1 samples to choose from.
    picture : int, default 0
        Which of the B pictures.
    scale : int, default 4
        Each pixel becomes a square of that side.
    x0 : bool, default True
        Add a second row: the clean picture that the model sees in each sample above it.
        The model is not asked about the last one: without noise it is its own clean picture,
        and where the steps end above t = 0 that place stays empty.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    ValueError
        If there are no steps, fewer than 2 frames are wanted, or there is no such picture.
    """
    steps = list(steps)
    if not steps:
        raise ValueError("a denoising strip needs the steps of a sampler, and there are none")
    if frames < 2:
        raise ValueError(f"frames={frames}: at least 2, the noise and the picture, are needed")
    B, N = len(steps[0].x_t), len(steps)
    if not 0 <= picture < B:
        raise ValueError(f"picture={picture}: the steps hold pictures 0 to {B - 1}")

    chosen = np.linspace(0, N, min(frames, N + 1)).round().astype(int)
    samples = [(step.t, step.x_t[picture], step.x0_hat[picture]) for step in steps]
    s, x_s = steps[-1].s, steps[-1].x_s[picture]
    samples.append((s, x_s, x_s if s.noise == 0 else None))
    levels, x_t, x0_hat = zip(*(samples[k] for k in chosen), strict=True)

    rows = {"x_t": x_t, "x0_hat": x0_hat} if x0 else {"x_t": x_t}
    return _strip(rows, [f"t = {level.t:g}" for level in levels], scale)


def forward_strip(x0, schedule, times, seed=0, scale=4):
    """Show one picture drowning in noise, left to right: x_t at each of `times`.

    Parameters
    ----------
    x0 : (C, H, W) ndarray
        The clean picture, in [-1, 1]; C = 1 or 3.
    schedule : Schedule
    times : sequence of float
        ``0 <= t <= T``, in the order to be shown.
    seed : int, default 0
        All frames share one draw of the noise.
    scale : int, default 4
        Each pixel becomes a square of that side.

    Returns
    -------
    PIL.Image.Image

    Raises
    ------
    ValueError
        If `x0` is not one picture, or there are no times, or one is outside the schedule.
    """
    if x0.ndim != 3:
        raise ValueError(f"x0 has shape {x0.shape}: one picture (C, H, W) is needed")
    if not len(times):
        raise ValueError("a forward strip needs at least one time t")
    eps = normal(x0.shape, seed, "forward strip", dtype=x0.dtype, like=x0)[0]     # (C, H, W)
    levels = [schedule.level(t) for t in times]
    frames = [q_sample(x0, eps, level.signal, level.noise) for level in levels]
    return _strip({"x_t": frames}, [f"t = {level.t:g}" for level in levels], scale)


# ---- layout ----


def _strip(rows, captions, scale):
    """Draw named rows of pictures, None for an empty place, and a caption under each column."""
    font = ImageFont.load_default(size=max(12, 4 * scale))
    H, W = (n * scale for n in next(iter(rows.values()))[0].shape[-2:])
    cell = max(W, *(_text_width(c, font) for c in captions))          # the width of a column
    left = GAP                                                        # room for the rows' names
    if len(rows) > 1:
        left += max(_text_width(name, font) for name in rows) + GAP
    bottom = GAP + len(rows) * (H + GAP)
    size = left + len(captions) * (cell + GAP), bottom + sum(font.getmetrics())
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)

    for row, (name, pictures) in enumerate(rows.items()):
        y = GAP + row * (H + GAP)
        if len(rows) > 1:
            draw.text((left - GAP, y + H // 2), name, INK, font, anchor="rm")
        for k, x in enumerate(pictures):
            if x is not None:
                corner = left + k * (cell + GAP) + (cell - W) // 2
                image.paste(to_image(x, scale).convert("RGB"), (corner, y))
    for k, caption in enumerate(captions):
        centre = left + k * (cell + GAP) + cell // 2
        draw.text((centre, bottom - GAP // 2), caption, INK, font, anchor="ma")
    return image


def labelled_row(images, captions, scale):
    """Put images of one size side by side, a caption under each.

    Parameters
    ----------
    images : list of PIL.Image.Image
    captions : list of str
    scale : int
        The letters grow with it, as in the other strips.

    Returns
    -------
    PIL.Image.Image
    """
    font = ImageFont.load_default(size=max(12, 4 * scale))
    W, H = images[0].size
    cell = max(W, *(_text_width(c, font) for c in captions))
    size = GAP + len(images) * (cell + GAP), H + 2 * GAP + sum(font.getmetrics())
    row = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(row)
    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        left = GAP + k * (cell + GAP)
        row.paste(image, (left + (cell - W) // 2, GAP))
        draw.text((left + cell // 2, H + GAP + GAP // 2), caption, INK, font, anchor="ma")
    return row


def _text_width(text, font):
    return int(np.ceil(font.getlength(text))) + 2         # soft edges reach a pixel further
