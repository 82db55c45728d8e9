"""Our U-Net is diffusers' UNet2DConditionModel: same tensors, same outputs, same gradients.

What diffusers computes for the configurations of unet_configs.py is committed (made by
reference/make_unet.py); where torch and diffusers are installed it is computed afresh too,
and models travel in both directions as files.

Tolerances are relative to the largest entry of the array compared.  In float64 1e-11: the
two programs add in another order, which moves the last digits (3e-14 was seen), while the
smallest slip in the formula moves far more (an epsilon of 1e-5 for 1e-6: 7e-6).  In float32,
diffusers' own rounding error, against its float64, is up to 1.3e-6 in these outputs and up to
1.8e-5 in these gradients, which pass through twice as many layers; ours is the same, and the
tolerances are some five times that: 1e-5 and 1e-4.  The readable path and the precise kernels
keep them; the fast path, whose convolutions round more (Winograd), gets ten times as much.
"""
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from unet_configs import CASES, PUBLISHED, TINY, checksum, cotangent, digest, inputs, weight

import tinydiff
from tinydiff.backends.threads import obstacle
from tinydiff.models import UNet
from tinydiff.nn import Tape

FOLDER = Path(__file__).parent / "reference" / "unet"
RTOL64, RTOL32, RTOL32_GRAD = 1e-11, 1e-5, 1e-4
WINOGRAD = 10                           # see kernels/README.md, section 5

each_case = pytest.mark.parametrize("name", CASES)


# ---- the two sides ----

def committed(name):
    """Return the committed reference of a case."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def ours(case, dtype):
    """Return our model of a case, filled as diffusers' was."""
    model = UNet(**case.config)
    return model.load_state({name: weight(name, p.shape) for name, p in model.parameters()},
                            dtype=dtype)


def arguments(case, dtype):
    """Return the keyword arguments of `UNet.forward`; numbers that count stay integers."""
    args = {name: value.astype(dtype) if getattr(value, "dtype", None) == np.float64 else value
            for name, value in inputs(case).items()}
    if case.text_embeds:
        args["added"] = {name: args.pop(name) for name in ("text_embeds", "time_ids")}
    return args


def run(model, case, dtype):
    """Return our output and input gradients, under the reference's names."""
    tape = Tape()
    y = model.forward(**arguments(case, dtype), tape=tape)
    grads = model.backward(cotangent(case).astype(dtype), tape)
    assert not tape.stack, "the backward pass left something on the tape"
    return {"output": y, **{f"d_{name}": g for name, g in grads._asdict().items()
                            if g is not None}}


def rtol32(key):
    return RTOL32 if key == "output" else RTOL32_GRAD


def assert_near(got, want, rtol, what):
    assert got.dtype == want.dtype, f"{what}: {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"{what}: {got.shape}, expected {want.shape}"
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error < rtol, f"{what}: relative error {error:.1e} (tolerance {rtol:.0e})"


def assert_parameter_gradients(model, want, rtol):
    """Compare one random component of each tensor's gradient, relative to that gradient.

    A gradient that is zero in theory (a bias just before a normalisation) is all rounding
    error, so a millionth of the largest gradient is added to the scale.
    """
    floor = 1e-6 * want["norms"].max()
    names = json.loads(str(want["shapes"]))
    own = dict(model.parameters())
    for name, sum_, norm in zip(names, want["checksums"], want["norms"], strict=True):
        grad = own[name].grad
        assert grad is not None, f"{name} got no gradient"
        error = abs(checksum(name, grad) - sum_) / (norm + floor)
        assert error < rtol, f"d {name}: relative error {error:.1e} (tolerance {rtol:.0e})"


def assert_parity(case, want):
    """Compare names, shapes, outputs and all gradients, in both precisions."""
    model = ours(case, np.float64)
    shapes = {name: list(p.shape) for name, p in model.parameters()}
    assert shapes == json.loads(str(want["shapes"]))

    wanted = {key for key in want if key.startswith("d_") and not key.endswith("32")} | {"output"}
    double = run(model, case, np.float64)
    assert double.keys() == wanted
    for key, value in double.items():
        assert_near(value, want[key], RTOL64, f"{key}, float64")
    assert_parameter_gradients(model, want, RTOL64)

    for mode in modes():
        factor = WINOGRAD if mode == "fast" else 1
        model = ours(case, np.float32)
        with tinydiff.use(mode):
            single = run(model, case, np.float32)
        assert single.keys() == wanted
        for key, value in single.items():
            assert_near(value, want[f"{key}32"], factor * rtol32(key), f"{key}, {mode} float32")
        assert_parameter_gradients(model, want, factor * RTOL32_GRAD)


def modes():
    """The readable path, and the fast ones where Numba is installed."""
    return ["reference"] if obstacle() else ["reference", "precise", "fast"]


