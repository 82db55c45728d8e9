"""Stop a kernel in one thread: for Numba's simulator, where a CUDA thread is a thread of Python.

`stop_at` writes ``if ...: breakpoint()`` into a copy of a kernel.  `typing` answers the debugger
with commands that stand in a list, so that a session can stand in a notebook or in a test.
"""
import inspect
import io
import linecache
import pdb
import sys


def stop_at(kernel, line, when):
    """Return a copy of a kernel that calls `breakpoint` in one thread.

    Parameters
    ----------
    kernel : kernel of `numba.cuda`
    line : str
        How the line begins before which to stop.
    when : str
        The condition on the kernel's variables that is true in that thread alone.

    Returns
    -------
    kernel : kernel of `numba.cuda`

    Raises
    ------
    ValueError
        If no line of the kernel, or more than one, begins so.
    """
    function = kernel.py_func
    text = inspect.getsource(function).splitlines(keepends=True)
    found = [number for number, each in enumerate(text) if each.strip().startswith(line)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} lines of {function.__name__} begin with {line!r}")
    indent = text[found[0]][:len(text[found[0]]) - len(text[found[0]].lstrip())]
    text.insert(found[0], f"{indent}if {when}: breakpoint()\n")

    name = f"<{function.__name__}, stopped when {when}>"
    linecache.cache[name] = (len(text), None, text, name)       # what the debugger shows
    space = dict(function.__globals__)
    exec(compile("".join(text), name, "exec"), space)
    return space[function.__name__]


class typing:  # noqa: N801 - reads as a verb: with typing("p q", "continue") as session
    """Type commands into the debugger, where it stops inside of a ``with`` block.

    Parameters
    ----------
    *commands : str
        As one types them at the prompt of pdb; "continue" is added at the end.

    Attributes
    ----------
    transcript : str
        What the debugger said, each command behind its prompt.
    stops : int
        How often it was called.
    """

    def __init__(self, *commands):
        self.commands = (*commands, "continue")
        self.stops = 0
        self._said = io.StringIO()

    def __enter__(self):
        self._hook, sys.breakpointhook = sys.breakpointhook, self._stop
        return self

    def __exit__(self, *fault):
        sys.breakpointhook = self._hook

    @property
    def transcript(self):
        """What the debugger said so far."""
        return self._said.getvalue()

    def _stop(self):
        """Start a debugger in the frame that called `breakpoint`, in whatever thread it runs."""
        self.stops += 1
        debugger = pdb.Pdb(stdin=_Typist(self.commands, self._said), stdout=self._said,
                           nosigint=True, readrc=False)
        debugger.set_trace(sys._getframe(1))


class _Typist(io.StringIO):
    """Standard input that shows each line which is read from it, as a terminal does."""

    def __init__(self, commands, screen):
        super().__init__("".join(f"{command}\n" for command in commands))
        self._screen = screen

    def readline(self, *size):
        line = super().readline(*size)
        self._screen.write(line)
        return line
