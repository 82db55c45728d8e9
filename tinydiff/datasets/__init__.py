"""Readers of data/, and of what the user brings: all give `Pictures`."""
from tinydiff.datasets.augmentation import augment
from tinydiff.datasets.captions import caption, captions
from tinydiff.datasets.dataset import Pictures, data_folder
from tinydiff.datasets.digits import load_digits
from tinydiff.datasets.emoji import STYLES, load_emoji
from tinydiff.datasets.fashion_mnist import load_fashion_mnist, read_idx
from tinydiff.datasets.folder import load_folder

__all__ = [
    "STYLES",
    "Pictures",
    "augment",
    "caption",
    "captions",
    "data_folder",
    "load_digits",
    "load_emoji",
    "load_fashion_mnist",
    "load_folder",
    "read_idx",
]
