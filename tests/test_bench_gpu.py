"""The bench for a GPU runs to its end wherever it is, and pairs what it says it pairs."""
import time
from types import SimpleNamespace

import numpy as np
import pytest

from tinydiff.bench import gpu, gpu_kernels, gpu_sides, torch_unet
from tinydiff.datasets import data_folder
from tinydiff.models import UNet

needs_torch = pytest.mark.skipif(torch_unet.torch is None, reason="torch is not installed")


def test_a_contest_times_compares_and_relates_to_what_the_machine_can_do():
    bench = gpu.Bench("cpu")
    bench.limits["bytes copied"] = 1e6
    x = np.ones(8, np.float32)
    bench.contest("an op", "float32", {"ours": lambda: 1.5 * x}, {"theirs": lambda: [x]},
                  (100.0, "bytes copied"))
    theirs, ours = bench.rows
    assert (theirs.who, ours.who) == ("theirs", "ours")
    assert ours.difference == pytest.approx(0.5) and theirs.difference is None
    assert ours.of_torch == pytest.approx(theirs.seconds / ours.seconds)
    assert ours.rate == pytest.approx(100 / ours.seconds)
    assert ours.share == pytest.approx(ours.rate / 1e6)


def test_a_fault_is_a_note_in_its_row_and_the_others_go_on():
    def broken():
        raise RuntimeError("no kernel\nimage")

    bench = gpu.Bench("cpu")
    bench.contest("an op", "tf32", {"ours": broken, "other": lambda: np.ones(2)}, {})
    assert [(row.who, row.note) for row in bench.rows] == [
        ("ours", "RuntimeError: no kernel image"), ("other", None)]
    assert "no kernel image" in gpu.table(bench.rows)


def test_when_the_time_is_up_the_rest_is_not_run_and_says_so():
    bench = gpu.Bench("cpu", limit=0)
    time.sleep(0)
    bench.contest("an op", "float32", {"ours": lambda: np.ones(2)}, {})
    assert not bench.rows and bench.notes == ["an op, float32, ours: not run, the time was up"]


def test_versions_are_paired_with_their_precision():
    module = SimpleNamespace(VERSIONS=dict.fromkeys(range(1, 5)),
                             PRECISION={3: "tf32", 4: "float16"})
    assert [gpu_sides.versions(module, p) for p in gpu_sides.PRECISIONS] == [[1, 2], [3], [4]]


def test_both_of_pytorchs_flags_are_set_and_put_back():
    flags = SimpleNamespace(allow_tf32=True), SimpleNamespace(allow_tf32=False)
    torch = SimpleNamespace(backends=SimpleNamespace(
        cudnn=flags[0], cuda=SimpleNamespace(matmul=flags[1])))
    for precision in gpu_sides.PRECISIONS:
        with gpu_sides.torch_precision(torch, precision):
            assert [flag.allow_tf32 for flag in flags] == [precision == "tf32"] * 2
        assert [flag.allow_tf32 for flag in flags] == [True, False]


@needs_torch
def test_pytorchs_own_u_net_is_the_shipped_one():
    folder = data_folder() / "models" / "emoji" / "unet"
    rng = np.random.default_rng(0)
    x, context = (rng.normal(size=s).astype(np.float32) for s in ((2, 16, 8, 8), (2, 24, 128)))
    t = np.array([3.0, 700.0], np.float32)
    want = UNet.from_pretrained(folder).forward(x, t, context)
    torch = torch_unet.torch
    with torch.no_grad():
        got = torch_unet.load(folder)(*map(torch.from_numpy, (x, t, context)))[0].numpy()
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()


def test_the_whole_bench_runs_dry(monkeypatch):
    """On the processor with tiny sizes, networks too; kernels apart, which the emulator runs."""
    monkeypatch.setattr(gpu_kernels, "CONTESTS", {})
    facts, bench = gpu.run("cpu")
    who = {(row.what.partition(",")[0], row.who) for row in bench.rows}
    assert {("training step of emoji", "tinydiff"),
            ("training step of emoji", "tinydiff, CUDA graph"),
            ("prompt to latent", "tinydiff")} <= who
    assert all(row.note is None for row in bench.rows), bench.rows
    assert facts["device"] == "none: a dry run" and bench.limits["bytes copied"] > 0
    assert len(gpu.table(bench.rows).splitlines()) == len(bench.rows) + 2
