"""Break every backward pass, one sign at a time, and see that a test notices.

    make mutations                                                 # about an hour on two cores
    python tests/mutations.py --only "tinydiff/ops/*.py"           # some files
    python tests/mutations.py --max 20                             # an even sample
    python tests/mutations.py --list                               # only print the mutants

A mutant is the source with one change inside a function that computes gradients: one whose name
contains "backward", a private function that only those call, or any function of losses.py and
cross_entropy.py.

=========  ====================================================
flip       ``a + b`` becomes ``a - b``, and the other way round;
           ``a += b`` becomes ``a -= b``, and the other way round
negate     a returned value, an argument of ``accumulate``, or
           the first argument of a ``backward`` changes its sign
drop       ``a + b`` or ``a - b`` becomes ``a`` or ``b``;
           ``a += b`` or ``a.accumulate(b)`` is left out
=========  ====================================================

Each is written into a copy of the tree, where pytest runs the tests of that file (`TESTS`) until
one fails.  A mutant that no test notices is printed, and the exit code is 1, unless `EQUIVALENT`
says why it computes the same.
"""
import argparse
import ast
import copy
import os
import queue
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor, as_completed
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300                                      # seconds; a mutant that hangs has been noticed

# The tests that answer for each file: patterns below tests/, quickest first.
TESTS = {
    "tinydiff/ops/activations.py": ["test_ops_activations.py"],
    "tinydiff/ops/attention.py": ["test_ops_attention.py"],
    "tinydiff/ops/concat.py": ["test_ops_linear.py"],
    "tinydiff/ops/conv.py": ["test_ops_conv.py"],
    "tinydiff/ops/dropout.py": ["test_ops_linear.py"],
    "tinydiff/ops/embedding.py": ["test_ops_linear.py"],
    "tinydiff/ops/gaussian.py": ["test_ops_gaussian.py"],
    "tinydiff/ops/gelu.py": ["test_ops_activations.py"],
    "tinydiff/ops/linear.py": ["test_ops_linear.py"],
    "tinydiff/ops/modulate.py": ["test_ops_modulate.py"],
    "tinydiff/ops/norm.py": ["test_ops_norm.py"],
    "tinydiff/ops/norm_silu.py": ["test_ops_norm_silu.py"],
    "tinydiff/ops/patches.py": ["test_ops_linear.py"],
    "tinydiff/ops/resize.py": ["test_ops_linear.py"],
    "tinydiff/ops/softmax.py": ["test_ops_attention.py"],
    "tinydiff/ops/transpose.py": ["test_ops_linear.py"],
    "tinydiff/ops/unit.py": ["test_ops_norm.py"],
    "tinydiff/nn/*.py": ["test_nn*.py", "test_clip_text.py", "test_unet*.py"],
    "tinydiff/models/autoencoder*.py": ["test_autoencoder*.py"],
    "tinydiff/models/clip_text.py": ["test_clip_text.py"],
    "tinydiff/models/clip*.py": ["test_clip.py", "test_clip_parity.py", "test_clip_text.py"],
    "tinydiff/models/classifier.py": ["test_classifier.py"],
    "tinydiff/models/dit*.py": ["test_dit.py"],
    "tinydiff/models/patches.py": ["test_dit.py", "test_clip_parity.py"],
    "tinydiff/models/*.py": ["test_unet*.py"],
    "tinydiff/losses.py": ["test_losses.py", "test_autoencoder.py"],
    "tinydiff/cross_entropy.py": ["test_classifier.py", "test_clip.py"],
    "tinydiff/recipes/latent_diffusion.py": ["test_latent_diffusion.py"],
    "tinydiff/recipes/text_to_image.py": ["test_unet.py"],
    "tinydiff/recipes/class_to_image.py": ["test_class_to_image.py"],
    "tinydiff/recipes/classifier.py": ["test_classifier_recipe.py"],
}

LOSSES = ("losses.py", "cross_entropy.py")        # every function of these computes a gradient

# (file, function, change): why it computes the same
EQUIVALENT = {}


class Mutant(NamedTuple):
    """One change: where it is, what it says, and the whole mutated source."""

    path: str
    function: str
    line: int
    change: str
    source: str

    def __str__(self):
        return f"{self.path}:{self.line} {self.function}: {self.change}"


# ---- making mutants ----

def negative(node):
    return ast.UnaryOp(ast.USub(), node)


def flipped(node):
    node = copy.copy(node)
    node.op = ast.Sub() if isinstance(node.op, ast.Add) else ast.Add()
    return node


def is_sum(node):
    return (isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.Add | ast.Sub)
            and not isinstance(node.right if isinstance(node, ast.BinOp) else node.value,
                               ast.JoinedStr))


def returned(node):
    """Give the parts of a return value that are gradients: not None, not a condition's None."""
    if isinstance(node, ast.Tuple):
        return [part for element in node.elts for part in returned(element)]
    if isinstance(node, ast.IfExp):
        return returned(node.body) + returned(node.orelse)
    return [] if node is None or isinstance(node, ast.Constant) else [node]


def changes(node):
    """Yield ``(old node, new node)`` for every change that starts at `node`."""
    if is_sum(node):
        yield node, flipped(node)
        if isinstance(node, ast.AugAssign):
            yield node, ast.Pass()
        else:
            yield node, node.left
            yield node, node.right if isinstance(node.op, ast.Add) else negative(node.right)
    if isinstance(node, ast.Return):
        yield from ((part, negative(part)) for part in returned(node.value))
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
        if node.func.attr in ("accumulate", "backward"):
            yield node.args[0], negative(node.args[0])
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        if getattr(node.value.func, "attr", None) == "accumulate":
            yield node, ast.Pass()


