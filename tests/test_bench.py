"""The bench compares like with like: same numbers first, one process at a time, honest ratios."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinydiff.bench import Record, run, table, workloads
from tinydiff.bench.cpu import check_arguments
from tinydiff.bench.fill import STOCK, values, weight
from tinydiff.bench.referee import NEEDS, Referee, contestant, difference
from tinydiff.bench.turns import (
    Contestant,
    Worker,
    WorkerError,
    take_turns,
    worker_environment,
)
from tinydiff.bench.worker import peak_memory, respond, timed
from tinydiff.bench.workloads import Workload
from tinydiff.cli import main

TIMES = {"tinydiff": [1.0, 3.0, 2.0], "default": [4.0, 4.0, 4.0], "channels_last": [2.0, 6.0, 5.0]}


# ---- figures ----

def test_ratios_are_taken_round_by_round_against_the_layout_with_the_smaller_median():
    record = Record("a", "step", "s", TIMES)
    assert record.better == "default"
    assert record.ratios == [0.25, 0.75, 0.5]
    row = record.to_json()
    assert (row["ratio"], row["ratio_range"], row["better"]) == (0.5, [0.25, 0.75], "default")
    assert row["median"] == {"tinydiff": 2.0, "default": 4.0, "channels_last": 5.0}
    faster = record._replace(values={**TIMES, "channels_last": [2.0, 2.0, 2.0]})
    assert faster.better == "channels_last" and faster.ratios == [0.5, 1.5, 1.0]


def test_a_side_alone_has_no_ratio():
    alone = Record("a", "step", "s", {"tinydiff": [1.0]})
    assert alone.better is None and alone.ratios == [] and alone.to_json()["ratio"] is None
    refused = Record("c", "picture", "s", {}, float("inf"), "not compared: ...")
    assert json.dumps(refused.to_json(), allow_nan=False)
    assert "not compared: ..." in table([refused])


def test_the_table_lines_up_and_shows_medians_and_the_spread():
    lines = table([Record("a", "step", "s", TIMES),
                   Record("f", "memory of a step", "bytes", {"tinydiff": [3 * 2**20]})]).split("\n")
    assert lines[1].split("  ")[0] == "(a) step" and lines[1].endswith("0.50 (0.25-0.75)")
    assert "3 MiB" in lines[2] and lines[2].endswith("-")
    for header in ("tinydiff", "PyTorch", "channels-last", "ratio"):
        assert all(line[lines[0].index(header) - 1] == " " for line in lines)


def test_the_difference_is_the_worst_arrays_share_of_its_largest_entry():
    x = {"a": np.array([2.0, 4.0]), "b": np.ones(3)}
    assert difference(x, {**x, "a": np.array([2.0, 5.0])}) == pytest.approx(0.2)
    assert difference(x, x) == difference({"a": np.zeros(2)}, {"a": np.zeros(2)}) == 0
    assert difference(x, {"a": x["a"]}) == float("inf")
    assert difference(x, {"a": x["a"], "b": np.ones(1)}) == float("inf")
    assert not difference(x, {**x, "b": np.full(3, np.nan)}) <= 1


# ---- made-up numbers ----

def test_made_up_numbers_have_mean_0_and_variance_1_and_do_not_line_up():
    x = values("some tensor", (2 * STOCK + 10,))
    assert abs(x.mean()) < 0.01 and abs(x.std() - 1) < 0.01 and x.dtype == np.float32
    assert np.array_equal(x[:10], x[STOCK:STOCK + 10])                # it is a stock, read round
    w = values("some weight", (1280, 1280))
    assert np.abs(np.corrcoef(w[:50]) - np.eye(50)).max() < 0.2
    assert abs(np.corrcoef(values("a", (9999,)), values("b", (9999,)))[0, 1]) < 0.05


def test_a_made_up_weight_keeps_the_size_of_what_passes():
    x = values("x", (500, 640))
    assert abs((x @ weight("proj.weight", (320, 640)).T).std() - 1) < 0.05
    assert abs(weight("norm.weight", (999,)).mean() - 1) < 0.05
    assert np.abs(weight("norm.bias", (999,))).max() < 0.2


# ---- the protocol, with a side that is a stand-in ----

class Sleeper:
    """A job that takes its time, and says so."""

    def __init__(self, spec):
        self.spec = spec
        self.calls = []

    def before(self):
        self.calls.append("before")

    def __call__(self):
        self.calls.append("call")
        time.sleep(self.spec["seconds"])

    def check(self):
        return {"y": np.arange(3.0)}


class Side:
    JOBS = {"sleep": Sleeper}

    @staticmethod
    def hello():
        return {"missing": []}


class FakeWorker:
    """A worker within this process; `log` keeps all requests of all of them, in order."""

    def __init__(self, log):
        self.jobs, self.log = {}, log

    def ask(self, do, **request):
        self.log.append((do, request["key"]))
        return respond({"do": do, **request}, Side, self.jobs)

    def busy(self):
        return 0.0

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        pass


def test_a_job_is_prepared_once_and_the_first_of_several_calls_does_not_count():
    jobs = {}
    for seconds in (0.002, 0.05):
        respond({"do": "prepare", "key": "k", "kind": "sleep", "spec": {"seconds": seconds}},
                Side, jobs)
    job = jobs["k"]
    assert job.spec["seconds"] == 0.002
    times = respond({"do": "time", "key": "k", "seconds": 0.02}, Side, jobs)["times"]
    assert job.calls == ["before", "call"] * (len(times) + 1) and min(times) >= 0.002
    assert len(timed(job, 0)) == 1                                    # one call is always made
    respond({"do": "drop", "key": "k"}, Side, jobs)
    assert not jobs
    with pytest.raises(ValueError, match="unknown request 'dance'"):
        respond({"do": "dance"}, Side, jobs)


def test_contestants_take_turns_and_the_first_one_changes():
    log = []
    one, two = FakeWorker(log), FakeWorker(log)
    contestants = [Contestant(who, worker, "sleep", {"seconds": 0})
                   for who, worker in (("tinydiff", one), ("default", two), ("channels_last", two))]
    times, idle = take_turns(contestants, 3, 0)
    turns = [key for do, key in log if do == "time"]
    assert turns[:6:2] == turns[1:6:2]                                # the first call of each: lost
    assert turns[1:6:2] + turns[6:] == [
        "tinydiff", "default", "channels_last", "default", "channels_last", "tinydiff",
        "channels_last", "tinydiff", "default"]
    assert idle == 0 and {who: len(t) for who, t in times.items()} == dict.fromkeys(TIMES, 3)


def test_what_does_not_fit_in_memory_together_is_built_anew_for_each_turn():
    worker = FakeWorker([])
    take_turns([Contestant("tinydiff", worker, "sleep", {"seconds": 0})], 2, 0, keep=False)
    assert [do for do, _ in worker.log] == ["prepare", "time", "time", "drop"] * 2
    assert not worker.jobs


class Skewed(Sleeper):
    """Computes what PyTorch, in its other layout, does not."""

    def check(self):
        return {"y": np.arange(3.0) + (self.spec.get("layout") == "channels_last")}


@pytest.mark.parametrize(("kind", "agree"), [("sleep", True), ("skewed", False)])
def test_results_that_differ_are_not_timed(kind, agree, tmp_path, monkeypatch):
    monkeypatch.setitem(Side.JOBS, "skewed", Skewed)
    monkeypatch.setitem(NEEDS, kind, {"torch"})
    log = []
    referee = Referee(2, 1, 0, sys.executable, tmp_path)
    referee.has = {"torch"}
    monkeypatch.setattr(referee, "worker", lambda who, environment=None: FakeWorker(log))
    record, = referee.compare("e", [Workload("nap", kind, {"seconds": 0}, bound=1e-3)])
    assert (record.note is None) == agree == bool(record.ratios) == (("time", "default") in log)
    if not agree:
        assert record.difference == 1 / 3 and "results differ by 3.3e-01" in record.note


def test_peak_memory_counts_what_was_given_back():
    before = peak_memory()
    assert before > 2**20
    np.ones(3 * 2**20 + before // 8)                                  # 24 MiB more than ever held
    assert peak_memory() >= before + 2**24


# ---- real processes ----

@pytest.fixture
def own(tmp_path):
    with Worker("tinydiff_side", threads=1, log=tmp_path / "log",
                environment={"TINYDIFF_USE": "reference"}) as worker:
        yield worker


LINEAR = {"op": "linear", "inputs": {"x": [2, 3], "weight": [4, 3], "bias": [4]}, "options": {},
          "direction": "forward"}


def test_a_worker_measures_sleeps_and_survives_a_fault(own, tmp_path, monkeypatch):
    hello = own.ask("hello")
    assert hello["threads"] == 1 and hello["mode"] == "reference" and hello["alive"] > 0
    own.ask("prepare", key="k", kind="op", spec=LINEAR)
    own.ask("check", key="k", file=str(tmp_path / "check.npz"))
    with np.load(tmp_path / "check.npz") as file:
        want = values("x", (2, 3)) @ weight("weight", (4, 3)).T + weight("bias", (4,))
        np.testing.assert_allclose(file["y"], want, rtol=1e-5)
    assert own.ask("time", key="k", seconds=0)["times"][0] > 0
    with pytest.raises(WorkerError, match=r"tinydiff_side: AttributeError: .*dance"):
        own.ask("prepare", key="j", kind="op", spec={**LINEAR, "op": "dance"})
    busy = own.busy()
    time.sleep(0.1)
    assert own.busy() == busy and own.ask("hello")                    # asleep, and still there
    own.process.kill()
    with pytest.raises(WorkerError, match="the process ended"):
        own.ask("hello")


@pytest.mark.skipif(sys.platform == "win32", reason="there a process cannot be stopped")
def test_a_worker_that_does_not_answer_is_ended(own, monkeypatch):
    own.ask("hello")
    monkeypatch.setattr("tinydiff.bench.turns.PATIENCE", 0.05)
    os.kill(own.process.pid, signal.SIGSTOP)
    with pytest.raises(WorkerError, match=r"no answer to 'hello' in 0\.05 s"):
        own.ask("hello")


def test_openblas_chooses_its_kernel_by_the_processor(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    given = worker_environment(3, {"TINYDIFF_USE": "reference"})
    assert "OPENBLAS_CORETYPE" not in given and given["TINYDIFF_USE"] == "reference"
    assert given["OMP_NUM_THREADS"] == given["OPENBLAS_NUM_THREADS"] == "3"


def test_the_torch_worker_runs_where_tinydiffs_packages_are_missing(tmp_path):
    """-S leaves all installed packages out: only the standard library is there, and stand-ins."""
    (tmp_path / "numpy.py").write_text("float32 = float", encoding="utf-8")
    script = Path(sys.modules[Worker.__module__].__file__).with_name("worker.py")
    done = subprocess.run([sys.executable, "-S", str(script), "torch_side"],
                          input='{"do": "hello"}\n', capture_output=True, text=True, timeout=60,
                          env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    assert json.loads(done.stdout)["missing"] == ["torch", "diffusers", "transformers"], done.stderr


@pytest.fixture
def bare(tmp_path):
    """Return a Python with NumPy and without torch."""
    path = tmp_path / "bare-python"
    block = "import sys, runpy; sys.modules['torch'] = None; sys.argv = sys.argv[1:]; " \
            "sys.path.insert(0, ''); runpy.run_path(sys.argv[0], run_name='__main__')"
    path.write_text(f"#!/bin/sh\nexec {sys.executable} -c \"{block}\" \"$@\"\n", encoding="utf-8")
    path.chmod(0o755)
    return path


@pytest.mark.skipif(sys.platform == "win32", reason="the stand-in Python is a shell script")
def test_without_torch_it_says_so_in_one_line_and_times_tinydiff_alone(
        bare, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(workloads, "operations", lambda large: [
        Workload("linear", "op", LINEAR, 1e-3, pictures=False)])
    monkeypatch.setenv("TINYDIFF_USE", "reference")
    file = tmp_path / "bench.json"
    main(["bench", "cpu", "--only", "e", "--quick", "--threads", "1", "--torch-python",
          str(bare), "--json", str(file)])
    out = capsys.readouterr().out.splitlines()
    assert sum("torch is missing" in line and str(bare) in line for line in out) == 1
    found = json.loads(file.read_text(encoding="utf-8"))
    assert [list(r["values"]) for r in found["records"]] == [["tinydiff"]]
    assert len(found["records"][0]["values"]["tinydiff"]) == 2 and not found["faults"]


@pytest.mark.parametrize(("arguments", "says"), [
    (["--only", "a,z"], "workloads 'a,z': name some of a,b,c,d,e,f,g"),
    (["--only", ""], "name some of"),
    (["--rounds", "0"], "rounds=0"),
    (["--threads", "-1"], "threads=-1"),
    (["--only", "e", "--ops", "dance"], "ops 'dance': no operation has that in its name"),
    (["--torch-python", "/no/such/python"], "/no/such/python: cannot be started"),
    (["--json", "no/such/folder/b.json"], "no/such/folder/b.json: there is no such folder"),
])
def test_a_wrong_argument_is_one_line(arguments, says, capsys):
    with pytest.raises(SystemExit) as end:
        main(["bench", "cpu", *arguments])
    line, = capsys.readouterr().err.splitlines()
    assert end.value.code == 2 and says in line


def test_from_python_too_arguments_are_checked():
    with pytest.raises(ValueError, match="rounds='many'"):
        check_arguments("a", "many", None)
    with pytest.raises(ValueError, match="workloads"):
        run("")


# ---- the two sides do the same ----

def sides(w, layout="default"):
    """Return a workload's job on both sides, in this process."""
    pytest.importorskip("torch").set_num_threads(1)      # more would wait for other programs
    pytest.importorskip("diffusers")
    from tinydiff.bench import tinydiff_side, torch_side
    return (tinydiff_side.JOBS[w.kind](w.spec),
            torch_side.JOBS[w.kind](contestant(None, w, layout).spec))


