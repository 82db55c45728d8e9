"""How the next launches on the emulator run: set around the code that launches, not inside it."""
from contextvars import ContextVar
from typing import NamedTuple


class Settings(NamedTuple):
    """What `emulation` sets.

    Attributes
    ----------
    seed : int
        Of the order in which threads and blocks run; 0 is the order of their numbers.
    race : bool
    ignore : tuple of str
        Barriers and atomics that are switched off, as "conv2d.cu:57".
    counts : list or None
        Where to put what the launches asked of memory; see `tinydiff.kernels.emulator.counts`.
    reached : set or None
        Collects the barriers and atomics that were executed, as "conv2d.cu:57".
    """

    seed: int = 0
    race: bool = False
    ignore: tuple = ()
    counts: list | None = None
    reached: set | None = None


_settings = ContextVar("emulation")


def settings():
    """Return the settings in force."""
    return _settings.get(Settings())


class emulation:  # noqa: N801 - reads as a verb's noun: with emulation(seed=3)
    """Set how kernels run on the emulator, for one ``with`` block.

    Parameters
    ----------
    seed : int, default 0
        Of the random order of threads, warps and blocks; 0 is the order of their numbers.  The
        same seed gives the same run.
    race : bool, default False
        Whether each access to memory is checked for races and bounds.  Ten times slower.
    ignore : sequence of str
        Barriers and atomics to switch off, by their place: "conv2d.cu:57".
    count : bool, default False
        Whether to count what each line asks of memory, in race mode; see `counts`.

    Attributes
    ----------
    counts : list of `tinydiff.kernels.emulator.counts.Line`
        With ``count=True``, what the launches of the block asked of memory.
    reached : set of str
        The places of the barriers and atomics that the launches executed.

    Examples
    --------
    >>> with emulation(seed=3) as run:
    ...     settings().seed
    3
    """

    def __init__(self, seed=0, race=False, ignore=(), count=False):
        self.counts = [] if count else None
        self.reached = set()
        self._settings = Settings(int(seed), bool(race or count), tuple(map(str, ignore)),
                                  self.counts, self.reached)

    def __enter__(self):
        self._token = _settings.set(self._settings)
        return self

    def __exit__(self, *fault):
        _settings.reset(self._token)
