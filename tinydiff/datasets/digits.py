"""The 1,797 handwritten digits, 8 x 8 pixels: the smallest real pictures here."""
import zipfile

import numpy as np

from tinydiff.datasets.dataset import Pictures, data_file

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
WHITEST = 16                                # the file counts inked pixels of 4 x 4 blocks


def load_digits():
    """Read the digits.

    Returns
    -------
    digits : Pictures
        (1797, 1, 8, 8), white ink on black; the records' ``class`` is the digit.

    Raises
    ------
    ValueError, FileNotFoundError
        If data/digits.npz is damaged or missing.
    """
    path = data_file("digits.npz")
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            ink, labels = file["images"], file["labels"]                       # (N, 8, 8), (N,)
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a readable npz file: {error}") from None
    images = (ink.astype(np.uint16) * 255 + WHITEST // 2) // WHITEST
    records = [{"label": NAMES[k], "class": k, "tags": [], "style": "", "held_out": None}
               for k in labels.tolist()]
    return Pictures(images.astype(np.uint8)[:, None], records)