# ---- against what is committed ----

@each_case
def test_unet_is_diffusers(name):
    assert_parity(CASES[name], committed(name))


def test_the_cases_move_every_supported_field():
    fields = {
        "sample_size", "in_channels", "out_channels", "center_input_sample", "flip_sin_to_cos",
        "freq_shift", "down_block_types", "mid_block_type", "up_block_types",
        "only_cross_attention", "block_out_channels", "layers_per_block", "mid_block_scale_factor",
        "downsample_padding", "dropout", "act_fn", "norm_num_groups", "norm_eps",
        "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim",
        "use_linear_projection", "resnet_time_scale_shift", "class_embed_type", "num_class_embeds",
        "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim"}
    for field in fields:
        values = {json.dumps(case.config.get(field, "default")) for case in CASES.values()}
        assert len(values) > 1, f"{field} is the same in every case"
    with_lists = {field for case in CASES.values() for field, value in case.config.items()
                  if isinstance(value, list)}
    assert with_lists >= {"only_cross_attention", "layers_per_block", "cross_attention_dim",
                          "transformer_layers_per_block", "attention_head_dim"}
    activations = {case.config.get("act_fn") for case in CASES.values()}
    assert activations >= {"swish", "relu", "mish", "gelu"}


def test_num_attention_heads_is_attention_head_dim_by_its_right_name():
    # diffusers refuses this field until its naming is mended, so there is no reference for it.
    case = CASES["lists"]
    config = dict(case.config)
    config["num_attention_heads"] = config.pop("attention_head_dim")
    got = run(ours(replace(case, config=config), np.float64), case, np.float64)
    for key, value in got.items():
        assert_near(value, committed("lists")[key], RTOL64, key)
    assert UNet(**config).config["num_attention_heads"] is None      # so diffusers opens it


# ---- configurations ----

DEFAULTS = {                              # diffusers 0.42.1's own
    "reverse_transformer_layers_per_block": None, "encoder_hid_dim": None,
    "encoder_hid_dim_type": None, "num_attention_heads": None, "dual_cross_attention": False,
    "class_embed_type": None, "addition_embed_type": None, "addition_time_embed_dim": None,
    "num_class_embeds": None, "upcast_attention": False, "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional", "time_embedding_dim": None,
    "time_embedding_act_fn": None, "timestep_post_act": None, "time_cond_proj_dim": None,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "projection_class_embeddings_input_dim": None,
    "attention_type": "default", "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None, "cross_attention_norm": None,
    "addition_embed_type_num_heads": 64, "mid_block_type": "UNetMidBlock2DCrossAttn",
}

