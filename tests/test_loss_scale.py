"""Loss scaling keeps gradients alive in float16; an overflow costs an update and never a weight."""
import numpy as np
import pytest

from tinydiff.backends import precision
from tinydiff.loss_scale import LossScale
from tinydiff.nn import Linear
from tinydiff.train import TrainConfig, Trainer, train

RNG = np.random.default_rng(0)
X, TRUTH = RNG.normal(size=(64, 8)).astype(np.float32), RNG.normal(size=(4, 8))


def half(x):
    """Round as the inputs of a float16 tensor core are rounded; the sums stay float32."""
    with np.errstate(over="ignore", under="ignore"):
        return x.astype(np.float16).astype(np.float32)


class Regression:
    """Least squares with every product's factors in float16; the gradients are tiny."""

    def __init__(self, unit=1e-7, overflows=()):
        self.model = Linear(8, 4, bias=False).initialise(0)
        self.size, self.unit, self.overflows = 64, unit, set(overflows)

    def shard(self, model, step, pictures, share):
        x = X[[index for _, index in pictures]]
        error = half(x) @ half(model.weight.value).T - half(x) @ half(TRUTH.T.astype(np.float32))
        dy = half(share * self.unit * 2 / error.size * error)
        dweight = dy.T @ half(x)
        model.weight.accumulate(dweight * np.float32("inf" if step in self.overflows else 1))
        return float((error * error).mean())


def trainer(objective, scale, steps=30, **options):
    config = TrainConfig(steps=steps, batch_size=64, shards=1, lr=0.1, warm_up=0, lr_end=0.1,
                         weight_decay=0.0, **options)
    return Trainer(objective, config, scale)


def test_gradients_that_float16_cannot_hold_are_saved_by_the_scale():
    lost = list(train(trainer(Regression(), None)))
    kept = list(train(trainer(Regression(), LossScale(2.0**24))))
    assert lost[-1].loss == pytest.approx(lost[0].loss, rel=1e-6) and lost[-1].grad_norm == 0
    assert kept[-1].loss < 0.2 * kept[0].loss


def test_a_scale_changes_nothing_where_nothing_underflows():
    """A power of two moves the exponent only: the same bits."""
    runs = [trainer(Regression(unit=16.0), scale, steps=5) for scale in (None, LossScale(1024.0))]
    (a, b) = ([step[:3] for step in train(run)] for run in runs)
    assert a == b
    np.testing.assert_array_equal(*(run.model.weight.value for run in runs))


def test_master_weights_take_updates_too_small_for_float16():
    run = trainer(Regression(unit=1.0), LossScale())
    weight = run.model.weight
    weight.value[...] = 1.0
    weight.accumulate(np.ones_like(weight.value))
    for _ in range(100):
        run.optimiser.step(1e-5)                          # float16 near 1 moves in steps of 1e-3
        weight.accumulate(np.zeros_like(weight.value))
    assert weight.value.dtype == np.float32
    assert (np.abs(weight.value - 1) > 5e-5).all() and half(np.float32(1 - 1e-5)) == 1


def test_an_overflow_is_skipped_halves_the_scale_and_touches_nothing():
    objective, scale = Regression(unit=1.0, overflows={1}), LossScale(64.0)
    run = trainer(objective, scale, steps=3)
    steps = train(run)
    next(steps)
    before = {name: a.copy() for name, a in run.state()[0].items() if name != "loss_scale"}
    skipped = next(steps)
    after = run.state()[0]
    assert skipped.grad_norm == np.inf and skipped.step == 2 and scale.value == 32.0
    assert all(np.array_equal(after[name], a) for name, a in before.items())
    third = next(steps)
    assert np.isfinite(third.grad_norm) and not np.array_equal(
        run.state()[0]["model.weight"], before["model.weight"])


def test_the_scale_doubles_after_enough_sound_updates_and_counts_anew_after_a_skip():
    scale = LossScale(8.0, interval=3)
    seen = []
    for norm in (1, 1, np.inf, 1, 1, 1, 1, 1, 1):
        scale.update(norm)
        seen.append(scale.value)
    assert seen == [8, 8, 4, 4, 4, 8, 8, 8, 16]


def test_gradients_that_overflow_at_every_scale_end_the_run_in_one_line():
    run = trainer(Regression(unit=1.0, overflows=range(1000)), LossScale(4.0), steps=1000)
    with pytest.raises(FloatingPointError, match="at every loss scale: lower lr"):
        list(train(run))
    assert not run.sound


def test_without_a_scale_an_overflow_ends_the_run_as_before():
    with pytest.raises(FloatingPointError, match="gradient norm inf at step 1"):
        list(train(trainer(Regression(unit=1.0, overflows={0}), None)))


def test_a_resumed_run_goes_on_with_its_scale():
    def fresh():
        return trainer(Regression(unit=1.0, overflows={1}), LossScale(64.0, interval=2), steps=6)

    whole, first, rest = fresh(), fresh(), fresh()
    want = [step[:3] for step in train(whole)]
    steps = train(first)
    got = [next(steps)[:3] for _ in range(3)]
    rest.load_state(*first.state())
    assert got + [step[:3] for step in train(rest)] == want
    assert rest.loss_scale.state() == whole.loss_scale.state()


def test_a_precision_that_needs_a_device_says_so(monkeypatch):
    monkeypatch.setattr(precision, "obstacle", lambda: "no NVIDIA driver was found")
    for name in ("tf32", "float16"):
        with pytest.raises(ValueError, match=f"^precision '{name}' needs a GPU's tensor cores: no"):
            precision.use_precision(name)
        with pytest.raises(ValueError, match="the processor multiplies in float32; use --prec"):
            precision.check(name, "cpu")
    with pytest.raises(ValueError, match="there are float32, tf32, float16"):
        precision.use_precision("float64")
    with precision.use_precision("float32"):
        assert precision.precision() == "float32"
