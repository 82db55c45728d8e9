"""What is installed, and what runs where."""
import os
import platform
from importlib.metadata import PackageNotFoundError, version

import tinydiff
from tinydiff.backends import blas_info
from tinydiff.backends.table import facts
from tinydiff.datasets import data_folder
from tinydiff.pipelines import shipped
from tinydiff.recipes import names
from tinydiff.runs import default_folder
from tinydiff.samplers import SAMPLERS


def info():
    """Collect what a report of a fault should say.

    Returns
    -------
    facts : dict of str to str
    """
    blas = blas_info()
    hidden = os.environ.get("OPENBLAS_CORETYPE")
    hint = (f"; OPENBLAS_CORETYPE={hidden} in the environment fixes the kernel: unset it unless "
            "that is meant" if hidden else "")
    return {
        "tinydiff": tinydiff.__version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "numpy": version("numpy"),
        "matrix products": f"{blas.name}, {blas.kernel} kernel, {blas.threads} threads{hint}",
        **facts(),
        **_kernels_without_a_device(),
        "optional": ", ".join(f"{p} {_version(p)}" for p in ("scipy", "matplotlib", "pillow")),
        "samplers": ", ".join(SAMPLERS),
        "models": ", ".join(shipped()) or "none",
        "recipes": ", ".join(names()),
        "data": str(data_folder()),
        "runs": str(default_folder("NAME")),
    }


def _kernels_without_a_device():
    """Say what can run, or compile, the CUDA kernels where there is no GPU."""
    try:
        from tinydiff.kernels import emulator, nvrtc
    except ImportError:
        return {"CUDA emulator": "the kernels are not installed"}
    return {**emulator.facts(), **nvrtc.facts()}


def _version(package):
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"
