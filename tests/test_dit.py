"""DiT's backward pass is the derivative of its forward pass; fresh, it answers zero; tied embedders
are one set of weights, whatever a file makes of them.

That the forward pass is the published one is test_dit_parity.py's claim.
"""
import copy
import re

import numpy as np
import pytest
from dit_configs import CASES, TINY, cotangent, inputs, weight
from gradients import assert_direction
from test_unet import arrays
from tiny import wake

from tinydiff.ema import EMA
from tinydiff.jsonfile import read_json, write_json
from tinydiff.models import DiT
from tinydiff.models.patches import sincos_positions
from tinydiff.nn import Tape
from tinydiff.optim import AdamW
from tinydiff.safetensors import read_safetensors, write_safetensors

each_case = pytest.mark.parametrize("name", CASES)
FILE = "diffusion_pytorch_model.safetensors"
EMB = r"transformer_blocks\.\d+\.norm1\.emb\."


def network(case, dtype=np.float64):
    model = DiT(**case.config)
    if not case.tied:
        model.untie()
    state = {n: weight(n, p.shape, case.tied) for n, p in model.parameters()}
    return model.load_state(state, dtype)


def arguments(case, dtype=np.float64):
    given = inputs(case)
    return given | {"sample": given["sample"].astype(dtype)}


def gradients(model, given, dy, tape=None):
    """Run both passes; return dsample and every parameter's gradient."""
    tape = Tape() if tape is None else tape
    model.zero_grad()
    model.forward(**given, tape=tape)
    dsample = model.backward(dy, tape)
    assert not tape.stack, "the backward pass left something on the tape"
    return dsample, {n: p.grad for n, p in model.parameters()}


# ---- gradients ----

@each_case
@pytest.mark.parametrize("seed", [1, 2])
def test_all_gradients_are_derivatives_along_random_directions(name, seed):
    case = CASES[name]
    model, given, dy = network(case), arguments(case), cotangent(case)
    dsample, grads = gradients(model, given, dy)
    for wrt, got in (({"sample": given["sample"]}, {"sample": dsample}), (model.state(), grads)):
        assert_direction(lambda: model.forward(**given), wrt, dy, np.random.default_rng(seed),
                         **got)


@pytest.mark.parametrize("name", ["learned_variance", "affine_norm"])
def test_the_gradient_of_each_tensor_by_itself_is_the_derivative(name):
    case = CASES[name]
    model, given, dy = network(case), arguments(case), cotangent(case)
    _, grads = gradients(model, given, dy)
    for n, value in model.state().items():
        if not n.endswith("to_k.bias"):                               # zero: softmax ignores it
            assert_direction(lambda: model.forward(**given), {n: value}, dy,
                             np.random.default_rng(3), rtol=1e-5, **{n: grads[n]})


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
    assert model.backward(cotangent(case).astype(np.float32), tape).dtype == np.float32
    wide = [n for n, p in model.parameters() if p.grad.dtype != np.float32]
    assert not wide, f"float64 gradients: {wide}"


@pytest.mark.parametrize("timestep", [7, 7.0, np.int64(7), np.float64(7), np.array([7, 7]),
                                      np.array([7.0, 7.0]), np.array([7, 7], np.float32)])
def test_the_timestep_may_be_any_kind_of_number(timestep):
    case = CASES["learned_variance"]
    model, given = network(case, np.float32), arguments(case, np.float32)
    y = model.forward(**given | {"timestep": timestep})
    assert y.dtype == np.float32
    np.testing.assert_array_equal(y, model.forward(**given | {"timestep": 7}))


