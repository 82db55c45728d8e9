"""How every kernel here is compiled: once, for the processor at hand, and kept on disk.

`parallel` compiles a function whose `prange` loops are shared among Numba's threads, `allocates`
what a thread then runs, `serial` and `inlined` what that calls.  Numba notices a change of the file
that a kernel stands in, but not of what it imports; the kept code therefore lies in a folder named
after the text of all.
"""
import hashlib
import os
import shutil
import time
from contextlib import suppress
from functools import wraps
from pathlib import Path
from threading import Lock

import llvmlite.binding as llvm
import numba

# Additions may be reordered (once, while compiling: two runs give the same bits) and a product may
# join the addition that follows it.  NaN and infinity keep their meaning.
REORDER = {"contract", "reassoc", "nsz", "arcp"}

HERE = Path(__file__).parent
DAY = 24 * 3600                         # seconds


def _digest():
    """Name the version of the kernels: a hash of the text of every file in this folder."""
    text = b"".join(file.read_bytes() for file in sorted(HERE.glob("*.py")))
    return hashlib.sha256(text).hexdigest()[:12]


def cache_folder():
    """Return where compiled kernels are kept.

    $TINYDIFF_CACHE if that is set, else beside the source, else in the user's cache.
    """
    name = f"numba-{_digest()}"
    if folder := os.environ.get("TINYDIFF_CACHE"):
        return Path(folder, name)
    beside = HERE / "__pycache__"
    try:
        beside.mkdir(exist_ok=True)
        writable = os.access(beside, os.W_OK)
    except OSError:
        writable = False
    return (beside if writable else Path.home() / ".cache" / "tinydiff") / name


def compiled():
    """Say whether `tinydiff.kernels.cpu.ahead` has compiled every kernel for this processor."""
    return (CACHE / f"complete-{llvm.get_host_cpu_name()}").exists()


def mark_compiled():
    """Note that every kernel is compiled for this processor."""
    (CACHE / f"complete-{llvm.get_host_cpu_name()}").touch()


def remove_old(folder):
    """Remove what earlier versions left beside `folder`, unless a process may still be using it."""
    for old in folder.parent.glob("numba-*"):
        with suppress(OSError):         # another process may be removing it too
            if old != folder and old.stat().st_mtime < time.time() - DAY:
                shutil.rmtree(old)


CACHE = cache_folder()
if not CACHE.exists():
    remove_old(CACHE)


def _compile(function, **options):
    """Apply ``numba.njit``, keeping the result in `CACHE` and nobody else's in it."""
    before, numba.config.CACHE_DIR = numba.config.CACHE_DIR, str(CACHE)
    try:
        return numba.njit(cache=True, nogil=True, error_model="numpy", fastmath=REORDER,
                          **options)(function)
    finally:
        numba.config.CACHE_DIR = before


def allocates(function):
    """Compile what one task of a kernel does, on one thread; it may make arrays."""
    return _compile(function)


def serial(function):
    """Compile a function that a task calls; it makes no arrays.

    In return it counts no references: each slice, and each array that is handed on, would cost two
    atomic additions, more than many a short loop.
    """
    return _compile(function, _nrt=False)


def inlined(function):
    """Compile a small function whose body is copied to where it is called; it makes no arrays."""
    return _compile(function, _nrt=False, forceinline=True)


def facts():
    """Say what the kernels run on, and whether they are compiled already.

    Returns
    -------
    facts : dict of str to str
    """
    from tinydiff.kernels.cpu.simd import LANES
    threads = numba.get_num_threads()       # starts them: only then is the layer known
    kept = len(list(CACHE.rglob("*.nbi")))
    return {
        "kernels": f"Numba {numba.__version__}, {threads} threads of {numba.threading_layer()} "
                   f"(OMP_NUM_THREADS sets them), registers of {LANES} float32",
        "compiled": f"{kept} functions, kept in {CACHE}" if kept else
                    "not yet: the first picture takes half a minute more, once; "
                    "python -m tinydiff.kernels.cpu compiles everything ahead",
    }


_one_at_a_time = Lock()


def parallel(function):
    """Compile `function`, sharing its `prange` loops among Numba's threads.

    Two such functions never run at once: one alone keeps every core busy, and where Numba has
    neither OpenMP nor TBB, its own threads abort the process on a second call.
    """
    kernel = _compile(function, parallel=True)

    @wraps(function)
    def locked(*args):
        with _one_at_a_time:
            return kernel(*args)

    return locked
