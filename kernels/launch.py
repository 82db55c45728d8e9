"""One way to launch a kernel: the array decides where it runs.

On CuPy arrays a kernel is compiled by NVRTC and runs on the device; on NumPy arrays the emulator
runs it, thread by thread, on the processor.  The lines that launch it are the same.
"""
from functools import cache

import numpy as np

from tinydiff.kernels.source import definitions, source

NULL = np.uint64(0)
ASK = 48 << 10                          # bytes of shared memory in a block; for more a kernel asks


@cache
def compile_kernel(file, name, **macros):
    """Return a kernel that runs where its arguments are.

    Parameters
    ----------
    file : str
        A kernel file in this folder, such as "matmul.cu".
    name : str
        The kernel's name in it.
    **macros
        What to define while compiling, as ``TILE=16``.

    Returns
    -------
    kernel : callable
        ``kernel(grid, block, args, shared_mem=0)``, as `cupy.RawKernel` is called: scalars
        are ``np.int32`` or ``np.float32``, None is a null pointer.
    """
    def kernel(grid, block, args, shared_mem=0):
        if any(isinstance(arg, np.ndarray) for arg in args):
            _emulated(file, name, **macros)(grid, block, args, shared_mem=shared_mem)
            return
        run = _on_device(file, name, **macros)
        if shared_mem + run.shared_size_bytes > ASK:      # what it declares itself counts too
            run.max_dynamic_shared_size_bytes = shared_mem
        # CuPy hands None on as an argument that is not there, which ends the process.
        args = tuple(NULL if arg is None else arg for arg in args)
        run(grid, block, args, shared_mem=shared_mem)

    return kernel


@cache
def _emulated(file, name, **macros):
    """Return the kernel on the emulator."""
    from tinydiff.kernels.emulator import emulate

    return emulate(file, name, **macros)


@cache
def _on_device(file, name, **macros):
    """Return the kernel on the device, compiled by NVRTC."""
    import cupy

    module = cupy.RawModule(code=source(file), options=("-std=c++17", *definitions(macros)))
    return module.get_function(name)


def empty(shape, like, dtype=None):
    """Return an array for a kernel to fill, where `like` is.

    Parameters
    ----------
    shape : tuple of int
    like : ndarray
        NumPy or CuPy.
    dtype : dtype, optional
        That of `like` if left out.

    Returns
    -------
    array : ndarray
        On the processor it holds NaN, so that what a kernel forgets to write shows.
    """
    array = np.empty_like(like, shape=shape, dtype=dtype or like.dtype)
    if isinstance(array, np.ndarray):
        array.view(np.uint8)[...] = 0xFF            # NaN in every floating-point type
    return array


def device_or_host():
    """Return CuPy where a device can be used, else NumPy: where a check or a bench runs."""
    try:
        import cupy
    except ImportError:
        return np
    return cupy if cupy.cuda.is_available() else np


def to_host(array):
    """Return a NumPy array of the same numbers."""
    return array if isinstance(array, np.ndarray) else array.get()


def address(array):
    """Return where an array begins, in bytes: on a device or in this process."""
    return array.ctypes.data if isinstance(array, np.ndarray) else array.data.ptr


def ceil_div(n, d):
    """Return how many parts of size `d` cover `n`.

    Examples
    --------
    >>> ceil_div(33, 16)
    3
    """
    return -(-n // d)