def test_dropout_acts_in_training_alone_and_its_gradient_is_its_derivative():
    case = CASES["large_patches"]                                     # dropout 0.5
    model, given, dy = network(case), arguments(case), cotangent(case)
    plain = model.forward(**given)
    np.testing.assert_array_equal(model.forward(**given, tape=Tape()), plain)

    def trained():
        return model.forward(**given, tape=Tape(np.random.default_rng(5)))

    assert np.abs(trained() - plain).max() > 0.1
    dsample, grads = gradients(model, given, dy, Tape(np.random.default_rng(5)))
    assert_direction(trained, {"sample": given["sample"]} | model.state(), dy,
                     np.random.default_rng(6), sample=dsample, **grads)


def test_training_may_leave_out_the_gradient_of_the_sample():
    case = CASES["learned_variance"]
    model, given, dy = network(case), arguments(case), cotangent(case)
    _, want = gradients(model, given, dy)
    model.zero_grad()
    tape = Tape()
    model.forward(**given, tape=tape)
    assert model.backward(dy, tape, needs_dsample=False) is None
    assert all((p.grad == want[n]).all() for n, p in model.parameters())


def test_a_frozen_network_still_guides_its_input():
    case = CASES["affine_norm"]
    model, given, dy = network(case), arguments(case), cotangent(case)
    before, _ = gradients(model, given, dy)
    after, grads = gradients(model.freeze(), given, dy)
    np.testing.assert_array_equal(before, after)
    assert set(grads.values()) == {None}


def test_pictures_of_a_batch_do_not_meet():
    case = CASES["one_layer"]
    model, given = network(case), arguments(case)
    together = model.forward(**given)
    alone = model.forward(given["sample"][1:], given["timestep"], given["class_labels"][1:])
    np.testing.assert_allclose(together[1:], alone, rtol=0, atol=1e-12)


# ---- a fresh network ----

@pytest.mark.parametrize("config", [TINY, TINY | {"out_channels": 4, "patch_size": 3}])
def test_a_fresh_network_answers_zero_and_learns_from_its_last_layer(config):
    model = DiT(**config).initialise(0)
    x = np.random.default_rng(0).normal(size=(2, 2, 6, 6)).astype(np.float32)
    tape = Tape()
    y = model.forward(x, 500, np.array([0, 5]), tape)
    assert y.shape == (2, config.get("out_channels", 2), 6, 6) and not y.any()
    model.backward(np.ones_like(y), tape)
    for n, p in model.parameters():
        assert p.grad.any() == n.startswith("proj_out_2"), n


def test_a_fresh_block_is_the_identity_whatever_the_condition():
    model = DiT(**TINY).initialise(0, np.float64)
    rng = np.random.default_rng(0)
    x, condition = rng.normal(size=(2, 9, 8)), rng.normal(size=(2, 8))
    for block in model.transformer_blocks:
        np.testing.assert_array_equal(block.forward(x, condition), x)


def test_weights_start_as_published():
    model = DiT(**TINY | {"num_attention_heads": 8, "attention_head_dim": 16,
                          "num_embeds_ada_norm": 500}).initialise(0)
    D, state = 128, model.state()
    block = "transformer_blocks.1."
    emb = "transformer_blocks.0.norm1.emb."
    for name, std in ((emb + "class_embedder.embedding_table.weight", 0.02),
                      (emb + "timestep_embedder.linear_1.weight", 0.02),
                      (emb + "timestep_embedder.linear_2.weight", 0.02),
                      ("pos_embed.proj.weight", (2 / (D + 2 * 2 * 2)) ** 0.5),
                      (block + "attn1.to_k.weight", (2 / (D + 3 * D)) ** 0.5),
                      (block + "attn1.to_out.0.weight", (2 / (D + D)) ** 0.5),
                      (block + "ff.net.0.proj.weight", (2 / (D + 4 * D)) ** 0.5),
                      (block + "ff.net.2.weight", (2 / (D + 4 * D)) ** 0.5)):
        assert state[name].std() == pytest.approx(std, rel=0.05), name
    for name, value in state.items():
        zero = name.endswith("bias") or re.search(r"norm1\.linear|proj_out", name)
        assert value.any() != bool(zero), name


# ---- what it is told ----

