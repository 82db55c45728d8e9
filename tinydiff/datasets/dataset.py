"""Pictures with what is known about them, and where the shipped ones lie."""
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np

from tinydiff.pictures import from_bytes


@dataclass(frozen=True)
class Pictures:
    """A data set in memory: N pictures and N records.

    Attributes
    ----------
    images : (N, C, S, S) uint8 ndarray
        C is 3, or 1 for the grey sets.
    records : list of dict
        One per picture.  Every record has ``label`` (str), ``tags`` (list of
        str), ``style`` (str, may be empty) and ``held_out`` (None, or the
        reason); what else there is depends on the set.

    Raises
    ------
    ValueError
        If the two differ in length.
    """

    images: np.ndarray
    records: list

    def __post_init__(self):
        if len(self.images) != len(self.records):
            raise ValueError(f"{len(self.images)} pictures but {len(self.records)} records")

    def __len__(self):
        return len(self.records)

    def array(self, indices=slice(None)):
        """Return the pictures `indices` as (B, C, S, S) float32 in [-1, 1]."""
        return from_bytes(self.images[indices])


def data_folder():
    """Return the folder of the shipped data: installed, editable or in a plain checkout.

    Returns
    -------
    folder : Path

    Raises
    ------
    FileNotFoundError
        If the package came without its data.
    """
    # Installed, data/ is the package tinydiff.data; in a checkout it lies beside tinydiff/.
    checkout = Path(__file__).resolve().parents[2] / "data"
    try:
        folder = Path(import_module("tinydiff.data").__path__[0])
    except ModuleNotFoundError:
        folder = checkout
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: the shipped data is missing; reinstall tinydiff")
    return folder


def data_file(name):
    """Return the path of one shipped file, or raise FileNotFoundError naming it."""
    path = data_folder() / name
    if not path.is_file():
        raise FileNotFoundError(f"{path}: missing data file; restore it from the repository")
    return path
