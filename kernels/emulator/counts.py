"""What the lines of a kernel ask of memory, counted warp by warp.

A warp's 32 lanes ask together.  Global memory answers in sectors of 32 bytes: 4 of them if the
lanes read 32 neighbouring floats, 32 if each reads from elsewhere.  Shared memory has 32 banks,
each of which gives one word at a time: a request takes as many passes as there are words in its
fullest bank.
"""
from ctypes import Structure, byref, c_int, c_int64, c_void_p
from typing import NamedTuple

from tinydiff.kernels.emulator.places import places


class Count(Structure):
    """As in scheduler.h."""

    _fields_ = (("pc", c_void_p), ("shared", c_int), ("write", c_int),
                ("requests", c_int64), ("moved", c_int64), ("least", c_int64))


class Line(NamedTuple):
    """What one line of a kernel asked of memory, in one launch.

    Attributes
    ----------
    kernel, place : str
        "conv2d_v2_tiled", "conv2d.cu:57".
    space : str
        "global" or "shared".
    kind : str
        "read" or "write".
    requests : int
        How often a warp asked.
    moved, least : int
        Sectors of global memory, or passes of shared memory: as many as it took, and as few as
        would do for so many bytes.
    """

    kernel: str
    place: str
    space: str
    kind: str
    requests: int
    moved: int
    least: int

    @property
    def each(self):
        """Sectors or passes per request."""
        return self.moved / self.requests


def counted(library, kernel):
    """Return what the latest launch asked of memory, as a list of `Line` in the order of the file.

    Parameters
    ----------
    library : ctypes.CDLL
        The runtime.
    kernel : str
    """
    n = library.emulator_counts(None, 0)
    counts = (Count * n)()
    library.emulator_counts(byref(counts), n)
    totals = {}
    for count, place in zip(counts, places([count.pc for count in counts]), strict=True):
        key = (place, "shared" if count.shared else "global", "write" if count.write else "read")
        total = totals.setdefault(key, [0, 0, 0])
        for i, number in enumerate((count.requests, count.moved, count.least)):
            total[i] += number
    lines = [Line(kernel, *key, *total) for key, total in totals.items()]
    return sorted(lines, key=lambda line: (int(line.place.rpartition(":")[2]), line.kind))


def total(lines, space):
    """Add up what lines took: sectors of "global" memory, or passes of "shared" memory.

    Parameters
    ----------
    lines : list of `Line`
    space : str
    """
    return sum(line.moved for line in lines if line.space == space)


def table(lines, text):
    """Return lines as a table to print, each with its text.

    Parameters
    ----------
    lines : list of `Line`
    text : str
        Of the kernel file.
    """
    source = text.splitlines()
    rows = ["line  memory  kind   requests  each  least  "]
    for line in lines:
        number = int(line.place.rpartition(":")[2])
        rows.append(f"{number:4d}  {line.space:6s}  {line.kind:5s}  {line.requests:8d}  "
                    f"{line.each:4.1f}  {line.least / line.requests:5.1f}  "
                    f"{source[number - 1].strip()}")
    return "\n".join(rows)