def test_every_label_is_another_and_the_null_class_is_the_last():
    case = CASES["learned_variance"]
    model, given = network(case), arguments(case)
    assert model.null_class == 5
    answers = [model.forward(given["sample"], 3, np.full(2, label))[0] for label in range(6)]
    for i, j in zip(*np.triu_indices(6, 1), strict=True):
        assert np.abs(answers[i] - answers[j]).max() > 1e-3


@pytest.mark.parametrize(("labels", "fault"), [
    (None, "class_labels are missing; 5, its null_class, means none"),
    (np.array([6, 0]), "ids run from 0 to 6, the table has rows 0 to 5"),
    (np.array([0, -1]), "ids run from -1 to 0"),
    (np.array([1]), r"class_labels of shape \(1,\) for 2 pictures")])
def test_labels_that_do_not_fit_are_refused(labels, fault):
    case = CASES["learned_variance"]
    model, given = network(case), arguments(case)
    with pytest.raises(ValueError, match=fault):
        model.forward(**given | {"class_labels": labels})


@pytest.mark.parametrize(("shape", "fault"), [
    ((2, 3, 6, 6), "a sample of 3 channels: this DiT takes 2"),
    ((2, 2, 6, 7), "patch_size=2 does not divide pictures of 6 x 7")])
def test_pictures_that_do_not_fit_are_refused(shape, fault):
    model = network(CASES["learned_variance"])
    with pytest.raises(ValueError, match=fault):
        model.forward(np.ones(shape), 3, np.array([0, 1]))


def test_places_are_sines_and_cosines_of_column_and_row_over_the_same_span():
    table = sincos_positions(2, 4, 8, side=4, like=np.zeros(1)).reshape(2, 4, 8)
    for y, x in np.ndindex(2, 4):
        angles = [x, x / 100, 2 * y, 2 * y / 100]                     # two rows span four
        want = [*np.sin(angles[:2]), *np.cos(angles[:2]), *np.sin(angles[2:]), *np.cos(angles[2:])]
        np.testing.assert_allclose(table[y, x], want, rtol=0, atol=1e-15)


def test_a_picture_may_be_wider_than_high():
    # diffusers puts such tokens together as if the picture were square.
    model = network(CASES["learned_variance"])
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(1, 2, 4, 10)), rng.normal(size=(1, 4, 4, 10))
    given = {"sample": x, "timestep": 3, "class_labels": np.array([2])}
    dsample, _ = gradients(model, given, dy)
    assert_direction(lambda: model.forward(**given), {"sample": x}, dy, rng, sample=dsample)


# ---- tied embedders ----

def test_tied_embedders_are_one_set_counted_once_and_share_their_gradient():
    case = CASES["learned_variance"]                                  # three blocks
    model, given, dy = network(case), arguments(case), cotangent(case)
    assert model.tied
    names = [n for n, _ in model.parameters()]
    assert len(names) == len(set(names))
    own = [n for n in names if re.match(EMB, n)]
    assert len(own) == 5 and all(n.startswith("transformer_blocks.0.") for n in own)
    _, tied = gradients(model, given, dy)

    untied = copy.deepcopy(model).untie()
    assert not untied.tied
    np.testing.assert_array_equal(untied.forward(**given), model.forward(**given))
    _, grads = gradients(untied, given, dy)
    assert untied.count() - model.count() == 2 * sum(grads[n].size for n in own)
    for n in own:
        parts = [grads[n.replace("blocks.0.", f"blocks.{k}.")] for k in range(3)]
        np.testing.assert_allclose(sum(parts), tied[n], rtol=0, atol=1e-12 * np.abs(tied[n]).max())
        assert all(part.any() for part in parts)


