"""The array and the mode decide what runs behind an operation, and a user can always tell."""
import inspect
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tinydiff
from tinydiff import ops
from tinydiff.backends import table, threads
from tinydiff.optim import adamw_update

needs_numba = pytest.mark.skipif(table.obstacle() is not None, reason=str(table.obstacle()))


@pytest.fixture
def doubled(monkeypatch):
    """Put a kernel behind silu that knows float32 only, and doubles."""
    def silu_forward(x):
        return (2 * x, table.Saved(silu_backward, (x,))) if x.dtype == np.float32 else (
            NotImplemented)

    def silu_backward(dy, arrays, **options):
        return 2 * dy, arrays, options

    monkeypatch.setitem(table._loaded, ("silu_forward", "cpu"), silu_forward)
    monkeypatch.setattr(table, "obstacle", lambda: None)
    monkeypatch.setattr(table, "_mode", "fast")


def fresh(code, hide=(), **environment):
    """Run `code` in a fresh process in which the modules of `hide` cannot be imported."""
    hiding = f"import sys; sys.modules.update(dict.fromkeys({list(hide)}))\n"
    kept = {n: v for n, v in os.environ.items() if n not in ("TINYDIFF_USE", "NUMBA_NUM_THREADS")}
    return subprocess.run([sys.executable, "-c", hiding + code], capture_output=True, text=True,
                          env={**kept, "OMP_NUM_THREADS": "1", **environment})


# ---- which of the two runs ----

@pytest.mark.parametrize("mode", ["fast", "precise"])
def test_a_kernel_replaces_the_definition_unless_the_reference_is_asked_for(doubled, monkeypatch,
                                                                             mode):
    x = np.ones(3, np.float32)
    monkeypatch.setattr(table, "_mode", mode)
    assert (ops.silu_forward(x)[0] == 2).all()
    with tinydiff.use("reference"):
        assert (ops.silu_forward(x)[0] < 1).all()
    assert (ops.silu_forward(x=x)[0] == 2).all()
    assert (ops.silu_forward.reference(x)[0] < 1).all()


def test_what_a_kernel_does_not_know_goes_to_the_definition(doubled):
    x = np.ones(3)
    y, cache = ops.silu_forward(x)
    want, reference_cache = ops.silu_forward.reference(x)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(ops.silu_backward(x, cache),
                                  ops.silu_backward.reference(x, reference_cache))


def test_whoever_ran_the_forward_pass_runs_the_backward_pass(doubled):
    x = np.ones(3, np.float32)
    _, fast = ops.silu_forward(x)
    with tinydiff.use("reference"):
        _, readable = ops.silu_forward(x)
        dx, arrays, options = ops.silu_backward(x, fast, needs_dx=False)
    assert (dx == 2).all() and arrays == fast.arrays and options == {"needs_dx": False}
    assert isinstance(ops.silu_backward(x, readable), np.ndarray)


REPLACEABLE = [getattr(ops, f"{op}_{direction}") for op in table.TABLE if op != "adamw"
               for direction in ("forward", "backward")] + [adamw_update]


@pytest.mark.parametrize("function", REPLACEABLE)
def test_an_operation_looks_like_its_definition(function):
    assert function.__doc__ and function.reference.__name__ == function.__name__
    assert inspect.signature(function) == inspect.signature(function.reference)


@needs_numba
@pytest.mark.parametrize("function", [
    f for f in REPLACEABLE if "backward" not in f.__name__ and "softmax" not in f.__name__])
def test_each_entry_of_the_table_takes_the_arguments_of_its_operation(function):
    with tinydiff.use("fast"):
        fast = table.kernel(function.__name__)
    assert fast.__name__ == function.__name__
    assert inspect.signature(fast) == inspect.signature(function)


# ---- choosing ----

def test_a_mode_lasts_until_the_next_or_to_the_end_of_its_block(monkeypatch):
    monkeypatch.setattr(table, "_mode", None)
    monkeypatch.setattr(table, "obstacle", lambda: None)
    monkeypatch.setattr(table, "_default", "fast")
    monkeypatch.setattr(table, "_wish", None)
    with tinydiff.use("precise"):
        assert table.mode() == "precise"
        with pytest.raises(KeyError), tinydiff.use("reference"):
            assert table.mode() == "reference"
            raise KeyError
        assert table.mode() == "precise"
        tinydiff.use("reference")
        assert table.mode() == "reference"
    assert table.mode() == "fast"


