"""Write down what CuPy offers: cupy.json, from which tests/standin.py answers as CuPy would.

    pip install cupy-cuda13x numpy && python tests/reference/make_cupy.py

Importing CuPy takes no driver.  A signature is written as "tup, axis=, *, dtype=": the names in
order, "=" where there is a default, "*" before those that go by name only, "*args" and "**more".
"""
import inspect
import json
import re
from pathlib import Path

import cupy
import cupyx.scipy.special
import numpy as np

MODULES = (np, np.linalg, np.fft, np.lib.stride_tricks)      # where NumPy dispatches from


def counterpart(module, name):
    """Look `name` of NumPy's `module` up as ``cupy.ndarray.__array_function__`` does."""
    found = cupy
    for part in [*module.split(".")[1:], name]:
        found = getattr(found, part, None)
    return found


def written(signature):
    """Write a signature in the short form above."""
    parts, stars = [], False
    for p in signature.parameters.values():
        if p.kind is p.VAR_POSITIONAL:
            parts.append(f"*{p.name}")
            stars = True
        elif p.kind is p.VAR_KEYWORD:
            parts.append(f"**{p.name}")
        else:
            if p.kind is p.KEYWORD_ONLY and not stars:
                parts.append("*")
                stars = True
            parts.append(p.name + ("=" if p.default is not p.empty else ""))
    return ", ".join(parts)


def functions():
    """Return the signatures of NumPy's functions that resolve to another function in CuPy."""
    found = {}
    for function in (getattr(module, name) for module in MODULES for name in dir(module)):
        module, name = getattr(function, "__module__", ""), getattr(function, "__name__", "")
        if isinstance(function, (type, np.ufunc)) or not (module or "").startswith("numpy"):
            continue
        ours = counterpart(module, name)
        if callable(ours) and ours is not function:
            try:
                found[f"{module}.{name}"] = written(inspect.signature(ours))
            except ValueError:                            # compiled, and does not say
                found[f"{module}.{name}"] = "*args, **kwargs"
    return found


def methods():
    """Return the signatures of an array's methods, from the first line of their texts."""
    found = {}
    for name in dir(cupy.ndarray):
        member = getattr(cupy.ndarray, name)
        line = (getattr(member, "__doc__", None) or "").partition("\n")[0]
        match = re.match(rf"_ndarray_base\.{name}\(self(?:, )?(.*)\)(?: ->.*)?$", line)
        if name.startswith("_") or not (callable(member) and match):
            continue
        arguments = [a.split("=") for a in match[1].split(", ") if a]
        found[name] = ", ".join(a[0].split()[-1] + "=" * (len(a) > 1) for a in arguments)
    return found


def ufuncs(module):
    """Return the names of NumPy's and SciPy's ufuncs that `module` has under the same name."""
    import scipy.special

    theirs = {u.__name__ for m in (np, scipy.special) for u in vars(m).values()
              if isinstance(u, np.ufunc)}
    return sorted(name for name in theirs if callable(getattr(module, name, None)))


if __name__ == "__main__":
    record = {"cupy": cupy.__version__, "numpy": np.__version__, "functions": functions(),
              "methods": methods(), "ufuncs": ufuncs(cupy),
              "special": ufuncs(cupyx.scipy.special)}
    path = Path(__file__).with_name("cupy.json")
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"{path}: {len(record['functions'])} functions, {len(record['methods'])} methods")