def test_a_tied_network_is_written_to_every_block_and_comes_back_tied(tmp_path):
    model = wake(DiT(**TINY))
    model.save_pretrained(tmp_path)
    tensors = read_safetensors(tmp_path / FILE)
    emb = {n: v for n, v in tensors.items() if re.match(EMB, n)}
    assert len(emb) == 10
    for name, values in emb.items():
        np.testing.assert_array_equal(values, tensors[re.sub(r"blocks\.\d", "blocks.0", name)])
    again = DiT.from_pretrained(tmp_path)
    assert again.tied and again.config == model.config
    assert again.state().keys() == model.state().keys()
    assert all((value == model.state()[n]).all() for n, value in again.state().items())


def test_a_file_whose_blocks_differ_is_opened_untied_and_written_back_as_it_was(tmp_path):
    wake(DiT(**TINY)).save_pretrained(tmp_path)
    tensors = {n: np.array(v) for n, v in read_safetensors(tmp_path / FILE).items()}
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    tensors[name][3, 0] += 1
    write_safetensors(tmp_path / FILE, tensors)
    model = DiT.from_pretrained(tmp_path)
    assert not model.tied
    model.save_pretrained(tmp_path)
    again = read_safetensors(tmp_path / FILE)
    assert again.keys() == tensors.keys()
    assert all((again[n] == tensors[n]).all() for n in tensors)


@pytest.mark.parametrize(("change", "fault"), [
    ("drop a copy", "missing tensors: transformer_blocks.1.norm1.emb.class_embedder"),
    ("drop the original", "missing tensors: transformer_blocks.0.norm1.emb.class_embedder"),
    ("one block too many", "unexpected tensors: transformer_blocks.2.norm1.emb.class_embedder")])
def test_a_file_that_lacks_a_copy_or_has_one_too_many_is_refused_by_name(change, fault, tmp_path):
    wake(DiT(**TINY)).save_pretrained(tmp_path)
    tensors = {n: np.array(v) for n, v in read_safetensors(tmp_path / FILE).items()}
    name = "transformer_blocks.{}.norm1.emb.class_embedder.embedding_table.weight"
    if change == "one block too many":
        tensors[name.format(2)] = tensors[name.format(0)]
    else:
        del tensors[name.format("01"[change == "drop a copy"])]
    write_safetensors(tmp_path / FILE, tensors)
    with pytest.raises(ValueError, match=fault):
        DiT.from_pretrained(tmp_path)


def test_replicas_share_their_values_and_training_keeps_embedders_tied():
    case = CASES["learned_variance"]
    model, given, dy = network(case, np.float32), arguments(case, np.float32), cotangent(case)
    ema = EMA(model)
    optimiser = AdamW(model.parameters(), ema=ema)
    twin = model.replica()
    assert twin.tied and ema.model.tied
    _, grads = gradients(twin, given, dy.astype(np.float32))
    gradients(model, given, dy.astype(np.float32))
    was = model.forward(**given)
    optimiser.step(lr=1e-2)
    assert np.abs(model.forward(**given) - was).max() > 1e-3
    for (n, p), (_, q) in zip(model.parameters(), twin.parameters(), strict=True):
        assert p.value is q.value, n
    assert model.tied and grads.keys() == model.state().keys()
    for k, block in enumerate(model.transformer_blocks):
        assert block.norm1.emb is model.transformer_blocks[0].norm1.emb, k


@pytest.mark.parametrize("name", ["DiTTransformer2DModel", "Transformer2DModel", None])
def test_a_file_of_the_class_that_it_is_or_once_was_opens_and_no_other(name, tmp_path):
    wake(DiT(**TINY)).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    config = read_json(path)
    assert config.pop("_class_name") == "DiTTransformer2DModel"
    write_json(path, config | ({"_class_name": name} if name else {}))
    assert DiT.from_pretrained(tmp_path).tied
    write_json(path, config | {"_class_name": "PixArtTransformer2DModel"})
    with pytest.raises(ValueError, match="describes PixArtTransformer2DModel, not DiTTransformer"):
        DiT.from_pretrained(tmp_path)
