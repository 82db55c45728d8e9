"""On a real GPU: every kernel, the shipped model's picture, training, graphs and precisions.

``make test-gpu`` runs these, beside the tests of test_device.py in the world "cupy".  Nothing here
runs elsewhere, but for the tests of the harness itself, at the end.
"""
from importlib import import_module

import device_checks
import numpy as np
import pytest
import sanitize
from tiny import tiny_judged_objective, tiny_objective, tiny_trainer

import tinydiff
from tinydiff import ops
from tinydiff.backends import device
from tinydiff.backends.precision import use_precision
from tinydiff.bench.fill import values, weight
from tinydiff.bench.workloads import operations
from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.loss_scale import LossScale
from tinydiff.train import TrainConfig, Trainer, train

gpu = pytest.mark.gpu
PROMPTS = ["red heart, noto style", "grinning face, noto style"]


@pytest.fixture
def cupy():
    if device.obstacle():
        pytest.skip(device.obstacle())
    return import_module("cupy")


@gpu
@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", device_checks.modules())
def test_every_version_of_every_kernel_equals_numpy(name, seed, cupy):
    device_checks.check(name, cupy, seed)


SMALL = [work for work in operations() if "64x64" not in work.what and "4096" not in work.what]


@gpu
@pytest.mark.parametrize("work", SMALL, ids=lambda work: work.what)
def test_every_hot_op_at_the_sizes_of_real_networks(work, cupy):
    """The layers of the emoji U-Net and of Stable Diffusion, forward or backward."""
    spec = work.spec
    host = [(weight if name in ("weight", "bias") else values)(name, shape)
            for name, shape in spec["inputs"].items()]
    forward, backward = (getattr(ops, f"{spec['op']}_{way}") for way in ("forward", "backward"))

    def run(put, dtype):
        y, cache = forward(*(put(a.astype(dtype)) for a in host), **spec["options"])
        if spec["direction"] == "forward":
            return [y]
        grads = backward(put(values("dy", y.shape).astype(dtype)), cache)
        return [g for g in (grads if isinstance(grads, tuple) else (grads,)) if g is not None]

    with tinydiff.use("reference"):
        want, reference = (run(lambda x: x, dtype) for dtype in (np.float64, np.float32))
    with tinydiff.use("fast"):
        got = run(cupy.asarray, np.float32)
    for ours, theirs, exact in zip(got, reference, want, strict=True):
        assert_as_accurate_as(cupy.asnumpy(ours), theirs, exact, factor=4)


@gpu
def test_the_same_seed_draws_the_cpus_picture(cupy):
    pipe = tinydiff.load("emoji")
    options = {"steps": 20, "guidance": 3.0, "seed": 0}
    *_, want = pipe.steps(PROMPTS, **options)
    *_, got = pipe.to("cuda").steps(PROMPTS, **options)
    assert np.abs(cupy.asnumpy(got.x_s) - want.x_s).max() < 1e-3


@gpu
@pytest.mark.parametrize("name, most", [("tf32", 0.02), ("float16", 0.02)])
def test_a_reduced_precision_draws_nearly_the_same_picture(name, most, cupy):
    pipe = tinydiff.load("emoji").to("cuda")
    options = {"steps": 20, "guidance": 3.0, "seed": 0}
    *_, want = pipe.steps(PROMPTS, **options)
    with use_precision(name):
        *_, got = pipe.steps(PROMPTS, **options)
    rmse = float(((got.x_s - want.x_s) ** 2).mean()) ** 0.5
    print(f"{name}: RMSE {rmse:.2g} of pictures in [-1, 1]")
    assert 0 < rmse < most


@gpu
def test_a_graph_draws_the_very_same_picture(cupy):
    options = {"steps": 20, "guidance": 3.0, "seed": 0}
    *_, want = tinydiff.load("emoji").to("cuda", graph=False).steps(PROMPTS, **options)
    pipe = tinydiff.load("emoji").to("cuda")
    *_, got = pipe.steps(PROMPTS, **options)
    assert pipe.recorded.run.why is None, pipe.recorded.run.why
    cupy.testing.assert_allclose(got.x_s, want.x_s, rtol=0, atol=1e-5)


@gpu
@pytest.mark.parametrize("graph", [False, True])
def test_training_takes_the_cpus_steps(graph, cupy):
    settings = "train.steps=6", "train.shards=1"
    plain = tiny_trainer(*settings)
    want = [step.loss for step in train(plain)]
    objective = tiny_objective(*settings)
    objective.model.to("cuda")
    trainer = Trainer(objective, plain.config, graph=graph)
    assert [step.loss for step in train(trainer)] == pytest.approx(want, rel=1e-4)
    if graph:
        assert trainer.recorded.why is None, trainer.recorded.why


@gpu
def test_an_autoencoder_and_its_judges_are_one_graph(cupy):
    config = TrainConfig(steps=6, batch_size=4, shards=1, warm_up=1)
    want = [step.loss for step in train(Trainer(tiny_judged_objective(), config))]
    objective = tiny_judged_objective()
    objective.model.to("cuda")
    objective.vision.to("cuda")
    trainer = Trainer(objective, config, graph=True)
    assert [step.loss for step in train(trainer)] == pytest.approx(want, rel=1e-3)
    assert trainer.recorded.why is None, trainer.recorded.why


@gpu
def test_training_in_float16_learns_as_float32_does(cupy):
    settings = "train.steps=40", "train.shards=1", "train.lr=1e-3"

    def losses(precision, scale):
        objective = tiny_objective(*settings)
        objective.model.to("cuda")
        trainer = Trainer(objective, tiny_trainer(*settings).config, scale)
        with use_precision(precision):
            return [step.loss for step in train(trainer)]

    want, got = losses("float32", None), losses("float16", LossScale())
    assert np.mean(got[-10:]) == pytest.approx(np.mean(want[-10:]), rel=0.05)


@gpu
def test_running_out_of_memory_is_one_line(cupy):
    with pytest.raises(MemoryError) as fault:
        cupy.zeros(2**46, np.float32)
    assert "out of device memory" in device.out_of_memory(fault.value, "--batch")


# ---- the harness, anywhere ----

def test_every_kernel_module_can_be_checked_on_a_device():
    for name in device_checks.modules():
        module = import_module(f"tinydiff.kernels.{name}")
        assert hasattr(module, "check") or name in device_checks.CHECKS, (
            f"kernels/{name}.py: give it check(rng, xp=np), or add it to tests/device_checks.py")


@pytest.mark.parametrize("code, output, said", [
    (0, "========= ERROR SUMMARY: 0 errors\n", "clean"),
    (99, "bad\n========= ERROR SUMMARY: 3 errors\n", "found: ERROR SUMMARY: 3 errors"),
    (1, "========= Error: Device not supported. Please refer\n", "skipped: ========= Error: Dev"),
    (1, "Traceback\nValueError: wrong", "found: Traceback")])
def test_what_a_sanitizer_says_is_understood(code, output, said):
    assert sanitize.verdict(code, output).startswith(said)


def test_without_a_sanitizer_the_reason_is_given(monkeypatch, capsys):
    monkeypatch.setattr(sanitize, "sanitizer", lambda: None)
    assert sanitize.run(None) == 0 and "skipped: there is none on PATH" in capsys.readouterr().out
