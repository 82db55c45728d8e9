"""Our DiT is diffusers' DiTTransformer2DModel: same tensors, same outputs, same gradients.

What diffusers computes for the configurations of dit_configs.py is committed (made by
reference/make_dit.py); where torch and diffusers are installed it is computed afresh too, every
entry of every gradient is compared, and models travel in both directions as files.

Tolerances are relative to the largest entry of the array compared.  In float64 1e-11: the two
programs add in another order, which moves the last digits (6e-14 was seen), while the smallest
slip in the formula moves far more (an epsilon of 1e-5 for 1e-6: 5e-6).  In float32, where
diffusers' own sinusoids put its outputs off by up to 5e-6 and its gradients by up to 7e-6 (ours:
3e-7), 1e-5 for outputs and 1e-4 for gradients, as for the U-Net.
"""
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from dit_configs import CASES, PUBLISHED, TINY, cotangent, gradient_sums, inputs, own_name, weight
from unet_configs import digest

import tinydiff
from tinydiff.backends.threads import obstacle
from tinydiff.models import DiT
from tinydiff.nn import Tape
from tinydiff.safetensors import read_safetensors

FOLDER = Path(__file__).parent / "reference" / "dit"
RTOL64, RTOL32, RTOL32_GRAD = 1e-11, 1e-5, 1e-4

each_case = pytest.mark.parametrize("name", CASES)


# ---- the two sides ----

