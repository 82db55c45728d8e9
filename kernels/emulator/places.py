"""From the address of an instruction to its line in a kernel file."""
import ctypes
import platform
import shutil
import subprocess
from ctypes import POINTER, Structure, byref, c_char_p, c_void_p
from pathlib import Path

OWN = {"cuda.h", "ptx.h", "runtime.h", "type_traits", "utility", "cmath"}     # no kernel's lines


class Info(Structure):
    """What dladdr says of an address."""

    _fields_ = (("file", c_char_p), ("base", c_void_p), ("symbol", c_char_p), ("start", c_void_p))


def places(pcs):
    """Return the lines that `pcs`, return addresses, came from.

    Parameters
    ----------
    pcs : list of int

    Returns
    -------
    places : list of str
        As "conv2d.cu:57"; "an unknown place" where binutils (on macOS, atos) is missing.
    """
    found = {}
    for file, group in _by_library(pcs).items():
        found.update(zip(group, _look_up(file, group), strict=True))
    return [found[pc] for pc in pcs]


def _by_library(pcs):
    """Return ``{(path, address it is loaded at): addresses in it}``."""
    dladdr = ctypes.CDLL(None).dladdr
    dladdr.argtypes = c_void_p, POINTER(Info)
    groups = {}
    for pc in pcs:
        info = Info()
        dladdr(pc, byref(info))
        groups.setdefault((info.file.decode(), info.base), []).append(pc)
    return groups


def _look_up(library, pcs):
    """Return the lines of addresses in one library."""
    path, base = library
    calls = [pc - 1 for pc in pcs]      # the call stands before the address it returns to
    if platform.system() == "Darwin" and shutil.which("atos"):
        command = ["atos", "-i", "-o", path, "-l", hex(base), *map(hex, calls)]
        lines = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        return [line.rpartition("(")[2].rstrip(")") for line in lines]
    if not shutil.which("addr2line"):
        return ["an unknown place"] * len(pcs)
    command = ["addr2line", "-a", "-i", "-e", path, *(hex(pc - base) for pc in calls)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [_kernels_own(block.splitlines()[1:]) for block in done.stdout.split("0x")[1:]]


def _kernels_own(frames):
    """Return the innermost of some frames, "/path/file:line (...)", that is a kernel's."""
    names = [Path(frame.split(" ")[0]).name for frame in frames]
    own = [name for name in names if name.partition(":")[0] not in OWN]
    return (own or names or ["an unknown place"])[0]
