"""The U-Net's backward pass is the derivative of its forward pass, in every configuration.

That the forward pass is the published one is test_unet_parity.py's claim; here the network is
held against itself: one random direction in float64 for each kind of input, dtypes, the tape.
"""
import numpy as np
import pytest
from gradients import assert_direction
from tiny import tiny_objective, tiny_pipeline, wake
from unet_configs import CASES, cotangent, inputs, weight

from tinydiff.models import UNet
from tinydiff.models.transformer_blocks import Transformer2D
from tinydiff.nn import Tape
from tinydiff.recipes.text_to_image import TextAndPicture

each_case = pytest.mark.parametrize("name", CASES)


def network(case, dtype=np.float64):
    model = UNet(**case.config)
    return model.load_state({n: weight(n, p.shape) for n, p in model.parameters()}, dtype)


def arguments(case, dtype=np.float64):
    given = {n: v.astype(dtype) if getattr(v, "dtype", None) == np.float64 else v
             for n, v in inputs(case).items()}
    if case.text_embeds:
        given["added"] = {n: given.pop(n) for n in ("text_embeds", "time_ids")}
    return given


def arrays(x):
    """Yield every array inside nested tuples, lists and dicts."""
    if isinstance(x, np.ndarray):
        yield x
    elif isinstance(x, dict):
        yield from arrays(list(x.values()))
    elif isinstance(x, tuple | list):
        for part in x:
            yield from arrays(part)


@each_case
def test_all_gradients_are_derivatives_along_random_directions(name):
    case = CASES[name]
    model, given, dy = network(case), arguments(case), cotangent(case)
    tape = Tape()
    model.forward(**given, tape=tape)
    grads = model.backward(dy, tape)
    assert not tape.stack, "the backward pass left something on the tape"

    inputs_of = {"sample": given["sample"], "context": given.get("context"),
                 "text_embeds": given.get("added", {}).get("text_embeds")}
    if model.config["class_embed_type"] == "projection":
        inputs_of["class_labels"] = given["class_labels"]
    checks = {n: {n: x} for n, x in inputs_of.items() if x is not None}
    for n in ("sample", "context", "text_embeds", "class_labels"):
        assert (getattr(grads, n) is not None) == (n in checks), n
    checks["parameters"] = model.state()
    got = {n: {n: getattr(grads, n)} for n in checks if n != "parameters"}
    got["parameters"] = {n: p.grad for n, p in model.parameters()}
    for kind, wrt in checks.items():
        assert_direction(lambda: model.forward(**given), wrt, dy, np.random.default_rng(1),
                         **got[kind])


@each_case
def test_float32_stays_float32_everywhere(name):
    case = CASES[name]
    model, given = network(case, np.float32), arguments(case, np.float32)
    tape = Tape()
    y = model.forward(**given, tape=tape)
    assert y.dtype == np.float32
    kept = [(repr(layer), a) for layer, cache in tape.stack for a in arrays(cache)]
    assert len(kept) > 20
    wide = {layer for layer, a in kept if a.dtype == np.float64 and a.size > 1}
    assert not wide, f"float64 on the tape: {sorted(wide)}"
    grads = model.backward(cotangent(case).astype(np.float32), tape)
    assert all(g.dtype == np.float32 for g in grads if g is not None)
    wide = [n for n, p in model.parameters() if p.grad.dtype != np.float32]
    assert not wide, f"float64 gradients: {wide}"


@pytest.mark.parametrize("timestep", [7, 7.0, np.int64(7), np.float64(7), np.array([7, 7]),
                                      np.array([7.0, 7.0]), np.array([7, 7], np.float32)])
def test_the_timestep_may_be_any_kind_of_number(timestep):
    case = CASES["one_level"]
    model, given = network(case, np.float32), arguments(case, np.float32)
    given = given | {"sample": given["sample"][:2], "context": given["context"][:2]}
    y = model.forward(**given | {"timestep": timestep})
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, model.forward(**given | {"timestep": 7}))


