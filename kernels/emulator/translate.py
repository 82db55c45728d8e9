"""What must change in a .cu file before a C++ compiler can read it: two things.

``__shared__ float tile[A][B];``
    declares memory that all threads of a block share.  It becomes a reference to an array that the
    runtime keeps for the block: ``auto& tile = shared_array<float[A][B]>(...);``.

``extern "C" __global__ void f(...)``
    is started on a device by name.  A line at the end of the text exports what starts it here.

Lines keep their numbers.  All other words of CUDA are functions and macros, in cuda.h.
"""
import re
from typing import NamedTuple

COMMENT = re.compile(r'//[^\n]*|/\*.*?\*/', re.S)
SHARED = re.compile(r"(?P<dynamic>extern\s+)?\b__shared__\s+(?P<rest>[^;]+);")
ALIGNED = re.compile(r"\b(?:__align__|alignas)\s*\([^)]*\)\s*")
DECLARED = re.compile(r"(?P<name>\w+)\s*(?P<sizes>(?:\[[^\]]*\]\s*)*)$")
KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?'
                    r"(?P<name>\w+)\s*\((?P<parameters>[^)]*)\)")


class Translated(NamedTuple):
    """A kernel file in C++.

    Attributes
    ----------
    text : str
    kernels : dict of str to list of str
        The names of each kernel's parameters.
    """

    text: str
    kernels: dict


def without_comments(text):
    """Return `text` with spaces in place of comments, so that places stay where they are."""
    return COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)


def translate(text):
    """Return a kernel file's text, as `tinydiff.kernels.source.source` gives it, in C++."""
    bare = without_comments(text)
    pieces, end = [], 0
    for match in SHARED.finditer(bare):
        pieces += [text[end:match.start()], _shared(match)]
        end = match.end()
    pieces.append(text[end:])
    kernels = {match["name"]: _parameters(match["parameters"]) for match in KERNEL.finditer(bare)}
    exports = "\n".join(f"EXPORT({name})" for name in kernels)
    return Translated(f'{"".join(pieces)}\n{exports}\n', kernels)


def _shared(match):
    """Translate one declaration of shared memory; it may name several arrays of one type."""
    first, *others = _split(ALIGNED.sub("", match["rest"]))
    declared = DECLARED.search(first)
    kind = first[:declared.start()].strip()
    lines = []
    for each in (declared[0], *others):
        declared = DECLARED.search(each.strip())
        name, sizes = declared["name"], declared["sizes"].strip()
        lines.append(
            f"{kind}* {name} = dynamic_shared<{kind}>();" if match["dynamic"] else
            f"auto& {name} = shared_array<{kind} {sizes}>"
            f'("{name}", __PRETTY_FUNCTION__, __LINE__);')
    # As many lines as the declaration had.
    return " ".join(lines) + "\n" * match[0].count("\n")


def _parameters(text):
    """Return the names in a list of parameters."""
    return [DECLARED.search(each.strip())["name"] for each in _split(text)] if text.strip() else []


def _split(text):
    """Split at commas that no bracket encloses.

    Examples
    --------
    >>> _split("float a[f(1, 2)], b")
    ['float a[f(1, 2)]', ' b']
    """
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{<") - (character in ")]}>")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return parts
