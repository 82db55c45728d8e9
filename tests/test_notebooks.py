"""Every notebook asks one question, keeps to the format, and runs: what it asserts is true.

A notebook is run as a script, in a process and a folder of its own.  So are the answers to its
exercise: the right one passes the test below it, a wrong one fails.
"""
import ast
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tinydiff.kernels.emulator import obstacle

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))
NAMES = [path.stem for path in NOTEBOOKS]
UNSOLVED = re.compile(r"raise NotImplementedError\(.*\)")

ANSWERS = {                             # notebook: (right answer, wrong answer)
    "01_forward_process": ("return np.sqrt(np.cumprod(1 - beta))", "return np.cumprod(1 - beta)"),
    "02_exact_score": (
        """x0_hat = (x_t + level.noise**2 * score) / level.signal
    return x0_hat, -level.noise * score""",
        "return (x_t + level.noise * score) / level.signal, -level.noise * score"),
    "11_ddim": ("return s.signal * x0_hat + s.noise * eps_hat",
                "return s.signal * x0_hat - s.noise * eps_hat"),
    "12_solvers_and_their_order": (
        "return -np.polyfit(np.log(steps), np.log(errors), 1)[0]",
        "return np.log(errors[0] / errors[1])"),
    "13_bug_museum": (
        "return np.allclose(step(x_t, x0, eps, t, s), q_sample(x0, eps, s.signal, s.noise))",
        "return np.isfinite(step(x_t, x0, eps, t, s)).all()"),
    "17_clip": (
        """rows = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    columns = np.exp(s) / np.exp(s).sum(axis=0, keepdims=True)
    return (rows + columns - 2 * np.eye(len(s))) / (2 * len(s))""",
        """rows = np.exp(s) / np.exp(s).sum(axis=1, keepdims=True)
    return (rows - np.eye(len(s))) / len(s)"""),
    "18_cross_attention": (
        """(B, N, D), M, d = q.shape, k.shape[1], q.shape[2] // h
    q, k = q.reshape(B, N, h, d), k.reshape(B, M, h, d)
    s = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(d))
    return s / s.sum(axis=-1, keepdims=True)""",
        """(B, N, D), M, d = q.shape, k.shape[1], q.shape[2] // h
    q, k = q.reshape(B, N, h, d), k.reshape(B, M, h, d)
    s = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(D))
    return s / s.sum(axis=-1, keepdims=True)"""),
    "19_autoencoder": (
        """ratio = np.exp(logvar_a - logvar_b)
    off = (mean_a - mean_b)**2 / np.exp(logvar_b)
    return ((off + ratio - 1 - np.log(ratio)) / 2).mean()""",
        "return ((mean_a - mean_b)**2 + np.exp(logvar_a) - 1 - logvar_a).mean() / 2"),
    "20_prompt_to_picture": (
        """from tinydiff.diffusion import posterior
    mean, variance = posterior(x_t, x0_hat, t, s)
    return mean + variance**0.5 * z""",
        "return s.signal * x0_hat + s.noise * z"),
    "25_single_step_a_kernel": (
        """o = cuda.grid(1)
    if o >= dbias.shape[0]:
        return
    total = 0.0
    for n in range(dy.shape[0]):
        for p in range(dy.shape[2]):
            for q in range(dy.shape[3]):
                total += dy[n, o, p, q]
    dbias[o] = total""",
        """o = cuda.grid(1)
    if o < dbias.shape[0]:
        dbias[o] = dy[0, o, 0, 0]"""),
    "26_cuda_from_naive_to_fast": ("return 1", "return 2"),
}
NEEDS = {"25_single_step_a_kernel": "numba"}      # what not every installation has
EMULATED = {"26_cuda_from_naive_to_fast"}


def cells(path):
    """Return the kind, "code" or "markdown", and the text of every cell."""
    parts = re.split(r"^# %%(.*)\n", path.read_text(encoding="utf-8"), flags=re.M)[1:]
    return [("markdown" if "[markdown]" in mark else "code", text.strip("\n"))
            for mark, text in zip(parts[::2], parts[1::2], strict=True)]


