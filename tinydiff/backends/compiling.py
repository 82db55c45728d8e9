"""When the kernels are compiled: ahead, and never in the middle of a picture.

It takes about a minute, once for each processor and each version.  So a command that would be done
before that runs the readable path and says how to be faster; a training run compiles first.
"""
import os
import subprocess
import sys
from importlib import import_module

from tinydiff.backends.threads import obstacle

COMPILE = "python -m tinydiff.kernels.cpu compiles them, once, in about a minute"


def to_compile():
    """Say whether kernels could run here, but nobody has compiled them yet."""
    return not obstacle() and not import_module("tinydiff.kernels.cpu.jit").compiled()


def remind():
    """Say on stderr how to get the fast path, where it only waits for being compiled."""
    if "TINYDIFF_USE" not in os.environ and to_compile():
        print(f"running the readable path: the fast kernels are not compiled yet; {COMPILE}",
              file=sys.stderr)


def compile_first():
    """Compile the kernels if they wait for it, and use them: a long run is worth the minute.

    In a process of its own, which then starts others: from this one that would only do in a script
    that keeps to ``if __name__ == "__main__"``.
    """
    from tinydiff.backends.table import use

    if "TINYDIFF_USE" not in os.environ and to_compile():
        print("compiling the fast kernels, once: about a minute")
        path = os.pathsep.join(filter(None, sys.path))                # what is importable here
        done = subprocess.run([sys.executable, "-m", "tinydiff.kernels.cpu"],
                              env={**os.environ, "PYTHONPATH": path}, check=False)
        if done.returncode:
            raise ValueError("the fast kernels could not be compiled, see above; "
                             "TINYDIFF_USE=reference runs without them")
        use("fast")
