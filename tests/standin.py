"""A strict stand-in for an array on a device, for machines that have none.

`DeviceArray` holds its numbers in host memory but answers as a CuPy array does: a NumPy function
is looked up by its module and name in the list of what CuPy has (tests/reference/cupy.json, written
by make_cupy.py from an installed CuPy), its arguments are bound to CuPy's signature, and anything
that would silently copy between host and device is refused.  What it does is written in ``moves``,
``reads`` and ``calls``, so that a test can say that nothing crossed.

=====================================  ==========================================================
what                                   answer
=====================================  ==========================================================
``np.asarray(x)``, ``np.block([x])``   TypeError: nothing leaves the device unasked
x + host array, x[host array]          TypeError: nothing comes to the device unasked
``np.array(host, like=x)``             allowed, and counted as a move to the device
``x.get()``                            allowed, and counted as a move to the host
``float(x)``, ``if x:``, ``x.item()``  allowed as in CuPy, and counted as a read: it waits
ufunc ``where=``, ``.reduce``, ...     TypeError, as in CuPy
=====================================  ==========================================================
"""
import inspect
import json
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
from numpy.lib.mixins import NDArrayOperatorsMixin

SCALARS = (bool, int, float, complex, np.generic)
MADE_OF_HOST_NUMBERS = ("array", "asarray", "full")     # explicit: these may take host arrays
NOT_THERE = {"as_strided", "ascontiguousarray", "block", "vecdot"}    # dispatched by no array
log = SimpleNamespace(moves=[], reads=[], calls=[])


@contextmanager
def watched():
    """Yield a log of what happens in the block: ``moves``, ``reads``, ``calls``, lists of str."""
    before = {name: len(entries) for name, entries in vars(log).items()}
    seen = SimpleNamespace(moves=[], reads=[], calls=[])
    try:
        yield seen
    finally:
        for name, start in before.items():
            getattr(seen, name).extend(getattr(log, name)[start:])


@cache
def cupy_has():
    """Return the record of CuPy's names and signatures."""
    path = Path(__file__).parent / "reference" / "cupy.json"
    return json.loads(path.read_text(encoding="utf-8"))


@cache
def signature(text):
    """Read "a, b=, *, c=" as a signature."""
    kind, parameters = inspect.Parameter.POSITIONAL_OR_KEYWORD, []
    for word in filter(None, text.split(", ")):
        name = word.strip("*=")
        if word == "*":
            kind = inspect.Parameter.KEYWORD_ONLY
        elif word.startswith("**"):
            parameters.append(inspect.Parameter(name, inspect.Parameter.VAR_KEYWORD))
        elif word.startswith("*"):
            parameters.append(inspect.Parameter(name, inspect.Parameter.VAR_POSITIONAL))
            kind = inspect.Parameter.KEYWORD_ONLY
        else:
            default = None if word.endswith("=") else inspect.Parameter.empty
            parameters.append(inspect.Parameter(name, kind, default=default))
    return inspect.Signature(parameters)