def run(source, folder):
    """Run a notebook's text as a script in an empty folder; return the finished process."""
    script = folder / "source" / "notebook.py"
    script.parent.mkdir()
    script.write_text(source, encoding="utf-8")
    here = folder / "here"
    here.mkdir()
    environment = {**os.environ, "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT),
                   "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run([sys.executable, "-W", "error", str(script)], cwd=here, env=environment,
                          capture_output=True, text=True, encoding="utf-8", timeout=300)
    assert list(here.iterdir()) == [], "a notebook leaves no files behind"
    return done


def skip_if_something_is_missing(path):
    """Skip the notebook of a library that is not installed."""
    if path.stem in NEEDS and not find_spec(NEEDS[path.stem]):
        pytest.skip(f"{NEEDS[path.stem]} is not installed")
    if path.stem in EMULATED and obstacle():
        pytest.skip(obstacle())


def test_there_are_notebooks():
    assert NOTEBOOKS
    assert ANSWERS.keys() == set(NAMES), "every notebook has an exercise, answered here"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_in_the_percent_format_and_asks_one_question(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ---\n# jupyter:\n#   jupytext:\n")
    assert "format_name: percent" in text

    kind, title = cells(path)[0]
    assert kind == "markdown"
    assert re.fullmatch(r"# # .+\?", title.splitlines()[0]), "the title is a question"
    headings = [line for kind, text in cells(path) if kind == "markdown"
                for line in text.splitlines() if line.startswith("# # ")]
    assert len(headings) == 1


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_the_cells_of_a_notebook_are_small_and_well_formed(path):
    for kind, text in cells(path):
        if kind == "markdown":
            assert all(line.startswith("#") for line in text.splitlines()), text
            assert text.count("$$") % 2 == 0, text
        else:
            ast.parse(text)
            assert text, "an empty cell"
            assert len(text.splitlines()) <= 15, text
    code = [text for kind, text in cells(path) if kind == "code"]
    asserting = [text for text in code if "assert" in text]
    assert len(asserting) >= len(code) / 3, "what is claimed is asserted"
    assert any(UNSOLVED.search(text) for text in code[:-1]), "an exercise, above its test"
    assert "SEED =" in code[0], "the seed stands at the top"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_jupytext_makes_the_same_cells_of_a_notebook(path):
    jupytext = pytest.importorskip("jupytext", reason="jupytext is a development tool")
    notebook = jupytext.read(path)
    assert [cell.cell_type for cell in notebook.cells] == [kind for kind, _ in cells(path)]
    assert notebook.metadata.kernelspec.name == "python3"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_runs_in_a_minute(path, tmp_path):
    skip_if_something_is_missing(path)
    source = path.read_text(encoding="utf-8")
    before = os.times()
    done = run(source, tmp_path)
    after = os.times()
    assert done.returncode == 0, done.stderr
    assert "not solved yet" in done.stdout.splitlines()[-1]
    # Processor time: the clock on the wall also counts what else the machine does.
    used = (after.children_user + after.children_system
            - before.children_user - before.children_system)
    assert used < 60, f"{used:.0f} s of processor time"


@pytest.mark.slow                        # two more runs of each
@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_an_exercise_knows_right_from_wrong(path, tmp_path):
    skip_if_something_is_missing(path)
    source = path.read_text(encoding="utf-8")
    right, wrong = ANSWERS[path.stem]
    (tmp_path / "right").mkdir()
    done = run(UNSOLVED.sub(lambda _: right, source), tmp_path / "right")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].startswith("right")

    (tmp_path / "wrong").mkdir()
    done = run(UNSOLVED.sub(lambda _: wrong, source), tmp_path / "wrong")
    assert done.returncode == 1
    assert "AssertionError" in done.stderr
