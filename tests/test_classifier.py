"""The classifier's backward pass is the derivative of its forward pass, its loss is cross-entropy,
and the two together climb the log probability of a class.
"""
import numpy as np
import pytest
from gradients import assert_direction, assert_grad
from test_unet import arrays
from tiny import wake

from tinydiff.cross_entropy import cross_entropy
from tinydiff.models import Classifier
from tinydiff.nn import Tape
from tinydiff.optim import AdamW

TINY = {"block_out_channels": [8, 12], "norm_num_groups": 4, "num_classes": 3}
CONFIGS = {
    "tiny": TINY,
    "one resolution, three channels": TINY | {"block_out_channels": [8], "in_channels": 3},
    "three resolutions, two layers": TINY | {"block_out_channels": [8, 8, 12], "act_fn": "gelu",
                                             "layers_per_block": 2, "norm_eps": 0.1},
}
each_config = pytest.mark.parametrize("name", CONFIGS)
LABELS = np.array([2, 0])


def network(name="tiny", dtype=np.float64, **config):
    return wake(Classifier(**CONFIGS[name] | config).initialise(0, dtype))


def pictures(model, dtype=np.float64, size=(7, 6)):
    rng = np.random.default_rng(0)
    sample = rng.normal(size=(2, model.config["in_channels"], *size)).astype(dtype)
    return {"sample": sample, "timestep": np.array([0.0, 640.5])}


# ---- the loss ----

def test_the_loss_is_its_definition_and_its_gradient_is_the_derivative():
    logits = np.random.default_rng(0).normal(size=(4, 3))
    labels = np.array([0, 2, 2, 1])
    value, dlogits = cross_entropy(logits, labels)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    want = -sum(np.log(p[b, k]) for b, k in enumerate(labels)) / 4
    assert type(value) is float and value == pytest.approx(want, rel=1e-14)
    assert_grad(lambda: np.array(cross_entropy(logits, labels)[0]), {"logits": logits},
                np.array(1.0), logits=dlogits)


def test_the_loss_ignores_a_shift_and_survives_large_logits():
    logits = np.random.default_rng(0).normal(size=(2, 3))
    value, dlogits = cross_entropy(logits, LABELS)
    np.testing.assert_allclose(dlogits.sum(axis=1), 0, atol=1e-16)
    assert cross_entropy(logits + 1e4, LABELS)[0] == pytest.approx(value, rel=1e-9)
    value, dlogits = cross_entropy(np.array([[1e4, 0.0], [0.0, 1e4]]), np.array([0, 0]))
    assert value == 5000 and np.isfinite(dlogits).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_loss_keeps_the_dtype(dtype):
    assert cross_entropy(np.zeros((2, 3), dtype), LABELS)[1].dtype == dtype


@pytest.mark.parametrize(("labels", "fault"), [
    ([0, 3], "labels run from 0 to 3, classes from 0 to 2"),
    ([-1, 0], "labels run from -1 to 0"), ([0], r"labels have shape \(1,\): 2 pictures need")])
def test_labels_that_are_no_classes_are_refused(labels, fault):
    with pytest.raises(ValueError, match=fault):
        cross_entropy(np.zeros((2, 3)), np.array(labels))


# ---- the network ----

@each_config
@pytest.mark.parametrize("part", ["logits", "features", "both"])
def test_all_gradients_are_derivatives_along_random_directions(name, part):
    model = network(name)
    given = pictures(model)
    rng, tape = np.random.default_rng(1), Tape()
    answer = model.forward(**given, tape=tape)
    dlogits, dfeatures = (rng.normal(size=a.shape) for a in answer)
    dlogits, dfeatures = dlogits * (part != "features"), dfeatures * (part != "logits")
    dsample = model.backward(dlogits, None if part == "logits" else dfeatures, tape=tape)
    assert not tape.stack, "the backward pass left something on the tape"
    grads = {n: p.grad for n, p in model.parameters()}

    def f():
        return np.concatenate(model.forward(**given), axis=1)

    dy = np.concatenate([dlogits, dfeatures], axis=1)
    for wrt, got in (({"sample": given["sample"]}, {"sample": dsample}), (model.state(), grads)):
        assert_direction(f, wrt, dy, rng, **got)


@each_config
def test_float32_stays_float32_everywhere(name):
    model = network(name, np.float32)
    tape = Tape()
    answer = model.forward(**pictures(model, np.float32), tape=tape)
    assert {a.dtype.name for a in answer} == {"float32"}
    wide = {repr(layer) for layer, cache in tape.stack for a in arrays(cache)
            if a.dtype == np.float64 and a.size > 1}
    assert not wide, f"float64 on the tape: {sorted(wide)}"
    assert model.backward(*answer, tape=tape).dtype == np.float32
    assert {p.grad.dtype.name for _, p in model.parameters()} == {"float32"}


