"""Which word drew which pixels, over the picture."""
import numpy as np
from PIL import Image

from tinydiff.pictures import to_bytes
from tinydiff.viz.strips import labelled_row

FAINT = 0.35                            # of the picture, in grey, shows through the colours


def word_strip(x, maps, scale=4):
    """Show a picture, and beside it once for each word where the network attended to that word.

    Parameters
    ----------
    x : (C, S, S) ndarray
        The picture, in [-1, 1]; C = 1 or 3.
    maps : WordMaps
        As `tinydiff.pipelines.attention_maps` returns them; coarser than the picture where it was
        denoised in another space.
    scale : int, default 4
        Each pixel becomes a square of that side.

    Returns
    -------
    PIL.Image.Image
        The colours of a word run from its own least to its own largest share, dark to bright; the
        number is its mean share.

    Raises
    ------
    ValueError
        If `x` is not one picture.
    """
    if x.ndim != 3 or x.shape[1] != x.shape[2]:
        raise ValueError(f"x has shape {x.shape}: one square picture (C, S, S) is needed")
    side = x.shape[-1] * scale
    pixels = np.broadcast_to(to_bytes(x), (3, *x.shape[1:])).transpose(1, 2, 0)
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), Image.NEAREST)
    cells = [picture, *(_heat(picture, share, side) for share in maps.maps)]
    names = [f"{word} {share.mean():.0%}"
             for word, share in zip(maps.words, maps.maps, strict=True)]
    return labelled_row(cells, ["", *names], scale)


def _heat(picture, share, side):
    """Colour a picture by one word's share (H, W)."""
    from matplotlib import colormaps

    heat = Image.fromarray(np.float32(share)).resize((side, side), Image.BILINEAR)
    heat = np.asarray(heat)
    heat = (heat - heat.min()) / max(heat.max() - heat.min(), 1e-12)  # (side, side), 0 to 1
    colours = 255 * colormaps["inferno"](heat)[:, :, :3]              # (side, side, 3)
    grey = np.asarray(picture.convert("L"))[:, :, None]
    return Image.fromarray(((1 - FAINT) * colours + FAINT * grey).astype(np.uint8))
