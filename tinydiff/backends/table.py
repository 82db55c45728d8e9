"""The one table of fast implementations: what runs behind each operation of `tinydiff.ops`.

An operation is a pair of readable NumPy functions, and these are its definition.  The hot pairs,
and the update of the optimiser, are marked `replaceable`: where compiled kernels are in use, the
function of the same name in the module that `TABLE` gives runs in their place.  An array that
a kernel does not know (float64, on a GPU, ...) goes to the definition, so a kernel answers
`NotImplemented` and never converts.

=============  ==========================================================================
mode           what runs
=============  ==========================================================================
``fast``       the kernels of `tinydiff.kernels.cpu`; the default where they are compiled
``precise``    the same, but convolutions add up directly: rounding errors stay within
               twice the definition's, where Winograd's shortcut may need more
``reference``  the readable definitions, everywhere
=============  ==========================================================================

`use` sets the mode of the whole process; the variable TINYDIFF_USE in the environment sets the
mode that it starts with.
"""
import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import NamedTuple

from tinydiff.backends.compiling import COMPILE, to_compile
from tinydiff.backends.threads import obstacle

TABLE = {                               # operation: the module that holds its kernels
    "adamw": "tinydiff.kernels.cpu.adamw",
    "attention": "tinydiff.kernels.cpu.attention",
    "conv2d": "tinydiff.kernels.cpu.conv2d",
    "geglu": "tinydiff.kernels.cpu.activations",
    "group_norm": "tinydiff.kernels.cpu.group_norm",
    "group_norm_silu": "tinydiff.kernels.cpu.group_norm",
    "layer_norm": "tinydiff.kernels.cpu.layer_norm",
    "linear": "tinydiff.kernels.cpu.linear",
    "silu": "tinydiff.kernels.cpu.activations",
}
MODES = ("fast", "precise", "reference")

_mode = None                            # None: not chosen yet, see `mode`
_loaded = {}                            # function's name: its fast twin, imported when first run


class Saved(NamedTuple):
    """The cache of a fast forward pass, and who can read it: whoever ran forward runs backward.

    Attributes
    ----------
    backward : callable
        ``backward(dy, arrays, **options)`` returns what the operation's own backward does.
    arrays : tuple
    """

    backward: Callable
    arrays: tuple


def replaceable(definition):
    """Let a kernel run in place of `definition`.

    Parameters
    ----------
    definition : callable
        ``<op>_forward(x, ...) -> (y, cache)`` or ``<op>_backward(dy, cache, ...) -> gradients``,
        or ``<op>_update`` of arrays in place.

    Returns
    -------
    function : callable
        Of the same name and arguments; ``function.reference`` is the definition itself.
    """
    name = definition.__name__

    @wraps(definition)
    def forward(*args, **options):
        fast = kernel(name)
        if fast is not None:
            result = fast(*args, **options)
            if result is not NotImplemented:
                return result
        return definition(*args, **options)

    @wraps(definition)
    def backward(dy, cache, *args, **options):
        if isinstance(cache, Saved):
            return cache.backward(dy, cache.arrays, *args, **options)
        return definition(dy, cache, *args, **options)

    function = backward if name.endswith("_backward") else forward
    function.reference = definition
    return function


def kernel(name):
    """Return the fast twin of the function ``<op>_forward``, or None where the definition runs."""
    if mode() == "reference":
        return None
    if name not in _loaded:
        op = name.rpartition("_")[0]
        _loaded[name] = getattr(import_module(TABLE[op]), name)
    return _loaded[name]


def mode():
    """Return the mode in use: "fast", "precise" or "reference".

    The first call chooses it: TINYDIFF_USE if that is set, else "fast" if the kernels have been
    compiled.  Compiling takes about a minute; it is never begun in the middle of a picture that
    nobody asked to be fast.
    """
    global _mode
    if _mode is None:
        wish = os.environ.get("TINYDIFF_USE")
        _mode = _checked(wish, "TINYDIFF_USE=") if wish else (
            "reference" if obstacle() or to_compile() else "fast")
    return _mode


class use:  # noqa: N801 - reads as a verb
    """Choose what runs behind the operations, from here on or for one ``with`` block.

    Parameters
    ----------
    mode : str
        "fast", "precise" or "reference", see `tinydiff.backends.table`; for all threads.

    Raises
    ------
    ValueError
        If there is no such mode, or it needs Numba and that cannot be imported.

    Examples
    --------
    >>> import tinydiff
    >>> with tinydiff.use("reference"):
    ...     mode()
    'reference'
    """

    def __init__(self, mode):
        global _mode
        self.mode = _checked(mode)
        self.before, _mode = _mode, mode

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        global _mode
        _mode = self.before

    def __repr__(self):
        return f"use({self.mode!r})"


def facts():
    """Say what runs behind each operation, and why.

    Returns
    -------
    facts : dict of str to str
    """
    if mode() == "reference":
        why = obstacle() or (f"the kernels are not compiled yet; {COMPILE}" if to_compile() else
                             "the readable path was asked for")
        return {"mode": f"reference: {why}",
                **dict.fromkeys(TABLE, "NumPy, the readable definition in tinydiff/ops"),
                "other operations": "NumPy"}
    jit = import_module("tinydiff.kernels.cpu.jit")
    return {"mode": f"{mode()}; TINYDIFF_USE or tinydiff.use() chooses among {', '.join(MODES)}",
            **{op: f"Numba, {module}" for op, module in TABLE.items()},
            "other operations": "NumPy, the readable definitions in tinydiff/ops",
            **jit.facts()}


def _checked(mode, label="mode "):
    """Return `mode` if it exists and can run here."""
    if mode not in MODES:
        raise ValueError(f"{label}{mode!r}: there are {', '.join(MODES)}")
    if mode != "reference" and obstacle():
        raise ValueError(f"{label}{mode!r}: {obstacle()}")
    return mode