def gradient_functions(tree, every):
    """Give the functions of a module that compute gradients."""
    functions = [f for f in ast.walk(tree) if isinstance(f, ast.FunctionDef)]
    if every:
        return functions
    backward = [f for f in functions if "backward" in f.name]
    while True:
        names = {id(f): {n.id for n in ast.walk(f) if isinstance(n, ast.Name)} for f in functions}
        here, elsewhere = set(), set()
        for f in functions:
            (here if f in backward else elsewhere).update(names[id(f)])
        helpers = [f for f in functions if f not in backward and f.name.startswith("_")
                   and f.name in here - elsewhere]
        if not helpers:
            return backward
        backward += helpers


class Replace(ast.NodeTransformer):
    """Put `new` where `old` stands."""

    def __init__(self, old, new):
        self.old, self.new = old, new

    def visit(self, node):
        return self.new if node is self.old else self.generic_visit(node)


def mutants(path):
    """List the mutants of one file, in the order of its lines."""
    text = (ROOT / path).read_text(encoding="utf-8")
    tree = ast.parse(text)
    found = []
    for function in gradient_functions(tree, every=path.endswith(LOSSES)):
        count = sum(1 for node in ast.walk(function) for _ in changes(node))
        for k in range(count):
            fresh = copy.deepcopy(function)        # NodeTransformer edits in place
            old, new = [c for node in ast.walk(fresh) for c in changes(node)][k]
            line, change = old.lineno, f"{ast.unparse(old)}  ->  {ast.unparse(new)}"
            body = ast.unparse(ast.fix_missing_locations(Replace(old, new).visit(fresh)))
            source = replaced(text, function, body)
            found.append(Mutant(path, function.name, line, change, source))
    return sorted(found, key=lambda m: m.line)


def replaced(text, function, body):
    """Give `text` with the lines of `function` exchanged for `body`."""
    lines = text.splitlines()
    first = min([function.lineno, *(d.lineno for d in function.decorator_list)]) - 1
    indent = " " * function.col_offset
    new = [indent + line for line in body.splitlines()]
    return "\n".join(lines[:first] + new + lines[function.end_lineno:]) + "\n"


# ---- running the tests on them ----

def answering_tests(path):
    """List the test files that answer for `path`."""
    patterns = next(tests for pattern, tests in TESTS.items() if fnmatch(path, pattern))
    files = [str(f.relative_to(ROOT)) for p in patterns for f in sorted((ROOT / "tests").glob(p))]
    if not files:
        sys.exit(f"no test answers for {path}: there is no tests/{' or tests/'.join(patterns)}")
    return files


def all_pass(tree, files):
    """Run pytest on `files` in the copy `tree` until one test fails; say whether none did."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
               "-m", "not slow and not gpu", *files]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    try:
        done = subprocess.run(command, cwd=tree, env=environment, timeout=TIMEOUT,
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def copy_tree(folder):
    """Copy what the tests need, without compiled files: they could hide a change."""
    for name in ("tinydiff", "tests", "kernels", "data"):
        ignore = shutil.ignore_patterns("__pycache__", "models", "*.pyc") if name == "data" else (
            shutil.ignore_patterns("__pycache__", "*.pyc"))
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    for name in ("pyproject.toml", "conftest.py"):
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)


def survives(mutant, trees):
    """Say whether the tests pass on `mutant`, in a tree that no other thread is using."""
    tree = trees.get()
    file = tree / mutant.path
    original = file.read_bytes()
    try:
        file.write_text(mutant.source, encoding="utf-8")
        return all_pass(tree, answering_tests(mutant.path))
    finally:
        file.write_bytes(original)
        trees.put(tree)


def chosen(only, limit):
    """List the mutants asked for; `limit` takes an even sample."""
    paths = sorted({file.relative_to(ROOT).as_posix()
                    for pattern in TESTS for file in ROOT.glob(pattern)})
    if only:
        paths = [p for p in paths if fnmatch(p, only)]
    found = [m for path in paths for m in mutants(path)]
    if limit and limit < len(found):
        found = [found[i * len(found) // limit] for i in range(limit)]
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="FILE", help="a path below the root, * allowed")
    parser.add_argument("--max", type=int, metavar="N", help="try an even sample of N mutants")
    parser.add_argument("--jobs", type=int, default=2, help="tests running at once (2)")
    parser.add_argument("--list", action="store_true", help="print the mutants and stop")
    options = parser.parse_args()

    found = chosen(options.only, options.max)
    if options.list:
        print(*found, sep="\n")
        return 0
    if not found:
        sys.exit(f"no mutants in {options.only}")

    with tempfile.TemporaryDirectory() as folder:
        trees = queue.Queue()
        for i in range(options.jobs):
            trees.put(tree := Path(folder, str(i)))
            copy_tree(tree)
        files = sorted({f for m in found for f in answering_tests(m.path)})
        if not all_pass(tree, files):
            sys.exit(f"the tests fail before any change: {' '.join(files)}")

        survivors = []
        with ThreadPoolExecutor(options.jobs) as pool:
            futures = {pool.submit(survives, mutant, trees): mutant for mutant in found}
            for future in tqdm(as_completed(futures), total=len(found), unit="mutant"):
                if future.result():
                    survivors.append(futures[future])
                    tqdm.write(f"survived: {futures[future]}")

    excused = [m for m in survivors if (m.path, m.function, m.change) in EQUIVALENT]
    missed = sorted(set(survivors) - set(excused))
    print(f"{len(found)} mutants, {len(found) - len(survivors)} noticed, "
          f"{len(excused)} equivalent, {len(missed)} missed")
    print(*(f"missed: {m}" for m in missed), sep="\n", end="\n" if missed else "")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
