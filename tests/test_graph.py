"""A recorded step computes what the plain one does, in buffers that stay, or says why it cannot.

The recorder of these tests replays by running the function once more and writing into the recorded
results, as a graph writes into the same memory; and it refuses to wait, as a capture does.
"""
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from standin import put, watched
from tiny import tiny_objective, tiny_pipeline, tiny_trainer

import tinydiff
from tinydiff.backends import device, graph
from tinydiff.backends.graph import Recorded
from tinydiff.train import Trainer, graph_obstacle, train


class Recorder:
    """Stands in for `CudaRecorder` and counts."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def memory(self):
        return nullcontext()

    def record(self, run):
        with watched() as seen:
            results = run()
        if seen.reads or seen.moves:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: operation not permitted")
        self.recorded += 1

        def replay():
            self.replayed += 1
            for old, new in zip(*([r] if not isinstance(r, tuple) else r for r in (results, run())),
                                strict=True):
                old[...] = new
        return replay, results


@pytest.fixture
def pretended(monkeypatch):
    """Let the stand-in count as a device that can record."""
    recorders = []
    monkeypatch.setattr(graph, "column", lambda a: "cuda" if hasattr(a, "_host") else "cpu")
    monkeypatch.setattr(graph, "CudaRecorder",
                        lambda: recorders.append(Recorder()) or recorders[-1])
    monkeypatch.setattr(device, "obstacle", lambda: None)
    monkeypatch.setattr("tinydiff.nn.module.move", lambda x, to: put(x))
    with tinydiff.use("reference"):
        yield recorders


def test_a_recorded_function_computes_the_same_from_each_new_argument():
    run = Recorded(lambda x, y: (x + 2 * y, x.sum()), recorder := Recorder())
    first = None
    for k in range(3):
        x, y = put(np.full(3, k, np.float32)), put(np.arange(3, dtype=np.float32))
        total, s = run(x, y)
        np.testing.assert_array_equal(total._host, k + 2 * np.arange(3))
        assert float(s) == 3 * k
        first = total if first is None else first
    assert total is first and run.why is None                         # the same memory each time
    assert recorder.recorded == 1 and recorder.replayed == 3


def test_other_shapes_are_recorded_apart():
    run = Recorded(lambda x: 2 * x, recorder := Recorder())
    for n in (2, 3, 2, 3):
        np.testing.assert_array_equal(run(put(np.ones(n)))._host, np.full(n, 2.0))
    assert recorder.recorded == 2 and recorder.replayed == 4


def test_another_precision_is_recorded_apart(monkeypatch):
    run = Recorded(lambda x: 2 * x, recorder := Recorder())
    for name in ("float32", "tf32", "float32"):
        monkeypatch.setattr(graph, "precision", lambda name=name: name)
        run(put(np.ones(2)))
    assert recorder.recorded == 2 and recorder.replayed == 3


def test_a_function_that_waits_runs_as_it_is_and_says_why():
    run = Recorded(lambda x: x / float(x.sum()), Recorder())
    for _ in range(2):
        np.testing.assert_array_equal(run(put(np.ones(4)))._host, np.full(4, 0.25))
    assert run.why.startswith("not recorded: cudaErrorStreamCaptureUnsupported")


def test_arrays_on_the_host_run_as_they_are_and_say_why():
    run = Recorded(lambda x: 2 * x)
    np.testing.assert_array_equal(run(np.ones(2)), [2, 2])
    assert run.why == "arrays on the host have no graph"


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_a_picture_drawn_by_graphs_is_the_same_picture(pretended, guidance):
    pipe = tiny_pipeline()
    options = {"steps": 4, "seed": 3, "guidance": guidance, "count": 2}
    want = list(pipe.steps("red heart", **options))
    got = list(pipe.to("cuda", graph=True).steps("red heart", **options))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_array_equal(a.eps_hat._host, b.eps_hat)
        np.testing.assert_array_equal(a.x_s._host, b.x_s)
    assert [(r.recorded, r.replayed) for r in pretended] == [(1, 4)]


def test_training_by_graphs_takes_the_same_steps(pretended):
    settings = "train.shards=1", "train.steps=4"
    plain = tiny_trainer(*settings)
    want = list(train(plain))
    objective = tiny_objective(*settings)
    objective.model.to("cuda")
    trainer = Trainer(objective, plain.config, graph=True)
    got = list(train(trainer))
    assert [(r.recorded, r.replayed) for r in pretended] == [(1, 4)] and not trainer.why_no_graph
    for a, b in zip(got, want, strict=True):
        assert a.loss == pytest.approx(b.loss, rel=1e-5)
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=1e-5)
    for (name, p), (_, q) in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        np.testing.assert_allclose(p.value._host, q.value, rtol=0, atol=1e-5, err_msg=name)


def test_what_cannot_be_one_graph_says_why():
    objective = tiny_objective("unet.dropout=0.1")
    shards = SimpleNamespace(shards=2)
    assert "--set train.shards=1" in graph_obstacle(tiny_objective(), shards)
    assert "dropout" in graph_obstacle(objective, SimpleNamespace(shards=1))
    assert "does not part" in graph_obstacle(SimpleNamespace(), shards)
