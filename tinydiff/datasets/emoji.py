"""The captioned emoji pack: three styles, held-out compositions marked (data/README.md)."""
import json
from functools import lru_cache

import numpy as np
from PIL import Image

from tinydiff.datasets.dataset import Pictures, data_file

STYLES = ("noto", "twemoji", "fluent 3d")
SPLITS = ("train", "held_out", "all")
SIDE = 64                                   # pixels per picture in the sheets
SHEETS = {                                  # (style, with skin tones?): file
    ("noto", False): "emoji_64.noto.webp",
    ("noto", True): "emoji_64.noto-tones.webp",
    ("twemoji", False): "emoji_64.twemoji.webp",
    ("fluent 3d", False): "emoji_64.fluent-3d.webp",
}


def load_emoji(size=32, styles=STYLES, tones=False, split="train"):
    """Read the emoji pack.

    Parameters
    ----------
    size : {64, 32, 16}
        Pixels per side; 32 and 16 are area averages of 64.
    styles : sequence of str
        Some of ``STYLES``, in the order wanted.
    tones : bool, default False
        Also the pictures with a skin tone, which Noto alone has.
    split : {"train", "held_out", "all"}
        "train" leaves out every composition that is held out for testing.

    Returns
    -------
    pictures : Pictures
        (N, 3, size, size).  Each record has ``key`` (its code points), ``base``
        (those without a tone), ``label``, ``tags``, ``style``, ``group``,
        ``subgroup``, ``tone`` (None, "light", ..., "dark", or two for two
        people) and ``held_out`` (None, or "colour x shape", "role x gender x
        tone", "style x concept").

    Raises
    ------
    ValueError
        For a size, style or split that is not in the pack.
    FileNotFoundError
        If a file of the pack is missing.
    """
    styles = (styles,) if isinstance(styles, str) else tuple(styles)
    if size not in (64, 32, 16):
        raise ValueError(f"size={size!r}: the emoji pack has sizes 64, 32, 16")
    if not styles or (unknown := [s for s in styles if s not in STYLES]):
        raise ValueError(f"styles={unknown if styles else styles!r}: known are {', '.join(STYLES)}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: known are {', '.join(SPLITS)}")

    images, records = [], []
    for style in styles:
        for with_tones in (False, True) if tones else (False,):
            if (style, with_tones) not in SHEETS:
                continue
            own = [record for record in read_records() if record["style"] == style
                   and (record["tone"] is not None) == with_tones]
            tiles = read_sheet(SHEETS[style, with_tones], len(own), size)
            keep = [i for i, record in enumerate(own) if in_split(record, split)]
            images.append(tiles[keep])
            records += [dict(own[i]) for i in keep]
    return Pictures(np.concatenate(images), records)


def in_split(record, split):
    """Tell whether a record belongs to the split."""
    return split == "all" or (record["held_out"] is None) == (split == "train")


@lru_cache(maxsize=1)
def read_records():
    """Return a tuple with one record per picture, in the order of the sheets' tiles."""
    path = data_file("emoji.jsonl")
    records, bases = [], {}
    # Not splitlines(): JSON may hold U+2028 and its like inside a text.
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
            base = bases.setdefault(entry.get("base", entry["key"]), entry)
            shared = {name: base[name] for name in ("tags", "group", "subgroup")}
            held = entry.get("held_out", {})
            records += [{"key": entry["key"], "base": base["key"], "label": entry["label"],
                         "style": style, "tone": entry.get("tone"), **shared,
                         "held_out": held.get(style)} for style in entry["styles"]]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}, line {number}: not a caption record: {error}") from None
    return tuple(records)


def read_sheet(name, count, size):
    """Return the `count` pictures of one sheet, (count, 3, size, size) uint8."""
    path = data_file(name)
    try:
        with Image.open(path) as picture:
            sheet = np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{path}: not a readable picture: {error}") from None
    rows, columns = sheet.shape[0] // SIDE, sheet.shape[1] // SIDE
    whole = sheet.shape == (rows * SIDE, columns * SIDE, 3)
    if not (whole and (rows - 1) * columns < count <= rows * columns):
        height, width = sheet.shape[:2]
        raise ValueError(f"{path}: {width} x {height} pixels do not hold {count} pictures")
    tiles = sheet.reshape(rows, SIDE, columns, SIDE, 3).transpose(0, 2, 4, 1, 3)
    tiles = tiles.reshape(rows * columns, 3, SIDE, SIDE)[:count]                # (N, 3, 64, 64)
    return area_average(tiles, SIDE // size)


def area_average(images, factor):
    """Average blocks of `factor` x `factor` pixels, rounding half up.

    Parameters
    ----------
    images : (N, C, S, S) uint8 ndarray
    factor : int
        Must divide S; 1 changes nothing.

    Returns
    -------
    small : (N, C, S / factor, S / factor) uint8 ndarray
    """
    total = sum(images[:, :, i::factor, j::factor].astype(np.uint16)
                for i in range(factor) for j in range(factor))
    area = factor ** 2
    return ((total + area // 2) // area).astype(np.uint8)