class DeviceArray(NDArrayOperatorsMixin):
    """An array that pretends to be elsewhere; make one with `put`."""

    def __init__(self, host):
        assert type(host) is np.ndarray
        self._host = host

    # ---- what crosses, and says so ----

    def get(self):
        """Copy to the host, as CuPy's method of that name does."""
        log.moves.append("get")
        return self._host.copy()

    def item(self):
        """Read the one number that this array has: the host waits for it."""
        if self.size != 1:
            raise ValueError("can only convert an array of size 1 to a Python scalar")
        log.reads.append("item")
        return self._host.item()

    def __float__(self):
        return float(self.item())

    def __int__(self):
        return int(self.item())

    def __bool__(self):
        return bool(self.item())

    def __array__(self, dtype=None, copy=None):
        raise TypeError("Implicit conversion to a NumPy array is not allowed")

    # ---- what runs on the device ----

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        name = ufunc.__name__
        known = cupy_has()["ufuncs"] + cupy_has()["special"]
        if name not in known or name in NOT_THERE or options.keys() - {"dtype"}:
            raise TypeError(f"CuPy has no {name}({', '.join(options)})")
        if method == "at" and name in ("add", "subtract", "maximum", "minimum"):
            for operand in inputs:
                on_device(operand, f"{name}.at")          # not a tuple or list of indices either
            log.calls.append(f"{name}.at")
            return ufunc.at(*unwrap(inputs))
        if method != "__call__":
            raise TypeError(f"CuPy has no {name}.{method}")
        for operand in (*inputs, *(out or ())):
            on_device(operand, name)
        log.calls.append(name)
        with np.errstate(all="ignore"):                   # a device does not warn
            result = ufunc(*unwrap(inputs), **unwrap(options),
                           **({"out": unwrap(out)} if out else {}))
        return out[0] if out and len(out) == 1 else wrap(result)

    def __array_function__(self, function, types, args, kwargs):
        name = f"{function.__module__}.{function.__name__}"
        if name not in cupy_has()["functions"] or function.__name__ in NOT_THERE:
            return NotImplemented
        signature(cupy_has()["functions"][name]).bind(*args, **kwargs)
        if function.__name__ in MADE_OF_HOST_NUMBERS:
            if holds_host_array((args, kwargs)):
                log.moves.append(function.__name__)
        elif holds_host_array((args, kwargs)):
            raise TypeError(f"{name}: an array on the host among those on the device")
        log.calls.append(function.__name__)
        with np.errstate(all="ignore"):
            return wrap(function(*unwrap(args), **unwrap(kwargs)))

    def __getattr__(self, name):
        if name.startswith("_") or name not in cupy_has()["methods"]:
            raise AttributeError(f"a CuPy array has no {name}")
        bound = signature(cupy_has()["methods"][name])

        def method(*args, **kwargs):
            bound.bind(*args, **kwargs)
            if holds_host_array((args, kwargs)):
                raise TypeError(f".{name}: an array on the host")
            log.calls.append(name)
            with np.errstate(all="ignore"):
                return wrap(getattr(self._host, name)(*unwrap(args), **unwrap(kwargs)))
        return method

    def tolist(self):
        """Refuse: it copies everything, and code that needs it should say `get`."""
        raise TypeError("tolist copies a whole array to the host")

    def __getitem__(self, index):
        check_index(index)
        return wrap(self._host[unwrap(index)])

    def __setitem__(self, index, value):
        check_index(index)
        on_device(value, "assignment")
        log.calls.append("assignment")
        with np.errstate(all="ignore"):
            self._host[unwrap(index)] = unwrap(value)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __len__(self):
        return len(self._host)

    def __deepcopy__(self, memo):
        return DeviceArray(self._host.copy())

    def __repr__(self):
        return f"DeviceArray({self._host!r})"

    __copy__ = __deepcopy__
    __hash__ = None
    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    itemsize = property(lambda self: self._host.itemsize)
    nbytes = property(lambda self: self._host.nbytes)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    T = property(lambda self: DeviceArray(self._host.T))


def put(host):
    """Copy an array to the pretended device."""
    return DeviceArray(np.array(host))


def wrap(result):
    """Put results on the device: a scalar becomes an array of no axes, as in CuPy."""
    if isinstance(result, np.ndarray):
        return DeviceArray(result)
    if isinstance(result, np.generic):
        return DeviceArray(np.asarray(result))
    if isinstance(result, (tuple, list)):
        return type(result)(map(wrap, result))
    return result


def unwrap(value):
    """Look inside `DeviceArray`, in lists, tuples and dictionaries too."""
    if isinstance(value, DeviceArray):
        return value._host
    if isinstance(value, (tuple, list)):
        return type(value)(map(unwrap, value))
    if isinstance(value, dict):
        return {name: unwrap(v) for name, v in value.items()}
    return value


def holds_host_array(value):
    """Say whether a NumPy array stands anywhere among some arguments."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (tuple, list)):
        return any(map(holds_host_array, value))
    return isinstance(value, np.ndarray)


def on_device(operand, where):
    """Refuse what a CuPy kernel does not take: anything but its arrays and plain numbers."""
    if not isinstance(operand, (DeviceArray, *SCALARS)):
        raise TypeError(f"{where}: unsupported type {type(operand)} on a device")


def check_index(index):
    """Refuse an index that would be copied to the device."""
    for part in index if isinstance(index, tuple) else (index,):
        if not (part is None or part is Ellipsis
                or isinstance(part, (int, np.integer, slice, DeviceArray))):
            raise TypeError(f"an index of {type(part)} on a device")
