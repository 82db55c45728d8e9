"""What the arithmetic runs on: keyed random numbers, and which BLAS does the matrix products."""
from typing import NamedTuple

from threadpoolctl import threadpool_info

from tinydiff.backends.random import generator, normal

__all__ = ["BlasInfo", "blas_info", "generator", "normal"]


class BlasInfo(NamedTuple):
    """The library behind NumPy's matrix products.

    Attributes
    ----------
    name : str
        Library and version, such as "openblas 0.3.30".
    kernel : str
        The processor type its inner loops were written for, such as "SkylakeX".
    threads : int or None
        How many it may use; None when unknown.
    """

    name: str
    kernel: str
    threads: int | None


def blas_info():
    """Find which BLAS NumPy calls, on which kernel and with how many threads.

    Returns
    -------
    info : BlasInfo
        Fields say "unknown" where threadpoolctl knows no better.

    Examples
    --------
    >>> blas_info()._fields
    ('name', 'kernel', 'threads')
    """
    libraries = [found for found in threadpool_info() if found["user_api"] == "blas"]
    if not libraries:
        return BlasInfo("unknown", "unknown", None)
    # SciPy brings a second OpenBLAS; NumPy's own is the one that multiplies here.
    found = next((lib for lib in libraries if "numpy" in lib["filepath"].lower()), libraries[0])
    name = f"{found['internal_api']} {found.get('version') or ''}".strip()
    return BlasInfo(name, found.get("architecture") or "unknown", found["num_threads"])