def test_classifier_and_loss_climb_the_log_probability_of_the_class():
    model = network()
    given = pictures(model)
    tape = Tape()
    logits, _ = model.freeze().forward(**given, tape=tape)
    _, dlogits = cross_entropy(logits, LABELS)
    climb = model.backward(-len(logits) * dlogits, tape=tape)
    assert all(p.grad is None for _, p in model.parameters())

    def log_p():
        logits, _ = model.forward(**given)
        return np.array([-cross_entropy(logits[b:b + 1], LABELS[b:b + 1])[0] for b in (0, 1)])

    assert_direction(log_p, {"sample": given["sample"]}, np.ones(2), np.random.default_rng(2),
                     sample=climb)
    before = log_p()
    given["sample"] = given["sample"] + 1e-3 * climb
    assert (log_p() > before).all()


def test_the_answer_depends_on_the_time_and_pictures_do_not_meet():
    model = network()
    given = pictures(model)
    logits, features = model.forward(**given)
    later = model.forward(given["sample"], given["timestep"] + 100)
    assert np.abs(later.logits - logits).max() > 1e-3
    alone = model.forward(given["sample"][1:], 640.5)
    np.testing.assert_allclose(alone.logits, logits[1:], atol=1e-12)
    np.testing.assert_allclose(alone.features, features[1:], atol=1e-12)


def test_dropout_acts_in_training_alone_and_its_gradient_is_its_derivative():
    model = network(dropout=0.5)
    given = pictures(model)
    plain = model.forward(**given).logits
    np.testing.assert_array_equal(model.forward(**given, tape=Tape()).logits, plain)

    def trained():
        return model.forward(**given, tape=Tape(np.random.default_rng(5))).logits

    dy = np.random.default_rng(1).normal(size=plain.shape)
    tape = Tape(np.random.default_rng(5))
    model.forward(**given, tape=tape)
    dsample = model.backward(dy, tape=tape)
    assert_direction(trained, {"sample": given["sample"]} | model.state(), dy,
                     np.random.default_rng(6), sample=dsample,
                     **{n: p.grad for n, p in model.parameters()})


def test_training_may_leave_out_the_gradient_of_the_pictures():
    model, grads = network(), []
    for needed in (True, False):
        model.zero_grad()
        tape = Tape()
        logits, _ = model.forward(**pictures(model), tape=tape)
        dsample = model.backward(logits, tape=tape, needs_dsample=needed)
        assert (dsample is not None) == needed
        grads.append({n: p.grad for n, p in model.parameters()})
    assert all((grads[0][n] == grads[1][n]).all() for n in grads[0])


def test_it_learns_to_tell_stripes_that_lie_from_stripes_that_stand():
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 2
    wave = np.sin(np.arange(8) * np.pi / 2 + rng.uniform(0, 6, (16, 1)))  # (16, 8)
    stripes = np.where(labels[:, None, None] == 1, wave[:, :, None], wave[:, None, :])
    x = (np.broadcast_to(stripes, (16, 8, 8)) + 0.3 * rng.normal(size=(16, 8, 8)))[:, None]
    model = Classifier(**TINY | {"num_classes": 2}).initialise(0)
    optimiser, x, values = AdamW(model.parameters()), x.astype(np.float32), []
    for _ in range(30):
        model.zero_grad()
        tape = Tape()
        logits, _ = model.forward(x, 10, tape)
        value, dlogits = cross_entropy(logits, labels)
        model.backward(dlogits, tape=tape, needs_dsample=False)
        optimiser.step(lr=1e-2)
        values.append(value)
    assert values[0] == pytest.approx(np.log(2), abs=0.2) and values[-1] < 0.05


# ---- files and configurations ----

def test_it_is_saved_and_opened_exactly(tmp_path):
    model = network(dtype=np.float32)
    model.save_pretrained(tmp_path)
    again = Classifier.from_pretrained(tmp_path)
    assert again.config == model.config
    given = pictures(model, np.float32)
    for a, b in zip(again.forward(**given), model.forward(**given), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(("field", "value"), [
    ("in_channels", 0), ("num_classes", 2.5), ("block_out_channels", []),
    ("block_out_channels", [8, 0]), ("layers_per_block", 0), ("norm_num_groups", 3),
    ("act_fn", "tanh"), ("dropout", 1.0), ("num_clases", 3)])
def test_an_unsupported_field_or_value_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=field) as error:
        Classifier(**TINY | {field: value})
    assert "\n" not in str(error.value)


def test_pictures_of_other_channels_are_refused():
    with pytest.raises(ValueError, match="pictures of 3 channels: this classifier takes 1"):
        network().forward(np.zeros((1, 3, 8, 8)), 0)
