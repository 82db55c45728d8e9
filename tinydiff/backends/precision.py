"""What the tensor cores of a GPU multiply: float32, TF32 or float16.

Arrays are float32 whatever this says, weights and activations alike, and sums are float32.  Only
the two factors of a product are rounded, inside the kernels of convolution and attention and
inside cuBLAS, as they enter the tensor cores:

===========  ======================  ================================================
precision    bits of the fraction    of a product on tensor cores
===========  ======================  ================================================
``float32``  23                      none: the same seed gives the CPU's picture
``tf32``     10                      the range of float32
``float16``  10                      from 6e-8 to 65504: training scales its loss
===========  ======================  ================================================

So the weights that an optimiser updates are float32 "master weights" by themselves
(P. Micikevicius et al., "Mixed Precision Training", 2017, arXiv:1710.03740, Sec. 3.1).
"""
from importlib import import_module

from tinydiff.backends.device import obstacle

PRECISIONS = ("float32", "tf32", "float16")
COMPUTE_TYPES = {"float32": "COMPUTE_TYPE_DEFAULT", "tf32": "COMPUTE_TYPE_TF32",
                 "float16": "COMPUTE_TYPE_FP16"}                 # CuPy's names for cuBLAS

_precision = "float32"


def precision():
    """Return the precision in use."""
    return _precision


class use_precision:  # noqa: N801 - reads as a verb
    """Choose what the tensor cores multiply, from here on or for one ``with`` block.

    Parameters
    ----------
    name : {"float32", "tf32", "float16"}

    Raises
    ------
    ValueError
        If there is no such precision, or it needs a device and there is none.
    """

    def __init__(self, name):
        check(name)
        self.name, self.before = name, _precision
        _set(name)

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        _set(self.before)

    def __repr__(self):
        return f"use_precision({self.name!r})"


def check(name, device="cuda"):
    """Refuse a precision that does not exist, or that nothing here can multiply in.

    Raises
    ------
    ValueError
        Saying what would be right.
    """
    if name not in PRECISIONS:
        raise ValueError(f"precision {name!r}: there are {', '.join(PRECISIONS)}")
    if name == "float32":
        return
    why = obstacle() if device == "cuda" else "the processor multiplies in float32"
    if why:
        raise ValueError(f"precision {name!r} needs a GPU's tensor cores: {why}; "
                         "use --precision float32")


def _set(name):
    """Tell the table, and cuBLAS where there is one."""
    global _precision
    if name != _precision and not obstacle():
        linalg = import_module("cupy._core._routines_linalg")
        linalg.set_compute_type("float32", getattr(linalg, COMPUTE_TYPES[name]))
    _precision = name
