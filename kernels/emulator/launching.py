"""A kernel on the emulator: called as CuPy calls one on a device, on NumPy arrays in place."""
import ctypes
from ctypes import POINTER, Structure, c_char, c_char_p, c_int, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from math import prod
from threading import Lock

from tinydiff.kernels.emulator.arguments import Memory, checked
from tinydiff.kernels.emulator.compiler import library, obstacle, runtime
from tinydiff.kernels.emulator.counts import counted
from tinydiff.kernels.emulator.errors import EmulationError
from tinydiff.kernels.emulator.places import places
from tinydiff.kernels.emulator.settings import settings
from tinydiff.kernels.source import source, stem

MOST_THREADS = 1024                     # in a block
MOST_SHARED = 227 << 10                 # bytes of shared memory for a block, on sm_90
MOST_BLOCKS = 2**31 - 1, 65535, 65535   # along x, y and z

_one_at_a_time = Lock()                 # the runtime knows one launch


# ---- scheduler.h, in ctypes ----

class Region(Structure):
    """An array argument: where it is, the bytes of an element, its name."""

    _fields_ = (("start", c_size_t), ("stop", c_size_t), ("granule", c_size_t), ("name", c_char_p))


class Site(Structure):
    """A place in a kernel file."""

    _fields_ = (("file", c_char_p), ("line", c_int))

    def __str__(self):
        return f"{self.file.decode()}:{self.line}"


class Launch(Structure):
    """All that the runtime is told, and tells."""

    _fields_ = (("grid", c_uint * 3), ("block", c_uint * 3), ("shared_bytes", c_size_t),
                ("seed", c_uint64), ("enter", c_void_p), ("arguments", POINTER(c_void_p)),
                ("regions", POINTER(Region)), ("n_regions", c_int),
                ("ignored", POINTER(Site)), ("n_ignored", c_int),
                ("traced", c_int), ("counting", c_int),
                ("reached", Site * 256), ("n_reached", c_int),
                ("failed", c_int), ("pcs", c_void_p * 2), ("error", c_char * 1024))


def emulate(file, name, **macros):
    """Return a kernel that runs on this processor.

    Parameters
    ----------
    file : str
        A kernel file in this package, such as "conv2d.cu", or a path, or the text itself.
    name : str
        The kernel's name in it.
    **macros
        What to define while compiling, as ``TILE=16``.

    Returns
    -------
    kernel : Kernel
        Call it as ``kernel(grid, block, args)``; it is compiled when first called.

    Raises
    ------
    RuntimeError
        If nothing can be emulated here; see `obstacle`.
    """
    if obstacle():
        raise RuntimeError(obstacle())
    return Kernel(file, name, tuple(sorted(macros.items())))


class Kernel:
    """A kernel of a .cu file, run thread by thread on this processor.

    Parameters
    ----------
    file, name : str
    macros : tuple of (str, value)
    """

    def __init__(self, file, name, macros):
        self.file, self.name, self.macros = file, name, macros

    def __repr__(self):
        return self.name

    def __call__(self, grid, block, args, *, shared_mem=0, seed=None, race=None, ignore=None):
        """Run all blocks.

        Parameters
        ----------
        grid, block : tuple of int
            Up to three numbers each: blocks, and threads in a block.
        args : tuple
            NumPy arrays, which the kernel reads and writes in place, ``np.int32`` and
            ``np.float32`` scalars, and None for a null pointer.
        shared_mem : int, default 0
            Bytes of dynamic shared memory.
        seed, race, ignore
            As in `emulation`, whose settings hold where they are left out.

        Raises
        ------
        EmulationError
            If the kernel does what it must not: a race or an access out of bounds (in race mode),
            a barrier that some threads do not reach, a write outside of all arrays.  The arrays
            are left as they were.
        CompileError
            If the file is not valid C++.
        TypeError, ValueError
            If an argument does not fit the kernel's parameters, or the launch any device.
        """
        given = {"seed": seed, "race": race, "ignore": ignore}
        now = settings()._replace(**{k: v for k, v in given.items() if v is not None})
        grid, block = _three(grid), _three(block)
        self._check_size(grid, block, shared_mem)
        path, kernels = library(stem(self.file), source(self.file), now.race, self.macros)
        if self.name not in kernels:
            raise ValueError(f"{stem(self.file)}.cu has no kernel {self.name!r}: there are "
                             f"{', '.join(kernels)}")
        enter, types = _entry(path, self.name)
        memory = Memory(checked(self, args, types, kernels[self.name]))

        regions = [Region(*region) for region in memory.regions()]
        ignored = [Site(file.encode(), int(line)) for file, _, line in
                   (place.rpartition(":") for place in now.ignore)]
        launch = Launch(
            grid=grid, block=block, shared_bytes=shared_mem, seed=now.seed, enter=enter,
            arguments=memory.pointers(),
            regions=(Region * len(regions))(*regions), n_regions=len(regions),
            ignored=(Site * len(ignored))(*ignored), n_ignored=len(ignored),
            traced=now.race, counting=now.counts is not None)
        with _one_at_a_time:
            _library(runtime()).emulator_launch(ctypes.byref(launch))
            if now.counts is not None:
                now.counts.extend(counted(_library(runtime()), self.name))

        if now.reached is not None:
            now.reached.update(map(str, launch.reached[:launch.n_reached]))
        if launch.failed:
            text = launch.error.decode(errors="replace")
            where = places([pc for pc in launch.pcs if pc])
            raise EmulationError(f"{self}: {text.format(*where) if where else text}")
        memory.copy_back(self)

    def _check_size(self, grid, block, shared_mem):
        """Refuse what no device could launch."""
        if not 0 < prod(block) <= MOST_THREADS or block[2] > 64:
            raise ValueError(f"{self}: a block of {block} has {prod(block)} threads; from 1 to "
                             f"{MOST_THREADS} are possible, and 64 along z")
        if not all(0 < n <= most for n, most in zip(grid, MOST_BLOCKS, strict=True)):
            raise ValueError(f"{self}: a grid of {grid}; from 1 to {MOST_BLOCKS} are possible")
        if shared_mem > MOST_SHARED:
            raise ValueError(f"{self}: shared_mem={shared_mem}, but a block has at most "
                             f"{MOST_SHARED} bytes, on the largest devices")


def _three(sizes):
    """Return a size along x, y and z."""
    return (*map(int, sizes), 1, 1)[:3]


@cache
def _library(path):
    """Load a library once; `ctypes` by itself would look for the file each time."""
    return ctypes.CDLL(str(path))


@cache
def _entry(path, name):
    """Return the address of what starts a kernel, and the types of its parameters."""
    library = _library(path)
    types = getattr(library, f"emulator_types_{name}")
    types.restype = POINTER(c_char_p)
    codes = []
    for code in types():
        if code is None:
            break
        codes.append(code.decode())
    return ctypes.cast(getattr(library, f"emulator_enter_{name}"), c_void_p).value, codes
