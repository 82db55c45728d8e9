"""``tinydiff edit`` and ``tinydiff interpolate``: from a picture, or between two prompts."""
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinydiff.backends.compiling import remind
from tinydiff.backends.device import to_host
from tinydiff.backends.options import announce, start
from tinydiff.commands.files import check_endings, save
from tinydiff.datasets.folder import open_picture, squared
from tinydiff.pictures import from_bytes, sheet
from tinydiff.pipelines import TextToImage, check_prompts, load
from tinydiff.pipelines.edit import completed, image_to_image, inpaint, interpolate


def run_edit(args):
    """Draw a prompt over a picture, or into its holes."""
    check_endings(args.out)
    check_prompts([args.prompt])
    if args.scale < 1 or args.count < 1:
        raise ValueError(f"--scale {args.scale} and --count {args.count} must be at least 1")
    pipe = _opened(args)
    picture = open_picture(Path(args.image))
    x = from_bytes(squared(picture, pipe.size)[None])                 # (1, 3, S, S)
    x = np.repeat(x, args.count, axis=0)
    options = {"steps": args.steps, "guidance": args.guidance, "seed": args.seed}
    if args.mask is None:
        if args.repeat != 1:
            raise ValueError("--repeat is for inpainting: it needs --mask")
        walk = image_to_image(pipe, x, args.prompt, strength=args.strength, sampler=args.sampler,
                              **options)
        drawn = pipe.decode(_last(walk, args).x_s)
    else:
        mask = read_mask(args.mask, picture, pipe.size)
        walk = inpaint(pipe, x, mask, args.prompt, repeat=args.repeat, **options)
        drawn = completed(pipe, _last(walk, args), x, mask)
    save(sheet(to_host(drawn), min(args.count, 8), args.scale), args.out)


def run_interpolate(args):
    """Draw the frames between two prompts, as a sheet or as a moving picture."""
    ends_in_gif = Path(args.out).suffix.lower() == ".gif"
    if not ends_in_gif:
        check_endings(args.out)
    check_prompts([args.prompt, args.to])
    if args.scale < 1:
        raise ValueError(f"--scale {args.scale} must be at least 1")
    pipe = _opened(args)
    walk = interpolate(pipe, args.prompt, args.to, frames=args.frames, seed=args.seed,
                       to_seed=args.to_seed, steps=args.steps, sampler=args.sampler,
                       guidance=args.guidance)
    x = to_host(pipe.decode(_last(walk, args).x_s))
    if not ends_in_gif:
        save(sheet(x, min(args.frames, 8), args.scale), args.out)
        return
    first, *others = [sheet(frame[None], 1, args.scale, gap=0) for frame in x]
    path = Path(args.out)
    path.parent.mkdir(parents=True, exist_ok=True)
    first.save(path, save_all=True, append_images=[*others, *others[-2::-1]], duration=120, loop=0)
    print(path)


def read_mask(path, picture, size):
    """Read a mask: white (or transparent) is to be drawn anew, black is kept.

    Parameters
    ----------
    path : str or Path
    picture : PIL.Image.Image
        What the mask is for: it is cut to the same square.
    size : int

    Returns
    -------
    mask : (size, size) float32 ndarray
        1 where the picture is known.

    Raises
    ------
    FileNotFoundError, ValueError
        If it cannot be read, or is not as large as the picture.
    """
    mask = open_picture(Path(path))
    if mask.size != picture.size:
        raise ValueError("{}: the mask has {} x {} pixels, the picture {} x {}: the same are "
                         "needed".format(path, *mask.size, *picture.size))
    return (squared(mask, size).mean(axis=0) < 127.5).astype(np.float32)


def _opened(args):
    """Load the model, on the device that was asked for."""
    pipe = load(args.model, TextToImage)
    if start(args) == "cuda":
        pipe.to("cuda", args.graph)
    else:
        remind()
    return pipe


def _last(walk, args):
    """Walk to the end under a progress bar; return the last step."""
    for step in tqdm(walk, unit="step", delay=1):
        last = step
        announce(args)
    return last