@pytest.mark.parametrize("mode", ["Fast", "", "slow", None])
def test_an_unknown_mode_is_named_and_changes_nothing(mode):
    before = table.mode()
    with pytest.raises(ValueError, match=f"^mode {mode!r}: there are fast, precise, reference$"):
        tinydiff.use(mode)
    assert table.mode() == before


def test_the_environment_sets_the_mode_at_the_start(monkeypatch):
    monkeypatch.setattr(table, "_mode", None)
    monkeypatch.setattr(table, "_wish", "reference")
    assert table.mode() == "reference"
    monkeypatch.setattr(table, "_mode", None)
    monkeypatch.setattr(table, "_wish", "fats")
    with pytest.raises(ValueError, match=r"^TINYDIFF_USE='fats': there are fast, precise"):
        table.mode()


def test_a_wrong_mode_in_the_environment_is_one_line():
    done = fresh("from tinydiff.cli import main; main(['info'])", TINYDIFF_USE="fats")
    assert done.returncode == 2
    assert done.stderr == ("tinydiff: error: TINYDIFF_USE='fats': there are fast, precise, "
                           "reference\n")


# ---- with Numba, and without ----

def test_importing_tinydiff_and_its_operations_loads_no_compiler():
    done = fresh("import sys, tinydiff.ops; print([m for m in ('numba', 'scipy', 'llvmlite') "
                 "if m in sys.modules])")
    assert done.stdout == "[]\n", done.stderr


@needs_numba
@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "NUMBA_NUM_THREADS"])
def test_one_variable_sets_the_number_of_threads(variable):
    code = ("from tinydiff.backends import table; assert table.mode() == 'fast'\n"
            "import numba; print(numba.get_num_threads())")
    for number in (1, 3):
        assert fresh(code, **{variable: str(number)}).stdout == f"{number}\n"


GENERATE = """
from pathlib import Path
from tinydiff.cli import main
main(["generate", "red heart", "--steps", "2", "--out", {out!r}])
main(["info", "--json", {facts!r}])
"""


@pytest.mark.parametrize("hide, words", [
    (["numba"], "reference: Numba is not installed; pip install 'tinydiff[cpu]'"),
    (["llvmlite", "llvmlite.binding"], "reference: Numba cannot be imported ("),
    (["tinydiff.kernels"], "reference: tinydiff was installed without its kernels; pip install"),
], ids=["numba", "llvmlite", "kernels"])
def test_without_numba_the_definitions_draw_and_info_says_how_to_get_it(tmp_path, hide, words):
    if hide != ["numba"] and table.obstacle():
        pytest.skip(table.obstacle())
    if not Path(tinydiff.__file__).parents[1].joinpath("data", "models").exists():
        pytest.skip("no model is shipped here")
    out, facts = tmp_path / "heart.png", tmp_path / "facts.json"
    done = fresh(GENERATE.format(out=str(out), facts=str(facts)), hide)
    assert done.returncode == 0, done.stderr
    facts = json.loads(facts.read_text(encoding="utf-8"))
    assert out.exists() and facts["mode"].startswith(words)
    assert facts["conv2d"] == "NumPy, the readable definition in tinydiff/ops"


def test_asking_for_kernels_that_cannot_run_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(table, "obstacle", lambda: "Numba is not installed; " + threads.REMEDY)
    for mode in ("fast", "precise"):
        with pytest.raises(ValueError, match=r"not installed; pip install 'tinydiff\[cpu\]'$"):
            tinydiff.use(mode)
    with tinydiff.use("reference"):
        assert "Numba is not installed" in table.facts()["mode"]


@needs_numba
def test_info_says_which_kernels_run_on_how_many_threads_and_whether_they_are_compiled(
        monkeypatch, tmp_path):
    jit = pytest.importorskip("tinydiff.kernels.cpu.jit")
    monkeypatch.setattr(table, "_mode", "fast")
    monkeypatch.setattr(jit, "CACHE", tmp_path)
    facts = table.facts()
    assert {op: facts[op].partition(";")[0] for op, twins in table.TABLE.items() if twins.cpu} == {
        op: f"Numba, {twins.cpu}" for op, twins in table.TABLE.items() if twins.cpu}
    import numba
    assert f"Numba {numba.__version__}, {numba.get_num_threads()} threads of " in facts["kernels"]
    assert facts["compiled"].startswith("not yet")
    (tmp_path / "kernel.nbi").touch()
    assert table.facts()["compiled"].startswith("1 functions, kept in ")


