"""The text of a .cu file as one piece, which each compiler takes as it is.

CuPy, the compile-only check and the emulator all compile this text; none of them needs to be told
where the folder is.
"""
import re
from pathlib import Path

FOLDER = Path(__file__).parent
INCLUDE = re.compile(r'^#include "([^"]+)"[^\n]*$', re.M)


def source(file):
    """Return the text of a kernel file with its own headers in place of their ``#include``.

    Parameters
    ----------
    file : str
        A name in this folder, such as "conv2d.cu", or the path of a file anywhere; or the text
        itself, of several lines, which is called kernel.cu.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    """
    if "\n" in file:
        path, text = FOLDER / "kernel.cu", file
    else:
        path = FOLDER / file            # an absolute path stays what it is
        if not path.is_file():
            there = ", ".join(sorted(p.name for p in FOLDER.glob("*.cu")))
            raise FileNotFoundError(f"no kernel file {file!r} in {FOLDER}: there are {there}")
        text = path.read_text(encoding="utf-8")

    return _pasted(text, path.name, set())


def _pasted(text, name, seen):
    """Return a text in which the headers that are not in `seen` yet stand where they are asked."""
    def header(match):
        line = text.count("\n", 0, match.start()) + 1
        if match[1] in seen:
            return ""
        seen.add(match[1])
        inside = _pasted((FOLDER / match[1]).read_text(encoding="utf-8"), match[1], seen)
        return f'{inside}\n#line {line + 1} "{name}"'

    return f'#line 1 "{name}"\n' + INCLUDE.sub(header, text)


def stem(file):
    r"""Return what `source` calls a file, without its ending.

    Examples
    --------
    >>> stem("conv2d.cu"), stem("// a text\n")
    ('conv2d', 'kernel')
    """
    return "kernel" if "\n" in file else Path(file).stem


def definitions(macros):
    """Return compiler options that define `macros`, a dict: ``-DTILE=16``.

    Examples
    --------
    >>> definitions({"TILE": 16, "CAUSAL": True})
    ('-DCAUSAL=1', '-DTILE=16')
    """
    return tuple(f"-D{name}={int(value) if isinstance(value, bool) else value}"
                 for name, value in sorted(macros.items()))
