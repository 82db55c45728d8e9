"""A kernel's arguments: whether they fit its parameters, and where they lie in memory."""
import ctypes
from typing import NamedTuple

import numpy as np

from tinydiff.kernels.emulator.errors import EmulationError

GUARD = 4096                            # bytes before and after each array that belong to none
NAN = 0xFF                              # every byte of them: NaN in each floating-point type


class Argument(NamedTuple):
    """One argument.

    Attributes
    ----------
    name : str
    value : ndarray, NumPy scalar or None
    read_only : bool
        Whether it is an array that the kernel takes as ``const``.
    """

    name: str
    value: object
    read_only: bool


def checked(kernel, args, types, names):
    """Return `args` as a list of `Argument`, if they fit the kernel's parameters.

    Parameters
    ----------
    kernel : object
        What to call it in an error.
    args : tuple
    types : list of str
        As the compiler knows them: "f04" is a float, "*f04" points to floats, "cf04" to constant
        ones, and V is the kind of a structure.
    names : list of str

    Raises
    ------
    TypeError
        If there are too many or too few, or one is of another type.  A device would not
        notice: it would take the bytes for what they are not.
    """
    if len(args) != len(types):
        raise TypeError(f"{kernel} takes {len(types)} arguments ({', '.join(names)}), "
                        f"got {len(args)}")
    for i, (value, code, name) in enumerate(zip(args, types, names, strict=True), 1):
        wanted = _dtype(code[-3:])
        if code[0] in "*c":
            problem = _array_problem(value, wanted, code)
        else:
            problem = None if isinstance(value, np.generic) and value.dtype == wanted else \
                f"a scalar: pass np.{wanted}({value!r})" if isinstance(value, int | float) else \
                f"a scalar of {wanted}, got {_name(value)}"
        if problem:
            raise TypeError(f"{kernel}: argument {i}, {name}, is {problem}")
    return [Argument(name, value, code[0] == "c")
            for value, code, name in zip(args, types, names, strict=True)]


def _dtype(code):
    """Return the NumPy dtype of a type such as "f04"."""
    return np.dtype(f"{code[0]}{int(code[1:])}")


def _array_problem(value, wanted, code):
    """Say why `value` cannot be what a pointer to `wanted` points to, or return None."""
    if value is None:
        return None
    if not isinstance(value, np.ndarray):
        return f"an array, got {_name(value)}"
    if not value.flags.c_contiguous:
        return "an array that must be contiguous: pass np.ascontiguousarray of it"
    if not value.flags.writeable and code[0] == "*":
        return "an array that is written, got a read-only one"
    if wanted.kind == "V":              # float4, say, reads any array; half, any of 2 bytes
        fits = wanted.itemsize > 2 or value.itemsize == wanted.itemsize
    else:
        whole = "iub"
        fits = value.itemsize == wanted.itemsize and (
            value.dtype.kind == wanted.kind or {value.dtype.kind, wanted.kind} <= set(whole))
    return None if fits else f"an array of {wanted}, got {value.dtype}"


def _name(value):
    """Say what an argument is."""
    dtype = getattr(value, "dtype", None)
    return f"{dtype} {type(value).__name__}" if dtype is not None else type(value).__name__


class Memory:
    """The arrays of a launch, copied to where what lies around them is known.

    A read before or after an array gives NaN, and a write is noticed.  Arrays that overlap
    overlap in the copy too.

    Parameters
    ----------
    arguments : list of `Argument`
    """

    def __init__(self, arguments):
        self.all = arguments
        self.arrays = [a for a in arguments if isinstance(a.value, np.ndarray)]
        self.spans = _spans(a.value for a in self.arrays)
        starts, stop = [], GUARD
        for start, end in self.spans:
            at = -(-stop // 256) * 256 + start % 16         # as aligned as a device's arrays are
            starts.append(at)
            stop = at + end - start + GUARD
        self._bytes = np.full(stop + 256, NAN, np.uint8)
        base = self._bytes.ctypes.data
        self._shift = -base % 256       # the first byte of `_bytes` at a multiple of 256
        self.moved = [base + self._shift + at for at in starts]
        for (start, end), to in zip(self.spans, self.moved, strict=True):
            ctypes.memmove(to, start, end - start)

    def address(self, array):
        """Return where an array lies in the copy."""
        start = array.ctypes.data
        for (first, stop), to in zip(self.spans, self.moved, strict=True):
            if first <= start < stop:
                return to + start - first
        return self.moved[0] if self.moved else 0           # an empty array: any address will do

    def pointers(self):
        """Return the addresses of all arguments, as cuLaunchKernel takes them."""
        self._values = np.zeros((len(self.all), 2), np.uint64)      # 16 bytes for each
        for i, argument in enumerate(self.all):
            value = argument.value
            if isinstance(value, np.ndarray):
                self._values[i, 0] = self.address(value)
            elif value is not None:
                raw = np.frombuffer(value.tobytes(), np.uint8)
                self._values[i].view(np.uint8)[:raw.size] = raw
        base = self._values.ctypes.data
        return (ctypes.c_void_p * len(self.all))(*(base + 16 * i for i in range(len(self.all))))

    def regions(self):
        """Yield ``(start, stop, bytes of an element, name)`` of every array."""
        for argument in self.arrays:
            start = self.address(argument.value)
            yield (start, start + argument.value.nbytes, min(argument.value.itemsize, 4),
                   argument.name.encode())

    def copy_back(self, kernel):
        """Copy to the caller's arrays what the kernel may have written.

        Raises
        ------
        EmulationError
            If it wrote around the arrays.
        """
        self._check_guards(kernel)
        for argument in self.arrays:
            if not argument.read_only:
                array = argument.value
                ctypes.memmove(array.ctypes.data, self.address(array), array.nbytes)

    def _check_guards(self, kernel):
        """See whether all bytes around the arrays are what they were."""
        base = self._bytes.ctypes.data
        after = 0
        edges = [(to - base, to - base + end - start)
                 for (start, end), to in zip(self.spans, self.moved, strict=True)]
        for start, stop in [*edges, (self._bytes.size, None)]:
            touched = np.flatnonzero(self._bytes[after:start] != NAN)
            if touched.size:
                raise EmulationError(
                    f"{kernel} writes out of bounds, between {self._name(after)} and "
                    f"{self._name(start)}: race mode says where")
            after = stop

    def _name(self, byte):
        """Return the name of an array that starts or stops at a byte of the copy."""
        address = byte + self._bytes.ctypes.data
        for start, stop, _, name in self.regions():
            if address in (start, stop):
                return name.decode()
        return "the end of memory"


def _spans(arrays):
    """Return the ranges of addresses that arrays cover, with overlapping ones joined."""
    spans = []
    for start, size in sorted((a.ctypes.data, a.nbytes) for a in arrays):
        if spans and start < spans[-1][1]:
            spans[-1][1] = max(spans[-1][1], start + size)
        elif size:
            spans.append([start, start + size])
    return spans