REFUSED = {
    "down_block_types": ["AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "SimpleCrossAttnUpBlock2D"],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "act_fn": "gelu_new",
    "norm_num_groups": None,
    "transformer_layers_per_block": [[1, 2], 1],
    "reverse_transformer_layers_per_block": [1, [1, 2]],
    "encoder_hid_dim": 16,
    "encoder_hid_dim_type": "text_proj",
    "dual_cross_attention": True,
    "class_embed_type": "simple_projection",
    "addition_embed_type": "text",
    "resnet_time_scale_shift": "ada_group",
    "resnet_skip_time_act": True,
    "resnet_out_scale_factor": 2.0,
    "time_embedding_type": "fourier",
    "time_embedding_dim": 64,
    "time_embedding_act_fn": "silu",
    "timestep_post_act": "silu",
    "time_cond_proj_dim": 32,
    "conv_in_kernel": 5,
    "conv_out_kernel": 1,
    "attention_type": "gated",
    "class_embeddings_concat": True,
    "mid_block_only_cross_attention": True,
    "cross_attention_norm": "layer_norm",
    "addition_embed_type_num_heads": 8,
    "block_out_chanels": [8, 16],
}


@pytest.mark.parametrize("field", REFUSED)
def test_an_unsupported_field_or_value_is_refused_by_name(field):
    with pytest.raises(ValueError, match=rf"\b{field}\b") as error:
        UNet(**TINY | {field: REFUSED[field]})
    assert "\n" not in str(error.value)


def test_a_class_embedding_without_a_name_of_its_own_is_refused():
    with pytest.raises(ValueError, match="class_embed_type='identity'"):
        UNet(**TINY | {"class_embed_type": "identity"})


@pytest.mark.parametrize("field", [
    "down_block_types", "up_block_types", "only_cross_attention", "layers_per_block",
    "cross_attention_dim", "transformer_layers_per_block", "attention_head_dim",
    "num_attention_heads"])
def test_a_list_of_the_wrong_length_is_refused_by_name(field):
    one = TINY.get(field, 1)
    one = one[0] if isinstance(one, list) else one
    # num_attention_heads is attention_head_dim by another name, and may be reported so.
    match = "num_attention_heads|attention_head_dim" if field == "num_attention_heads" else field
    with pytest.raises(ValueError, match=match):
        UNet(**TINY | {field: [one] * 3})


def test_more_heads_than_channels_are_refused():
    with pytest.raises(ValueError, match="attention_head_dim"):
        UNet(**TINY | {"attention_head_dim": [12, 2]})


@pytest.mark.parametrize("config, missing", [
    ({"class_embed_type": "projection"}, "projection_class_embeddings_input_dim"),
    ({"addition_embed_type": "text_time", "addition_time_embed_dim": 4},
     "projection_class_embeddings_input_dim"),
    ({"addition_embed_type": "text_time", "projection_class_embeddings_input_dim": 29},
     "addition_time_embed_dim")])
def test_a_field_that_another_needs_is_asked_for(config, missing):
    with pytest.raises(ValueError, match=missing):
        UNet(**TINY | config)


def test_fields_at_their_default_or_private_change_nothing():
    plain = {name: p.shape for name, p in UNet(**TINY).parameters()}
    notes = {"_class_name": "UNet2DConditionModel", "_diffusers_version": "0.6.0",
             "_name_or_path": "somewhere", "_use_default_values": ["dropout"]}
    for extra in ({field: value} for field, value in (DEFAULTS | notes).items()):
        assert {n: p.shape for n, p in UNet(**TINY | extra).parameters()} == plain, extra


@pytest.mark.parametrize("name, missing", [
    ("one_level", "context"), ("class_table", "class_labels"), ("class_timestep", "class_labels"),
    ("class_projection", "class_labels"), ("text_time", "added")])
def test_a_missing_input_is_asked_for(name, missing):
    case = CASES[name]
    args = arguments(case, np.float32)
    del args[missing]
    if missing == "context":              # of the network's own width, self-attention would fit
        case = replace(case, config=case.config | {"cross_attention_dim": 8})
    with pytest.raises(ValueError, match=missing if missing != "added" else "text_embeds"):
        ours(case, np.float32).forward(**args)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_tensors(name):
    want = json.loads((FOLDER / "published.json").read_text())[name]
    model = UNet(**PUBLISHED[name])
    shapes = {n: p.shape for n, p in model.parameters()}
    assert len(shapes) == want["tensors"]
    assert model.count() == want["parameters"]
    assert digest(shapes) == want["sha256"]
    assert all(p.value is None for _, p in model.parameters()), "a shape needs no memory"


# ---- live, where torch and diffusers are installed ----

@pytest.fixture
def live():
    """Return the module that runs diffusers; other people's warnings are not our errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch")
        pytest.importorskip("diffusers")
        from reference import make_unet
        yield make_unet


@each_case
def test_unet_is_diffusers_live(name, live):
    want = live.reference(CASES[name])
    assert_parity(CASES[name], want)
    for key, value in committed(name).items():
        if value.dtype == np.float64:
            assert_near(want[key], value, RTOL64, f"committed {key}")


@each_case
def test_a_model_saved_here_opens_in_diffusers(name, live, tmp_path):
    import torch
    from diffusers import UNet2DConditionModel

    case = CASES[name]
    model = ours(case, np.float32)
    model.save_pretrained(tmp_path, dtype="float32")
    theirs, info = UNet2DConditionModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    want = live.run(theirs.eval(), inputs(case), cotangent(case), torch.float32)
    with tinydiff.use("reference"):                      # of the file alone: no kernels' rounding
        got = run(model, case, np.float32)
    for key, value in got.items():
        assert_near(value, want[key], rtol32(key), key)


@each_case
def test_a_model_saved_by_diffusers_opens_here(name, live, tmp_path):
    import torch

    case = CASES[name]
    live.build(case.config, torch.float32).save_pretrained(tmp_path)
    model = UNet.from_pretrained(tmp_path)
    for n, p in model.parameters():
        np.testing.assert_array_equal(p.value, weight(n, p.shape).astype(np.float32))
    with tinydiff.use("reference"):                      # of the file alone: no kernels' rounding
        got = run(model, case, np.float32)
    for key, value in got.items():
        assert_near(value, committed(name)[f"{key}32"], rtol32(key), key)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_diffusers_tensors_live(name, live):
    shapes = {n: p.shape for n, p in UNet(**PUBLISHED[name]).parameters()}
    assert shapes == live.published_shapes(PUBLISHED[name])


def test_the_defaults_above_are_those_of_diffusers(live):
    import inspect

    from diffusers import UNet2DConditionModel

    signature = inspect.signature(UNet2DConditionModel.__init__).parameters
    assert {field: signature[field].default for field in DEFAULTS} == DEFAULTS
    assert not [field for field in REFUSED if field in signature
                and signature[field].default == REFUSED[field]]
