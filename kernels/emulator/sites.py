"""The barriers and atomics of a kernel file, and whether its tests notice when one is missing."""
import re
from pathlib import Path
from typing import NamedTuple

from tinydiff.kernels.emulator.errors import EmulationError
from tinydiff.kernels.emulator.settings import emulation
from tinydiff.kernels.emulator.translate import without_comments
from tinydiff.kernels.source import source

WAITING = re.compile(r"\b(__syncthreads\w*|__syncwarp|atomic[A-Z]\w*|copy_async_wait)\s*[(<]")
MARK = re.compile(r'#line (\d+) "([^"]+)"')


class SiteInText(NamedTuple):
    """A barrier or an atomic.

    Attributes
    ----------
    place : str
        "conv2d.cu:57": what `emulation` takes in ``ignore=``.
    kind : str
        "__syncthreads", "atomicAdd", ...
    text : str
        The line, comment included.
    """

    place: str
    kind: str
    text: str


def sites(file):
    """List the barriers and atomics of a kernel file, its headers included.

    Parameters
    ----------
    file : str

    Returns
    -------
    sites : list of `SiteInText`
    """
    text = source(file)
    found = []
    name, number = file, 0
    for line, bare in zip(text.splitlines(), without_comments(text).splitlines(), strict=True):
        number += 1
        if mark := MARK.match(line):
            name, number = mark[2], int(mark[1]) - 1
        elif name != "ptx.cuh" and (match := WAITING.search(bare)):     # definitions stand there
            found.append(SiteInText(f"{name}:{number}", match[1], line.strip()))
    return found


def unnoticed(file, checks, seeds=(0, 1, 2, 3), race=True):
    """Switch off every barrier and atomic in turn, and return those that no check misses.

    Parameters
    ----------
    file : str
    checks : list of callable
        Each launches kernels of the file on small arrays through the emulator, and raises if
        what they compute is wrong.
    seeds : sequence of int
        Of the orders in which the threads run.
    race : bool, default True
        Whether to check in race mode as well.

    Returns
    -------
    sites : list of `SiteInText`
        Those that some check executes and that can be left out unnoticed: redundant, or not
        tested.

    Raises
    ------
    AssertionError
        If no check executes one that stands in the file itself.
    """
    ways = [{"seed": seed} for seed in seeds] + [{"race": True}] * race
    reach = {}
    for check in checks:
        with emulation() as run:
            check()
        for place in run.reached:
            reach.setdefault(place, []).append(check)
    there = sites(file)
    never = [site for site in there if site.place not in reach
             and site.place.startswith(Path(file).name)]        # a header may serve other files
    assert not never, f"no check executes {never[0].place}: {never[0].text}"
    return [site for site in there if site.place in reach
            and not any(_notices(check, site, way) for check in reach[site.place] for way in ways)]


def _notices(check, site, way):
    """Say whether a check fails with a barrier or atomic switched off."""
    with emulation(ignore=(site.place,), **way):
        try:
            check()
        except (AssertionError, EmulationError):
            return True
    return False
