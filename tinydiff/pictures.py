"""Between arrays in [-1, 1] and pictures that can be looked at."""
import numpy as np
from PIL import Image

from tinydiff.backends.device import to_host


def to_bytes(x):
    """Map pixels from [-1, 1] to 0..255, clipping what lies outside.

    Examples
    --------
    >>> to_bytes(np.array([-1.0, 0.0, 1.0, 7.0]))
    array([  0, 128, 255, 255], dtype=uint8)
    """
    return np.clip(x * 127.5 + 127.5, 0, 255).round().astype(np.uint8)


def from_bytes(pixels, dtype=np.float32):
    """Map 0..255 to [-1, 1], the range in which every model works.

    Examples
    --------
    >>> from_bytes(np.array([0, 255], np.uint8))
    array([-1.,  1.], dtype=float32)
    """
    return pixels.astype(dtype) / 127.5 - 1


def to_image(x, scale=1):
    """Turn one picture (C, H, W) in [-1, 1] into an image file's object.

    Parameters
    ----------
    x : (3, H, W) or (1, H, W) ndarray
    scale : int, default 1
        Each pixel becomes a square of that side.

    Returns
    -------
    PIL.Image.Image
    """
    pixels = to_bytes(to_host(x)).transpose(1, 2, 0)                           # (H, W, C)
    pixels = pixels.repeat(scale, axis=0).repeat(scale, axis=1)
    return Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def sheet(x, columns, scale=1, gap=2):
    """Lay pictures out in rows, on white.

    Parameters
    ----------
    x : (B, C, H, W) ndarray in [-1, 1]
    columns : int
    scale : int, default 1
    gap : int, default 2
        Pixels between pictures, before scaling.

    Returns
    -------
    PIL.Image.Image
    """
    x = to_host(x)
    B, C, H, W = x.shape
    rows = -(-B // columns)
    canvas = np.ones((C, rows * (H + gap) - gap, columns * (W + gap) - gap), x.dtype)
    for k in range(B):
        top, left = k // columns * (H + gap), k % columns * (W + gap)
        canvas[:, top:top + H, left:left + W] = x[k]
    return to_image(canvas, scale)


def resize(x, side):
    """Resize square pictures: smaller by averaging areas, larger by lines between pixels.

    Parameters
    ----------
    x : (B, C, S, S) ndarray
    side : int
        The new S, of any size.

    Returns
    -------
    (B, C, side, side) ndarray

    Examples
    --------
    >>> resize(np.array([[[[0.0, 4.0], [2.0, 2.0]]]]), 1)
    array([[[[2.]]]])
    """
    if x.shape[-1] == side:
        return x
    share = np.array(_shares(x.shape[-1], side), x.dtype, like=x)
    return share @ x @ share.T


def resize_backward(dy, S):
    """Pull `dy` (B, C, side, side) back through `resize`, to pictures of side `S`."""
    if dy.shape[-1] == S:
        return dy
    share = np.array(_shares(S, dy.shape[-1]), dy.dtype, like=dy)
    return share.T @ dy @ share


def _shares(S, side):
    """Return (side, S): how much of each old row a new one holds; rows sum to 1."""
    if side < S:                        # how much of each old pixel a new one covers
        new, old = np.arange(side + 1) * (S / side), np.arange(S + 1)
        share = np.minimum(new[1:, None], old[1:]) - np.maximum(new[:-1, None], old[:-1])
        return np.maximum(share, 0) * (side / S)
    # Else how near a new pixel's centre is to its two neighbours.
    centre = np.clip((np.arange(side) + 0.5) * (S / side) - 0.5, 0, S - 1)
    return np.maximum(1 - abs(centre[:, None] - np.arange(S)), 0)