@pytest.mark.parametrize("layout", ["default", "channels_last"])
def test_the_training_step_is_torchs(layout):
    w = workloads.train_step()
    small = {name: [4, *shape[1:]] for name, shape in w.spec["inputs"].items()}
    w = w._replace(spec={**w.spec, "inputs": small, "timestep": w.spec["timestep"][:4]})
    ours, theirs = sides(w, layout)
    got, want = ours.check(), theirs.check()
    assert difference(got, want) < 1e-4
    for _ in range(3):
        ours()
        theirs()
    assert abs(ours.check()["loss"] / theirs.check()["loss"] - 1) < 1e-3
    assert ours.check()["loss"] < 0.99 * got["loss"]                  # and both have learnt
    averages = {name: p.value for name, p in ours.trainer.ema.model.parameters()}
    torch_names = [name for name, _ in theirs.model.named_parameters()]
    for name, average in zip(torch_names, theirs.average, strict=True):
        assert np.abs(averages[name] - average.numpy()).max() < 1e-3, name


def test_the_autoencoders_training_step_is_torchs():
    w = workloads.autoencoder_step()
    small = {"x": [2, 3, 64, 64], "eps": [2, *w.spec["inputs"]["eps"][1:]]}
    w = w._replace(spec={**w.spec, "inputs": small})
    ours, theirs = sides(w)
    assert difference(ours.check(), theirs.check()) < 1e-3


def test_every_operation_is_torchs():
    for w in workloads.operations(large=False):
        ours, theirs = sides(w._replace(spec={**w.spec, "inputs": {
            name: [2, *shape[1:]] if name in "xqkv" else shape
            for name, shape in w.spec["inputs"].items()}}))
        assert difference(ours.check(), theirs.check()) < w.bound, w.what
