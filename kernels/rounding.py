"""Numbers as tensor cores see them: what a kernel of reduced precision is compared with.

A tensor core multiplies rounded factors and adds up in float32.  The fair reference rounds the
factors in the same way, and then computes exactly.
"""
import numpy as np

PRECISIONS = ("float32", "tf32", "float16")


def tf32(x):
    """Round to the 11 bits of TF32: to nearest, ties away from zero, as ``cvt.rna.tf32.f32``.

    Parameters
    ----------
    x : float32 ndarray
        NumPy or CuPy; finite.

    Returns
    -------
    rounded : float32 ndarray

    Examples
    --------
    >>> tf32(np.float32([1.0, 1.0 + 2**-11, 1.0 + 2**-12])).tolist()
    [1.0, 1.0009765625, 1.0]
    """
    bits = x.view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


def rounded(x, precision):
    """Return float32 `x` as a kernel of this precision reads it.

    Parameters
    ----------
    x : float32 ndarray
    precision : str
        "float32", "tf32" or "float16".

    Returns
    -------
    rounded : ndarray
        float16 for "float16", else float32.

    Raises
    ------
    ValueError
        If there is no such precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision {precision!r}: there are {', '.join(PRECISIONS)}")
    return {"float32": lambda: x, "tf32": lambda: tf32(x),
            "float16": lambda: x.astype(np.float16)}[precision]()
