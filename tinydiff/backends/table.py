"""The one table of fast implementations: what runs behind each operation of `tinydiff.ops`.

An operation is a pair of readable NumPy functions, and these are its definition.  The hot pairs,
and the update of the optimiser, are marked `replaceable`: where kernels are in use, the function of
the same name in the module that `TABLE` gives runs in their place.  The table has two columns, and
the first array decides: NumPy's go to the kernels for the processor, CuPy's to the CUDA kernels.
An array that a kernel does not know (float64, ...) goes to the definition, which runs on either, so
a kernel answers `NotImplemented` and never converts.

=============  ==========================================================================
mode           what runs
=============  ==========================================================================
``fast``       the kernels; the default, for the processor only once they are compiled
``precise``    the same, but convolutions add up directly: rounding errors stay within
               twice the definition's, where Winograd's shortcut may need more
``reference``  the readable definitions, everywhere
=============  ==========================================================================

`use` sets the mode of the whole process; the variable TINYDIFF_USE in the environment sets the
mode that it starts with.
"""
import inspect
import os
from collections.abc import Callable
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from tinydiff.backends import device
from tinydiff.backends.compiling import COMPILE, to_compile
from tinydiff.backends.precision import precision
from tinydiff.backends.threads import obstacle


class Twins(NamedTuple):
    """Which modules hold the kernels of an operation, for NumPy's arrays and for CuPy's."""

    cpu: str | None = None
    cuda: str | None = None


TABLE = {                               # operation: its kernels
    "adamw": Twins("tinydiff.kernels.cpu.adamw", "tinydiff.kernels.adamw"),
    "attention": Twins("tinydiff.kernels.cpu.attention", "tinydiff.kernels.attention"),
    "conv2d": Twins("tinydiff.kernels.cpu.conv2d", "tinydiff.kernels.conv2d"),
    "geglu": Twins("tinydiff.kernels.cpu.activations"),
    "gelu_tanh": Twins("tinydiff.kernels.cpu.activations"),
    "group_norm": Twins("tinydiff.kernels.cpu.group_norm", "tinydiff.kernels.group_norm"),
    "group_norm_silu": Twins("tinydiff.kernels.cpu.group_norm", "tinydiff.kernels.group_norm"),
    "layer_norm": Twins("tinydiff.kernels.cpu.layer_norm", "tinydiff.kernels.layer_norm"),
    "linear": Twins("tinydiff.kernels.cpu.linear", "tinydiff.kernels.linear"),
    "quick_gelu": Twins("tinydiff.kernels.cpu.activations"),
    "silu": Twins("tinydiff.kernels.cpu.activations"),
    "softmax": Twins(None, "tinydiff.kernels.softmax"),
    "transpose": Twins("tinydiff.kernels.cpu.transpose"),
}
MODES = ("fast", "precise", "reference")

_wish = os.environ.get("TINYDIFF_USE")  # the mode to start with
_mode = None                            # what was asked for, if anything was
_default = None                         # else this, on the processor; see `mode`
_loaded = {}                            # (function, column): its twin or None, when first run


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
        array = args[0] if args else next(iter(options.values()))
        fast = kernel(name, device.column(array))
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


def kernel(name, column="cpu"):
    """Return the twin of the function ``<op>_forward``, or None where the definition runs.

    Parameters
    ----------
    name : str
    column : {"cpu", "cuda", None}
        What kind of array it is for; of any other, None, no kernel knows.
    """
    if column is None or mode(column) == "reference" or (column == "cpu" and obstacle()):
        return None
    if (name, column) not in _loaded:
        module = getattr(TABLE[name.rpartition("_")[0]], column)
        module = import_module(module) if module and find_spec(module) else None
        twin = getattr(module, name, None)
        if twin and column == "cuda" and "precision" in inspect.signature(twin).parameters:
            twin = _at_the_precision_in_use(twin)
        _loaded[name, column] = twin
    return _loaded[name, column]


def _at_the_precision_in_use(twin):
    """Tell a CUDA kernel what the tensor cores should multiply."""
    @wraps(twin)
    def told(*args, **options):
        return twin(*args, precision=precision(), **options)
    return told


def mode(column="cpu"):
    """Return the mode in use: "fast", "precise" or "reference".

    It is the one that was asked for, by `use` or by TINYDIFF_USE.  Else on the processor it is
    "fast" if the kernels have been compiled: that takes about a minute, and is never begun in the
    middle of a picture that nobody asked to be fast.  On a device, where each kernel compiles in a
    second when it is first needed, it is "fast".
    """
    global _mode, _default
    if _mode is None and _wish:
        _mode = _checked(_wish, "TINYDIFF_USE=")
    if _mode is not None or column == "cuda":
        return _mode or "fast"
    if _default is None:
        _default = "reference" if obstacle() or to_compile() else "fast"
    return _default


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
    """Say what runs behind each operation, on the processor and on a device, and why.

    Returns
    -------
    facts : dict of str to str
    """
    on_device = device.facts()
    usable = not device.obstacle()
    rows = {op: _fact(twins.cpu, mode(), "NumPy", "Numba") for op, twins in TABLE.items()}
    if usable:
        rows = {op: f"{row}; on the device: " + _fact(TABLE[op].cuda, mode("cuda"), "CuPy", "CUDA")
                for op, row in rows.items()}
    if mode() == "reference":
        why = obstacle() or (f"the kernels are not compiled yet; {COMPILE}" if _mode is None else
                             "the readable path was asked for")
        on_processor = {"mode": f"reference: {why}"}
    else:
        on_processor = {"mode": f"{mode()}; TINYDIFF_USE or tinydiff.use() chooses among "
                                f"{', '.join(MODES)}"}
    if usable:
        on_device |= {"mode on the device": mode("cuda"), "precision on the device": precision()}
    jit = {} if mode() == "reference" else import_module("tinydiff.kernels.cpu.jit").facts()
    return {**on_device, **on_processor, **rows,
            "other operations": "NumPy, the readable definitions in tinydiff/ops", **jit}


def _fact(module, mode, library, compiler):
    """Say what runs behind one operation in one column."""
    if mode == "reference" or module is None:
        return f"{library}, the readable definition in tinydiff/ops"
    if find_spec(module) is None:
        return f"{library}, the readable definition: {module} is missing"
    return f"{compiler}, {module}"


def _checked(mode, label="mode "):
    """Return `mode` if it exists and can run here, on the processor or on a device."""
    if mode not in MODES:
        raise ValueError(f"{label}{mode!r}: there are {', '.join(MODES)}")
    if mode != "reference" and obstacle() and device.obstacle():
        raise ValueError(f"{label}{mode!r}: {obstacle()}")
    return mode
