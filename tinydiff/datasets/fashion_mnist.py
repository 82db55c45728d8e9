"""Fashion-MNIST: 60,000 + 10,000 grey pictures of clothes, 28 x 28, in IDX files.

H. Xiao, K. Rasul, R. Vollgraf, "Fashion-MNIST: a Novel Image Dataset for Benchmarking
Machine Learning Algorithms", 2017, arXiv:1708.07747.
"""
import gzip
import zlib
from math import prod
from pathlib import Path

import numpy as np

from tinydiff.datasets.dataset import Pictures, data_folder

NAMES = ("t-shirt", "trouser", "pullover", "dress", "coat",
         "sandal", "shirt", "sneaker", "bag", "ankle boot")
PREFIX = {"train": "train", "test": "t10k"}
SYSTEM_FOLDER = Path("/usr/share/datasets/fashion-mnist")      # where Debian's package puts them
WHERE = ("Debian and Ubuntu have the files in the package dataset-fashion-mnist; "
         "else get them from github.com/zalandoresearch/fashion-mnist and name their folder")
UNSIGNED_BYTE = 8                                              # IDX's code for the element type


def load_fashion_mnist(split="test", folder=None, size=28):
    """Read one split of Fashion-MNIST.

    Parameters
    ----------
    split : {"test", "train"}
        The test split comes with tinydiff, the training split does not.
    folder : path, optional
        Where the IDX files lie, gzipped or not; by default the shipped folder,
        then that of Debian's package.
    size : {28, 32}
        32 adds two black pixels on each side: a side that halves three times.

    Returns
    -------
    pictures : Pictures
        (N, 1, size, size), light clothes on black; the records' ``class`` is 0..9.

    Raises
    ------
    ValueError
        For an unknown split or size, or a damaged file.
    FileNotFoundError
        If the files are not there; the message says where to get them.
    """
    if split not in PREFIX:
        raise ValueError(f"split={split!r}: known are {', '.join(PREFIX)}")
    if size not in (28, 32):
        raise ValueError(f"size={size!r}: Fashion-MNIST has sizes 28, 32")
    folders = [Path(folder)] if folder else [data_folder() / "fashion_mnist", SYSTEM_FOLDER]
    image_path = find(f"{PREFIX[split]}-images-idx3-ubyte", folders)
    label_path = find(f"{PREFIX[split]}-labels-idx1-ubyte", folders)
    images, labels = read_idx(image_path), read_idx(label_path)                # (N, 28, 28), (N,)
    if images.shape[1:] != (28, 28):
        raise ValueError(f"{image_path}: shape {images.shape}, expected (N, 28, 28)")
    if labels.shape != images.shape[:1] or labels.max(initial=0) >= len(NAMES):
        raise ValueError(f"{label_path}: expected {len(images)} labels from 0 to 9")
    border = (size - 28) // 2
    images = np.pad(images, ((0, 0), (border, border), (border, border)))
    records = [{"label": NAMES[k], "class": k, "tags": [], "style": "", "held_out": None}
               for k in labels.tolist()]
    return Pictures(images[:, None], records)


def find(name, folders):
    """Return the first of `folders` / `name`, gzipped or not."""
    for folder in folders:
        for path in (folder / f"{name}.gz", folder / name):
            if path.is_file():
                return path
    raise FileNotFoundError(f"{name}.gz is not in {' or '.join(map(str, folders))}: {WHERE}")


def read_idx(path):
    """Read an IDX file of unsigned bytes, gzipped or not.

    Parameters
    ----------
    path : path

    Returns
    -------
    array : uint8 ndarray
        In the shape that the file states.

    Raises
    ------
    ValueError
        If the magic number, the element type or the length is wrong.

    Notes
    -----
    The header, big-endian: two zero bytes, the element type, the number of
    dimensions, then one 32-bit size per dimension; the elements follow.
    """
    data = Path(path).read_bytes()
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: damaged gzip file: {error}") from None
    if len(data) < 4 or data[:2] != b"\0\0" or data[3] == 0:
        raise ValueError(f"{path}: not an IDX file: it begins with {data[:4].hex() or 'nothing'}")
    kind, dimensions = data[2], data[3]
    if kind != UNSIGNED_BYTE:
        raise ValueError(f"{path}: IDX element type 0x{kind:02x}, expected 0x08 (unsigned byte)")
    start = 4 + 4 * dimensions
    if len(data) < start:
        raise ValueError(f"{path}: truncated: {len(data)} bytes, the IDX header takes {start}")
    shape = tuple(np.frombuffer(data, ">u4", dimensions, offset=4).tolist())
    if len(data) != start + prod(shape):
        raise ValueError(f"{path}: {len(data)} bytes, expected {start + prod(shape)} for {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)