def committed(name):
    """Return the committed reference of a case."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def ours(case, dtype):
    """Return our model of a case, filled as a file would fill it."""
    model = DiT(**case.config)
    model.load_published({name: weight(name, values, case.tied)
                          for name, values in shapes_of(model).items()}, dtype)
    assert model.tied == (case.tied or case.config["num_layers"] == 1)
    return model


def shapes_of(model):
    """Return ``{name: shape}`` of the file that the model would write."""
    shapes = {name: p.shape for name, p in model.parameters()}
    for name in model.published_state():
        if name not in shapes:
            shapes[name] = shapes[f"transformer_blocks.0.{name.split('.', 2)[2]}"]
    return shapes


def run(model, case, dtype):
    """Return our output and the sample's gradient, under the reference's names."""
    given = inputs(case)
    given["sample"] = given["sample"].astype(dtype)
    tape = Tape()
    y = model.forward(**given, tape=tape)
    dsample = model.backward(cotangent(case).astype(dtype), tape)
    assert not tape.stack, "the backward pass left something on the tape"
    return {"output": y, "d_sample": dsample}


def rtol32(key):
    return RTOL32 if key == "output" else RTOL32_GRAD


def assert_near(got, want, rtol, what):
    assert got.dtype == want.dtype, f"{what}: {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"{what}: {got.shape}, expected {want.shape}"
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error < rtol, f"{what}: relative error {error:.1e} (tolerance {rtol:.0e})"


def assert_parameter_gradients(model, want, rtol):
    """Compare one random component of each tensor's gradient, relative to that gradient.

    A gradient that is zero in theory (a key's bias) is all rounding error, so 1e-4 of the largest
    gradient is added to the scale.
    """
    floor = 1e-4 * want["norms"].max()
    names = json.loads(str(want["names"]))
    own = gradient_sums({name: p.grad for name, p in model.parameters()}, tied=False)
    assert own.keys() == set(names)
    for name, sum_, norm in zip(names, want["checksums"], want["norms"], strict=True):
        error = abs(own[name][0] - sum_) / (norm + floor)
        assert error < rtol, f"d {name}: relative error {error:.1e} (tolerance {rtol:.0e})"


def assert_parity(case, want):
    """Compare names, shapes, outputs and all gradients, in both precisions."""
    model = ours(case, np.float64)
    shapes = {name: list(shape) for name, shape in shapes_of(model).items()}
    assert shapes == json.loads(str(want["shapes"]))
    for key, value in run(model, case, np.float64).items():
        assert_near(value, want[key], RTOL64, f"{key}, float64")
    assert_parameter_gradients(model, want, RTOL64)

    for mode in ["reference"] if obstacle() else ["reference", "precise", "fast"]:
        model = ours(case, np.float32)
        with tinydiff.use(mode):
            single = run(model, case, np.float32)
        for key, value in single.items():
            assert_near(value, want[f"{key}32"], rtol32(key), f"{key}, {mode} float32")
        assert_parameter_gradients(model, want, RTOL32_GRAD)


# ---- against what is committed ----

@each_case
def test_dit_is_diffusers(name):
    assert_parity(CASES[name], committed(name))


def test_the_cases_move_every_supported_field():
    fields = set(DiT(**TINY).config) - {"norm_type"}                  # of which one value is known
    for field in fields:
        values = {json.dumps(case.config.get(field, "default")) for case in CASES.values()}
        assert len(values) > 1, f"{field} is the same in every case"
    assert {case.tied for case in CASES.values()} == {True, False}
    assert len({case.config.get("activation_fn") for case in CASES.values()}) == 5


# ---- configurations ----

DEFAULTS = {                              # diffusers 0.42.1's own
    "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None,
    "num_layers": 28, "dropout": 0.0, "norm_num_groups": 32, "attention_bias": True,
    "sample_size": 32, "patch_size": 2, "activation_fn": "gelu-approximate",
    "num_embeds_ada_norm": 1000, "upcast_attention": False, "norm_type": "ada_norm_zero",
    "norm_elementwise_affine": False, "norm_eps": 1e-5,
}

REFUSED = {
    "num_attention_heads": 3, "attention_head_dim": 0, "in_channels": 2.5, "out_channels": 0,
    "num_layers": 0, "sample_size": [6, 6], "patch_size": 4, "activation_fn": "swiglu",
    "num_embeds_ada_norm": None, "norm_type": "ada_norm_single", "cross_attention_dim": 8,
    "num_vector_embeds": 5, "only_cross_attention": True, "double_self_attention": True,
    "use_linear_projection": True, "attention_type": "gated", "caption_channels": 4,
    "interpolation_scale": 2, "use_additional_conditions": True, "patch_sise": 2,
}


@pytest.mark.parametrize("field", REFUSED)
def test_an_unsupported_field_or_value_is_refused_by_name(field):
    config = TINY | {"attention_head_dim": 2} | {field: REFUSED[field]}
    with pytest.raises(ValueError, match=rf"^DiT config: .*\b{field}\b") as error:
        DiT(**config)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_tensors(name):
    want = json.loads((FOLDER / "published.json").read_text())[name]
    model = DiT(**PUBLISHED[name])
    shapes = shapes_of(model)
    assert len(shapes) == want["tensors"]
    assert digest(shapes) == want["sha256"]
    D, classes, copies = 1152, 1000, model.config["num_layers"] - 1
    embedders = (256 * D + D) + (D * D + D) + (classes + 1) * D
    assert model.count() == want["numbers"] - copies * embedders
    assert all(p.value is None for _, p in model.parameters()), "a shape needs no memory"


# ---- live, where torch and diffusers are installed ----

@pytest.fixture
def live():
    """Return the module that runs diffusers; other people's warnings are not our errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch")
        pytest.importorskip("diffusers")
        from reference import make_dit
        yield make_dit


@each_case
def test_dit_is_diffusers_live(name, live):
    want = live.reference(CASES[name])
    assert_parity(CASES[name], want)
    for key, value in committed(name).items():
        if value.dtype == np.float64:
            assert_near(want[key], value, RTOL64, f"committed {key}")


@each_case
def test_every_entry_of_every_gradient_is_that_of_autograd(name, live):
    import torch

    case = CASES[name]
    theirs, model = live.build(case, torch.float64), ours(case, np.float64)
    live.run(theirs, case, torch.float64)
    run(model, case, np.float64)
    want = {}
    for n, p in theirs.named_parameters():
        own = own_name(n, model.tied)
        want[own] = want.get(own, 0) + p.grad.numpy()
    got = {n: p.grad for n, p in model.parameters()}
    assert got.keys() == want.keys()
    scale = max(np.abs(grad).max() for grad in want.values())
    for n, grad in want.items():
        largest = max(np.abs(grad).max(), 1e-4 * scale)               # a key's bias has gradient 0
        np.testing.assert_allclose(got[n], grad, rtol=0, atol=RTOL64 * largest, err_msg=n)


@each_case
def test_a_model_saved_here_opens_in_diffusers(name, live, tmp_path):
    import torch
    from diffusers import DiTTransformer2DModel

    case = CASES[name]
    model = ours(case, np.float32)
    model.save_pretrained(tmp_path, dtype="float32")
    theirs, info = DiTTransformer2DModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    want = live.run(theirs.eval(), case, torch.float32)
    for key, value in run(model, case, np.float32).items():
        assert_near(value, want[key], rtol32(key), key)


@each_case
def test_a_model_saved_by_diffusers_opens_here(name, live, tmp_path):
    import torch

    case = CASES[name]
    live.build(case, torch.float32).save_pretrained(tmp_path)
    model = DiT.from_pretrained(tmp_path)
    assert model.tied == (case.tied or case.config["num_layers"] == 1)
    for n, value in model.published_state().items():
        np.testing.assert_array_equal(value, weight(n, value.shape, case.tied).astype(np.float32))
    for key, value in run(model, case, np.float32).items():
        assert_near(value, committed(name)[f"{key}32"], rtol32(key), key)


def test_a_model_of_the_class_that_it_once_was_opens_here(live, tmp_path):
    import torch

    case = CASES["learned_variance"]
    live.build(case, torch.float32).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config |= {n: v for n, v in PUBLISHED["dit_xl_2_256"].items() if n not in config or n[0] == "_"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    for key, value in run(DiT.from_pretrained(tmp_path), case, np.float32).items():
        assert_near(value, committed("learned_variance")[f"{key}32"], rtol32(key), key)
    (tmp_path / "config.json").write_text(json.dumps(config | {"_class_name": "UNet2DModel"}))
    with pytest.raises(ValueError, match="describes UNet2DModel, not DiTTransformer2DModel"):
        DiT.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_diffusers_tensors_live(name, live):
    assert shapes_of(DiT(**PUBLISHED[name])) == live.published_shapes(PUBLISHED[name])


def test_the_defaults_above_are_those_of_diffusers(live):
    import inspect

    from diffusers import DiTTransformer2DModel

    signature = inspect.signature(DiTTransformer2DModel.__init__).parameters
    assert {field: p.default for field, p in signature.items() if field != "self"} == DEFAULTS
    config = DiT().config
    assert {field: config[field] for field in DEFAULTS} == DEFAULTS


def test_training_in_diffusers_parts_the_embedders_and_such_a_file_opens_here(live, tmp_path):
    import torch

    case = CASES["learned_variance"]
    theirs = live.build(case, torch.float32)
    live.run(theirs, case, torch.float32)
    torch.optim.SGD(theirs.parameters(), lr=1e-3).step()
    theirs.zero_grad()
    theirs.save_pretrained(tmp_path)
    model = DiT.from_pretrained(tmp_path)
    assert not model.tied
    want = live.run(theirs, case, torch.float32)
    for key, value in run(model, case, np.float32).items():
        assert_near(value, want[key], rtol32(key), key)
    model.save_pretrained(tmp_path / "again")
    file = "diffusion_pytorch_model.safetensors"
    was, again = (read_safetensors(folder / file) for folder in (tmp_path, tmp_path / "again"))
    assert was.keys() == again.keys()
    assert all((was[name] == again[name]).all() for name in was)