def test_with_the_middle_cut_off_the_gradient_arrives_through_the_skips():
    case = CASES["stable_diffusion"]
    model, given, dy = network(case), arguments(case), cotangent(case)
    first = model.up_blocks[0].resnets[0]                             # joins the middle, 16 of 32
    first.norm1.weight.value[:16] = first.norm1.bias.value[:16] = 0   # groups of 8: none has both
    first.conv_shortcut.weight.value[:, :16] = 0
    tape = Tape()
    model.forward(**given, tape=tape)
    grads = model.backward(dy, tape)
    for name, p in model.parameters():
        if name.startswith("mid_block"):
            assert not p.grad.any(), f"{name} is cut off, and has a gradient"
        elif name.startswith("down_blocks") and p.grad.ndim == 4:
            assert p.grad.any(), f"{name} feeds a skip, and has no gradient"
    assert_direction(lambda: model.forward(**given), {"sample": given["sample"]}, dy,
                     np.random.default_rng(2), sample=grads.sample)


def test_the_number_of_skips_pushed_is_the_number_popped():
    case = CASES["lists"]
    model, given = network(case), arguments(case)
    seen = []
    for block in (*model.down_blocks, *model.up_blocks):
        original = block.forward

        def spy(x, skips, *rest, original=original):
            y = original(x, skips, *rest)
            seen.append(len(skips))
            return y

        block.forward = spy
    model.forward(**given)
    assert seen == [3, 7, 9, 6, 2, 0]                                 # layers 1, 3, 2 and halvings


def test_two_backward_passes_add_up_in_every_parameter():
    case = CASES["text_time_and_class"]
    model, given, dy = network(case), arguments(case), cotangent(case)
    grads = []
    for _ in range(2):
        tape = Tape()
        model.forward(**given, tape=tape)
        model.backward(dy, tape)
        grads.append({n: p.grad for n, p in model.parameters()})
    for name, grad in grads[0].items():
        np.testing.assert_allclose(grads[1][name], 2 * grad, err_msg=name)


def test_training_may_leave_out_the_gradient_of_the_sample():
    case = next(case for case in CASES.values() if case.config.get("center_input_sample"))
    model, grads = network(case), []
    for needed in (True, False):
        model.zero_grad()
        tape = Tape()
        model.forward(**arguments(case), tape=tape)
        gradients = model.backward(cotangent(case), tape, needs_dsample=needed)
        assert (gradients.sample is not None) == needed
        grads.append({name: p.grad for name, p in model.parameters()})
    assert all((grads[0][name] == grads[1][name]).all() for name in grads[0])


def test_a_frozen_network_still_guides_its_input():
    case = CASES["stable_diffusion"]
    model, given, dy = network(case), arguments(case), cotangent(case)
    samples = []
    for _ in range(2):
        tape = Tape()
        model.forward(**given, tape=tape)
        samples.append(model.backward(dy, tape).sample)
        model.freeze()
    np.testing.assert_array_equal(*samples)
    assert all(p.grad is None for _, p in model.parameters())


def test_each_norm_adds_the_epsilon_that_was_published():
    """+-a becomes +-a / sqrt(a^2 + epsilon): 1e-6 before a transformer, 1e-5 in the blocks."""
    a = 1e-3
    x = a * np.tile([1.0, -1.0], 4).reshape(1, 8, 1, 1)
    before = Transformer2D(8, 4, 2, num_layers=1, num_groups=4, use_linear_projection=False,
                           only_cross_attention=False).initialise(0, np.float64)
    np.testing.assert_allclose(before.norm.forward(x), x / np.sqrt(a**2 + 1e-6), rtol=1e-12)
    y = before.transformer_blocks[0].norm1.forward(x[:, :, 0, 0])
    np.testing.assert_allclose(y, x[:, :, 0, 0] / np.sqrt(a**2 + 1e-5), rtol=1e-12)


