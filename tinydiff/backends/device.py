"""Where arrays live: whether there is a device, and the few places where numbers cross to it.

The array decides: a NumPy function called on a CuPy array runs on the GPU, so nothing but this
file asks what kind an array is.  Numbers cross in four ways, each in one place:

=========  ==================================================================================
weights    `move`, by `tinydiff.nn.Module.to`; and `follow` when a file is loaded into them
inputs     `follow`: token ids, training pictures, and noise, which the host draws
outputs    `to_host`: pictures before they are saved, weights before they are written
numbers    `scalar`: a loss stays where it was computed until somebody needs to know it
=========  ==================================================================================
"""
import sys
from functools import cache
from importlib import import_module

import numpy as np

DEVICES = ("auto", "cpu", "cuda")
INSTALL = "pip install 'tinydiff[cuda]'"
DRIVERS = {11: 450, 12: 525, 13: 580}   # CUDA's major version: the oldest driver (Linux) for it


def on_host(x):
    """Say whether `x` is NumPy's own."""
    return isinstance(x, (np.ndarray, np.generic, float, int))


def column(x):
    """Return which column of the table of kernels knows arrays like `x`: "cpu", "cuda" or None."""
    if type(x) is np.ndarray:
        return "cpu"
    return "cuda" if hasattr(x, "__cuda_array_interface__") else None


def follow(host, like):
    """Bring numbers from the host to where the array `like` lives; nothing is copied in place.

    Examples
    --------
    >>> ids = np.array([3, 1])
    >>> follow(ids, np.zeros(2)) is ids
    True
    """
    return host if on_host(host) and on_host(like) else np.asarray(host, like=like)


def to_host(x):
    """Bring an array to the host, waiting until it is computed."""
    return x if on_host(x) else x.get()


def move(x, device):
    """Bring an array to the device "cpu" or "cuda"."""
    if device == "cpu":
        return to_host(x)
    return _cupy().asarray(x)


def scalar(x):
    """Return a number as a Python float; on a device, where reading it would wait, leave it there.

    ``float(...)`` of the result is the number either way.
    """
    return float(x) if on_host(x) else x


def namespace(x):
    """Return the module that made `x`: NumPy or CuPy."""
    return sys.modules[type(x).__module__.partition(".")[0]]


def choose(wish):
    """Settle on a device.

    Parameters
    ----------
    wish : {"auto", "cpu", "cuda"}

    Returns
    -------
    device : {"cpu", "cuda"}
    why : str or None
        With "auto", why it is the CPU.

    Raises
    ------
    ValueError
        If there is no such device, or "cuda" is asked for and cannot be had: in one line, what to
        install.

    Examples
    --------
    >>> choose("cpu")
    ('cpu', None)
    """
    if wish not in DEVICES:
        raise ValueError(f"device {wish!r}: there are {', '.join(DEVICES)}")
    if wish == "cpu":
        return "cpu", None
    why = obstacle()
    if why and wish == "cuda":
        raise ValueError(f"device 'cuda': {why}")
    return ("cpu", why) if why else ("cuda", None)


# ---- what stands in the way ----

@cache
def obstacle():
    """Import CuPy (a second, once); return None, or the line that says why no GPU can be used."""
    try:
        cupy = import_module("cupy")
    except ImportError as fault:
        if fault.name == "cupy":
            return f"CuPy is not installed; {INSTALL}"
        return f"CuPy cannot be imported ({_line(fault)}); {INSTALL}"
    return driver_obstacle(cupy.cuda.runtime) or trial(cupy)


def driver_obstacle(runtime):
    """Say what is wrong with the driver, or return None.

    Parameters
    ----------
    runtime : module
        ``cupy.cuda.runtime``; CUDA's versions are integers such as 13020 for 13.2.
    """
    built, driver = runtime.runtimeGetVersion(), runtime.driverGetVersion()
    if driver == 0:
        return "no NVIDIA driver was found; a GPU needs one, see nvidia.com/drivers"
    if driver // 1000 < built // 1000:
        wanted = DRIVERS.get(built // 1000)
        newer = f"update the driver to {wanted} or newer" if wanted else "update the driver"
        return (f"the driver knows CUDA {_version(driver)}, this CuPy was built for CUDA "
                f"{_version(built)}; {newer}, or pip install cupy-cuda{driver // 1000}x instead")
    try:
        count = runtime.getDeviceCount()
    except RuntimeError as fault:
        return f"the driver finds no GPU ({_line(fault)}); see nvidia-smi"
    return None if count else "the driver finds no GPU; see nvidia-smi and CUDA_VISIBLE_DEVICES"


def trial(cupy):
    """Compile and run something small; return None, or what is missing for that.

    CuPy finds CUDA's compiler and cuBLAS only when they are first needed, and a CuPy that was built
    for another major version of CUDA than the installed one does not find them.
    """
    try:
        x = cupy.ones((2, 2), np.float32)
        float((x @ x + 1).sum())
    except MemoryError as fault:
        return f"the GPU has no memory left ({_line(fault)}); see who takes it in nvidia-smi"
    except (ImportError, OSError, RuntimeError) as fault:
        major = cupy.cuda.runtime.runtimeGetVersion() // 1000
        return (f"CuPy {cupy.__version__} needs the libraries of CUDA {major} "
                f"({_line(fault):.160}); pip install 'cupy-cuda{major}x[ctk]', or the CuPy of the "
                "CUDA that is installed")
    return None


def facts():
    """Describe the device, or say why there is none.

    Returns
    -------
    facts : dict of str to str
    """
    why = obstacle()
    if why:
        return {"device": f"none: {why}"}
    cupy = _cupy()
    runtime, device = cupy.cuda.runtime, cupy.cuda.Device()
    free, total = runtime.memGetInfo()
    properties = runtime.getDeviceProperties(device.id)
    name = properties["name"].decode() if isinstance(properties["name"], bytes) else (
        properties["name"])
    return {"device": f"{name}, {total / 2**30:.0f} GiB ({free / 2**30:.0f} free), compute "
                      f"capability {properties['major']}.{properties['minor']}, "
                      f"{properties['multiProcessorCount']} multiprocessors",
            "driver": f"for CUDA {_version(runtime.driverGetVersion())}",
            "cupy": f"{cupy.__version__}, CUDA {_version(runtime.runtimeGetVersion())}"}


def out_of_memory(fault, lower):
    """Say in one line that memory ran out, and what to lower.

    Parameters
    ----------
    fault : MemoryError
    lower : str
        What makes the command need less, such as ``--batch``.
    """
    where = "" if type(fault) is MemoryError or type(fault).__module__.startswith("numpy") else (
        "device ")
    return f"out of {where}memory ({_line(fault)}); lower {lower}"


def synchronize():
    """Wait for the device, where one is in use."""
    if "cupy" in sys.modules and not obstacle():
        _cupy().cuda.runtime.deviceSynchronize()


def _cupy():
    choose("cuda")
    return import_module("cupy")


def _version(number):
    return f"{number // 1000}.{number % 1000 // 10}"


def _line(fault):
    return " ".join(str(fault).split())
