"""A user's own folder of pictures with captions, read like any other data set."""
import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from tinydiff.datasets.dataset import Pictures

ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
DAMAGED = (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError)


def load_folder(folder, size):
    """Read every captioned picture of a folder.

    The captions stand in ``captions.jsonl``, one object per line with
    ``file_name`` and ``text`` (or ``caption``), or else in one .txt per picture,
    named like it.

    Parameters
    ----------
    folder : path
    size : int
        Pixels per side.  The middle square of each picture is cut out and
        resized; what is transparent becomes white.

    Returns
    -------
    pictures : Pictures
        (N, 3, size, size), in the order of ``captions.jsonl`` or of the names;
        each record has also ``file_name``.

    Raises
    ------
    FileNotFoundError
        If the folder, or a picture that has a caption, is missing.
    ValueError
        If a picture or a line cannot be read, a caption is missing or empty, or
        there is no picture at all.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"size={size!r}: expected a positive number of pixels")
    lines = folder / "captions.jsonl"
    pairs = captions_of_lines(lines) if lines.is_file() else captions_beside(folder)
    if not pairs:
        raise ValueError(f"{folder}: no captioned picture; known endings: {' '.join(ENDINGS)}")
    images = np.stack([read_picture(folder / name, size) for name, _ in pairs])
    records = [{"label": text, "file_name": name, "tags": [], "style": "", "held_out": None}
               for name, text in pairs]
    return Pictures(images, records)


def captions_of_lines(path):
    """Return the (file name, caption) pairs of a captions.jsonl."""
    pairs = []
    # Not splitlines(): JSON may hold U+2028 and its like inside a text.
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}, line {number}: not JSON: {error}") from None
        entry = entry if isinstance(entry, dict) else {}
        name, text = entry.get("file_name"), entry.get("text", entry.get("caption"))
        if not isinstance(name, str) or not name:
            raise ValueError(f'{path}, line {number}: no "file_name"')
        pairs.append((name, one_line(text, f"{path}, line {number} ({name})")))
    return pairs


def captions_beside(folder):
    """Return the (file name, caption) pairs of a folder with one .txt per picture."""
    pairs = []
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in ENDINGS:
            text = path.with_suffix(".txt")
            if not text.is_file():
                raise ValueError(f"{path}: no caption: neither {text.name} nor captions.jsonl")
            pairs.append((path.name, one_line(read_text(text), text)))
    return pairs


def one_line(text, where):
    """Return a caption with its white space cleaned, or raise ValueError naming `where`."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{where}: no caption")
    return " ".join(text.split())


def read_text(path):
    """Read UTF-8, with or without a byte-order mark."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text: {error}") from None


def read_picture(path, size):
    """Return one picture, whatever its mode and size, as (3, size, size) uint8."""
    return squared(open_picture(path), size)


def open_picture(path):
    """Return one picture as it is meant to be seen, its alpha multiplied in (mode RGBa).

    Raises
    ------
    FileNotFoundError, ValueError
        If it is not there, or cannot be read.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such picture")
    try:
        with Image.open(path) as file:
            upright = ImageOps.exif_transpose(file)                # cameras store the turn apart
            return eight_bits(upright).convert("RGBA").convert("RGBa")
    except DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable picture: {reason}") from None


def squared(picture, size):
    """Return the middle square of a picture in mode RGBa, over white, as (3, size, size) uint8."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    picture = picture.crop((left, top, left + side, top + side))
    if side != size:
        # Growing or shrinking: the bicubic filter widens with the scale, so nothing aliases.
        picture = picture.resize((size, size), Image.Resampling.BICUBIC)
    rgba = np.asarray(picture).astype(np.int32)                                # (S, S, 4)
    rgb = np.clip(rgba[..., :3] + 255 - rgba[..., 3:], 0, 255)                 # over white
    return rgb.astype(np.uint8).transpose(2, 0, 1)


def eight_bits(picture):
    """Scale 16-bit grey to 8: Pillow's own conversion would clip it to white."""
    if not picture.mode.startswith("I"):
        return picture
    deep = np.asarray(picture).astype(np.int64)
    shallow = deep // 257 if deep.max() > 255 else deep
    return Image.fromarray(np.clip(shallow, 0, 255).astype(np.uint8))