def test_pictures_of_a_batch_do_not_meet():
    case = CASES["lists"]
    model, given = network(case), arguments(case)
    together = model.forward(**given)
    alone = model.forward(given["sample"][1:], given["timestep"][1:], given["context"][1:])
    np.testing.assert_allclose(together[1:], alone, rtol=0, atol=1e-12)


def test_dropout_acts_in_training_alone_and_its_gradient_is_its_derivative():
    case = CASES["scale_shift"]                                       # dropout 0.5
    model, given, dy = network(case), arguments(case), cotangent(case)
    plain = model.forward(**given)
    np.testing.assert_array_equal(model.forward(**given, tape=Tape()), plain)

    def trained():
        return model.forward(**given, tape=Tape(np.random.default_rng(5)))

    assert np.abs(trained() - plain).max() > 0.1
    tape = Tape(np.random.default_rng(5))
    model.forward(**given, tape=tape)
    grads = model.backward(dy, tape)
    wrt = {"sample": given["sample"]} | model.state()
    assert_direction(trained, wrt, dy, np.random.default_rng(6), sample=grads.sample,
                     **{n: p.grad for n, p in model.parameters()})


def test_a_fresh_network_answers_zero_and_learns_from_its_last_layer():
    case = CASES["stable_diffusion"]
    model = UNet(**case.config).initialise(0)
    given, tape = arguments(case, np.float32), Tape()
    assert not model.forward(**given, tape=tape).any()
    model.backward(cotangent(case).astype(np.float32), tape)
    grads = {n: p.grad for n, p in model.parameters()}
    assert grads["conv_out.weight"].any() and not grads["conv_in.weight"].any()


def joint(dtype, pooled):
    """Return text encoder and U-Net as one model, with ids, pictures and timesteps."""
    pipe = tiny_pipeline(pooled=pooled)
    model = TextAndPicture(pipe.text_encoder, pipe.unet)
    model.initialise(0, dtype)
    wake(model)
    ids = pipe.tokenizer.encode_batch(["red heart, noto style", "", "a blue circle"])
    rng = np.random.default_rng(0)
    return (model, rng.normal(size=(3, 3, 16, 16)).astype(dtype), np.array([0, 400, 999], dtype),
            ids, rng.normal(size=(3, 3, 16, 16)).astype(dtype))


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("part", ["text_encoder", "unet"])
def test_text_encoder_and_network_together_are_derivatives_along_a_random_direction(part, pooled):
    model, x_t, timestep, ids, dy = joint(np.float64, pooled)
    tape = Tape()
    model.forward(x_t, timestep, ids, tape)
    model.backward(dy, tape)
    assert not tape.stack
    parameters = {n: p for n, p in model.parameters() if n.startswith(part)}
    assert len(parameters) > 10
    assert_direction(lambda: model.forward(x_t, timestep, ids, Tape()),
                     {n: p.value for n, p in parameters.items()}, dy, np.random.default_rng(3),
                     **{n: p.grad for n, p in parameters.items()})


def test_a_training_step_is_float32_from_pictures_to_gradients(monkeypatch):
    tapes = []

    class Kept(Tape):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.saved = []
            tapes.append(self)

        def save(self, layer, cache):
            self.saved.append((layer, cache))
            super().save(layer, cache)

    monkeypatch.setattr("tinydiff.recipes.text_to_image.Tape", Kept)
    objective = tiny_objective("loss.min_snr_gamma=5")
    wake(objective.model)
    loss = objective.shard(objective.model, 0, [(0, 3), (1, 7)], 0.5)
    assert isinstance(loss, float) and np.isfinite(loss)
    assert len(tapes) == 1 and not tapes[0].stack
    wide = {repr(layer) for layer, cache in tapes[0].saved for a in arrays(cache)
            if a.dtype == np.float64 and a.size > 1}
    assert not wide, f"float64 on the tape: {sorted(wide)}"
    assert {p.grad.dtype.name for _, p in objective.model.parameters()} == {"float32"}
