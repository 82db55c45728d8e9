"""Write notebooks/EQUATIONS.md: paper, equation, function, and the test that answers for it.

    python tests/equations.py            # or: make equations

Read from the sources: a public function of the mathematics cites its equations in its docstring,
and is answered for by the tests that import it, or by its own doctest.
"""
import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "notebooks" / "EQUATIONS.md"
MATHEMATICS = ("diffusion", "schedules", "grids", "targets", "losses", "cross_entropy", "vlb",
               "likelihood", "preconditioning", "guidance", "editing", "samplers", "oracle")
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{4,5})")
PLACE = re.compile(
    r"(?:Eqs?\.\s*[\d.]*\d(?:\s*(?:-|and)\s*[\d.]*\d)*|Algorithms?\s*\d+(?: and \d+)?"
    r"|Table\s*\d+|Sec\.\s*[\d.]*\d|App\.\s*[A-Z](?:[\d.]*\d)?"
    r"|(?:Theorem|Proposition)\s*[\d.]*\d)")


class Citation(NamedTuple):
    """One line of the page."""

    paper: str
    place: str
    function: str
    file: str
    tests: tuple


def public_functions():
    """Yield (file, qualified name, docstring) of the mathematics' public functions and classes."""
    for room in MATHEMATICS:
        path = ROOT / "tinydiff" / room
        files = sorted(path.glob("*.py")) if path.is_dir() else [path.with_suffix(".py")]
        for file in files:
            for node in ast.parse(file.read_text(encoding="utf-8")).body:
                public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name[0] != "_"
                bases = [getattr(base, "id", "") for base in getattr(node, "bases", [])]
                if public and not node.name.startswith("check_") and "NamedTuple" not in bases:
                    yield file, node.name, ast.get_docstring(node) or ""


def cited(docstring):
    """Yield (arXiv number, places) as the docstring names them."""
    text = " ".join(docstring.split())
    marks = list(ARXIV.finditer(text))
    for k, mark in enumerate(marks):
        end = marks[k + 1].start() if k + 1 < len(marks) else len(text)
        rest = text[mark.end():min(end, mark.end() + 90)].split(" .. [")[0].split("Examples")[0]
        yield mark.group(1), ", ".join(place.strip() for place in PLACE.findall(rest))


def answered_by(name, sources):
    """Return the test files that import a function, or the table that a sampler stands in."""
    asked = {name, *(["SAMPLERS"] if name.endswith("_sample") else [])}
    return tuple(file for file, names in sources if asked & names)


def files_of_tests():
    """Return (file name, names that it imports from the package) of every test file."""
    return [(file.name, imported(file.read_text(encoding="utf-8")))
            for file in sorted((ROOT / "tests").glob("test_*.py"))]


def imported(source):
    """Return the names that a file imports from the package."""
    return {alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom)
            and (node.module or "").startswith("tinydiff") for alias in node.names}


def citations():
    """Return all lines of the page, by paper."""
    sources, lines = files_of_tests(), []
    for file, name, docstring in public_functions():
        tests = answered_by(name, sources) or (("its doctest",) if ">>>" in docstring else ())
        lines += [Citation(paper, place, name, str(file.relative_to(ROOT).as_posix()), tests)
                  for paper, place in cited(docstring)]
    return sorted(set(lines))


def page():
    """Return the text of the page."""
    lines = ["# Equations", "",
             "Which line of which paper is which function, and what answers for it. Made by",
             "`make equations` from the docstrings; do not edit by hand.", "",
             "| paper | where | function | tests |", "|---|---|---|---|"]
    for c in citations():
        tests = ", ".join(f"[{t}](../tests/{t})" if t.endswith(".py") else t for t in c.tests)
        paper = f"[{c.paper}](https://arxiv.org/abs/{c.paper})"
        lines.append(f"| {paper} | {c.place or 'throughout'} | [`{c.function}`](../{c.file}) | "
                     f"{tests} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(citations())} equations")