@needs_numba
def test_two_threads_may_call_kernels_at_once_even_where_numba_has_only_its_own_threads():
    code = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np, tinydiff
from tinydiff import ops
tinydiff.use("fast")
x = np.ones((64, 4096), np.float32)
with ThreadPoolExecutor(4) as pool:
    sums = list(pool.map(lambda k: float(ops.silu_forward(x)[0].sum()), range(200)))
import numba
print(numba.threading_layer(), len(set(sums)))
"""
    done = fresh(code, NUMBA_THREADING_LAYER="workqueue", OMP_NUM_THREADS="2")
    assert done.stdout == "workqueue 1\n", done.stderr


# ---- where compiled kernels are kept ----

@needs_numba
def test_compiled_kernels_are_kept_beside_the_source_or_in_the_users_cache(monkeypatch, tmp_path):
    from tinydiff.kernels.cpu import jit
    digest = f"numba-{jit._digest()}"
    monkeypatch.delenv("TINYDIFF_CACHE", raising=False)
    assert jit.cache_folder() == jit.HERE / "__pycache__" / digest
    (tmp_path / "__pycache__").touch()                                # no folder can be made here
    monkeypatch.setattr(jit, "HERE", tmp_path)
    monkeypatch.setattr(jit, "_digest", lambda: "0")
    assert jit.cache_folder() == Path.home() / ".cache" / "tinydiff" / "numba-0"
    monkeypatch.setenv("TINYDIFF_CACHE", "elsewhere")
    assert jit.cache_folder() == Path("elsewhere", "numba-0")


@needs_numba
def test_what_earlier_versions_compiled_is_removed_a_day_later(tmp_path):
    from tinydiff.kernels.cpu import jit
    for name, age in (("numba-new", 2), ("numba-old", 2), ("numba-recent", 0), ("other", 2)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kernel.nbi").touch()
        then = time.time() - age * jit.DAY
        os.utime(tmp_path / name, (then, then))
    jit.remove_old(tmp_path / "numba-new")
    assert {path.name for path in tmp_path.iterdir()} == {"numba-new", "numba-recent", "other"}


@needs_numba
def test_every_operation_of_the_table_is_compiled_ahead():
    from tinydiff.kernels.cpu.ahead import calls, compile_module, module
    names = [name for name, _, _ in calls()]
    assert {name.rpartition("_")[0] for name in names} == {
        op for op, twins in table.TABLE.items() if twins.cpu}
    for each in {module(name) for name in names}:
        assert compile_module(each) > 0                # else a kernel refused what it was given


# ---- compiled ahead, or not at all ----

@needs_numba
def test_where_nothing_is_compiled_the_readable_path_runs_and_says_so(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tinydiff", "generate", "red heart, noto style", "--steps", "1",
         "--out", tmp_path / "heart.png"], capture_output=True, text=True,
        env={**{n: v for n, v in os.environ.items() if n != "TINYDIFF_USE"},
             "TINYDIFF_CACHE": str(tmp_path / "empty")})
    assert done.returncode == 0, done.stderr
    assert "the fast kernels are not compiled yet; python -m tinydiff.kernels.cpu" in done.stderr
    assert not list(tmp_path.rglob("*.nbi"))


@needs_numba
def test_what_was_compiled_is_used(monkeypatch, tmp_path):
    jit = pytest.importorskip("tinydiff.kernels.cpu.jit")
    monkeypatch.setattr(table, "_wish", None)
    monkeypatch.setattr(jit, "CACHE", tmp_path)
    monkeypatch.setattr(table, "_mode", None)
    monkeypatch.setattr(table, "_default", None)
    assert table.mode() == "reference"
    assert "not compiled yet" in table.facts()["mode"]
    jit.mark_compiled()
    monkeypatch.setattr(table, "_default", None)
    assert table.mode() == "fast"
