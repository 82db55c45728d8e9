"""Our autoencoder is diffusers' AutoencoderKL: same tensors, same outputs, same gradients.

What diffusers computes for the configurations of autoencoder_configs.py is committed (made by
reference/make_autoencoder.py); where torch and diffusers are installed it is computed afresh
too, and models travel in both directions as files.

The tolerances are those of test_unet_parity.py, for the same reasons: relative to the largest
entry of the array compared, 1e-11 in float64, 1e-5 (outputs) and 1e-4 (gradients) in float32.
"""
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from autoencoder_configs import CASES, PUBLISHED, blocks, cotangents, inputs
from test_unet_parity import (
    RTOL32,
    RTOL32_GRAD,
    RTOL64,
    WINOGRAD,
    assert_near,
    assert_parameter_gradients,
    modes,
)
from unet_configs import digest, weight

import tinydiff
from tinydiff.models import Autoencoder
from tinydiff.nn import Tape

FOLDER = Path(__file__).parent / "reference" / "autoencoder"
TINY = blocks(8, 16) | {"norm_num_groups": 4}

each_case = pytest.mark.parametrize("name", CASES)


# ---- the two sides ----

def committed(name):
    """Return the committed reference of a case."""
    with np.load(FOLDER / f"{name}.npz") as file:
        return with_scales(dict(file))


def with_scales(want):
    """Give the keys' biases the scale of the keys' weights.

    Such a bias adds one number to all scores of a query, which softmax does not see: its gradient
    is zero in theory, all rounding error, and has no scale of its own.
    """
    names = list(json.loads(str(want["shapes"])))
    norms = want["norms"].copy()
    for k, name in enumerate(names):
        if name.endswith("to_k.bias"):
            norms[k] = norms[names.index(name.replace("bias", "weight"))]
    return want | {"norms": norms}


def ours(case, dtype):
    """Return our model of a case, filled as diffusers' was."""
    model = Autoencoder(**case.config)
    return model.load_state({name: weight(name, p.shape) for name, p in model.parameters()},
                            dtype=dtype)


def run(model, case, dtype):
    """Return our outputs and the gradient in x, under the reference's names."""
    tape = Tape()
    outputs = model.forward(**{n: a.astype(dtype) for n, a in inputs(case).items()}, tape=tape)
    dy = {n: a.astype(dtype) for n, a in cotangents(case).items()}
    dx = model.backward(dy["x_hat"], dy["mean"], dy["logvar"], tape)
    assert not tape.stack, "the backward pass left something on the tape"
    return outputs._asdict() | {"d_x": dx}


def assert_parity(case, want):
    """Compare names, shapes, outputs and all gradients, in both precisions."""
    model = ours(case, np.float64)
    shapes = {name: list(p.shape) for name, p in model.parameters()}
    assert shapes == json.loads(str(want["shapes"]))
    for key, value in run(model, case, np.float64).items():
        assert_near(value, want[key], RTOL64, f"{key}, float64")
    assert_parameter_gradients(model, want, RTOL64)

    for mode in modes():
        factor = WINOGRAD if mode == "fast" else 1
        model = ours(case, np.float32)
        with tinydiff.use(mode):
            single = run(model, case, np.float32)
        for key, value in single.items():
            assert_near(value, want[f"{key}32"], factor * rtol32(key), f"{key}, {mode} float32")
        assert_parameter_gradients(model, want, factor * RTOL32_GRAD)


def rtol32(key):
    return RTOL32_GRAD if key == "d_x" else RTOL32


# ---- against what is committed ----

@each_case
def test_autoencoder_is_diffusers(name):
    assert_parity(CASES[name], committed(name))


def test_the_cases_move_every_field_that_changes_the_numbers():
    for field in ("in_channels", "out_channels", "block_out_channels", "layers_per_block", "act_fn",
                  "latent_channels", "norm_num_groups", "use_quant_conv", "use_post_quant_conv",
                  "mid_block_add_attention"):
        values = {json.dumps(case.config.get(field, "default")) for case in CASES.values()}
        assert len(values) > 1, f"{field} is the same in every case"


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_its_published_tensors(name):
    want = json.loads((FOLDER / "published.json").read_text())[name]
    model = Autoencoder(**PUBLISHED[name])
    shapes = {n: p.shape for n, p in model.parameters()}
    assert len(shapes) == want["tensors"]
    assert model.count() == want["parameters"]
    assert digest(shapes) == want["sha256"]
    assert all(p.value is None for _, p in model.parameters()), "a shape needs no memory"


# ---- configurations ----

DEFAULTS = {                              # diffusers 0.42.1's own
    "act_fn": "silu", "latent_channels": 4, "sample_size": 32, "scaling_factor": 0.18215,
    "shift_factor": None, "latents_mean": None, "latents_std": None, "force_upcast": True,
    "use_quant_conv": True, "use_post_quant_conv": True, "mid_block_add_attention": True,
}
REFUSED = {
    "down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "block_out_channels": 8,
    "act_fn": "gelu_new",
    "norm_num_groups": None,
    "scaling_factor": 0,
    "shift_factor": 0.1,
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
    "block_out_chanels": [8, 16],
}


@pytest.mark.parametrize("field", REFUSED)
def test_an_unsupported_field_or_value_is_refused_by_name(field):
    with pytest.raises(ValueError, match=rf"\b{field}\b") as error:
        Autoencoder(**TINY | {field: REFUSED[field]})
    assert "\n" not in str(error.value)


def test_fields_at_their_default_or_private_change_nothing():
    plain = {name: p.shape for name, p in Autoencoder(**TINY).parameters()}
    notes = {"_class_name": "AutoencoderKL", "_diffusers_version": "0.6.0"}
    for extra in ({field: value} for field, value in (DEFAULTS | notes).items()):
        assert {n: p.shape for n, p in Autoencoder(**TINY | extra).parameters()} == plain, extra


def test_the_published_names_of_older_attention_open(tmp_path):
    """Stable Diffusion 1.5's own file calls the projections query, key, value, proj_attn."""
    from tinydiff.jsonfile import write_json
    from tinydiff.safetensors import write_safetensors

    case = CASES["stable_diffusion"]
    model = ours(case, np.float32)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in model.state().items():
        for today, then in old.items():
            name = name.replace(f".attentions.0.{today}.", f".attentions.0.{then}.")
        state[name] = value
    assert state.keys() != model.state().keys()
    write_safetensors(tmp_path / "diffusion_pytorch_model.safetensors", state)
    write_json(tmp_path / "config.json", {"_class_name": "AutoencoderKL", **case.config})
    opened = Autoencoder.from_pretrained(tmp_path)
    assert all((opened.state()[n] == v).all() for n, v in model.state().items())


# ---- live, where torch and diffusers are installed ----

@pytest.fixture
def live():
    """Return the module that runs diffusers; other people's warnings are not our errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch")
        pytest.importorskip("diffusers")
        from reference import make_autoencoder
        yield make_autoencoder


@each_case
def test_autoencoder_is_diffusers_live(name, live):
    want = with_scales(live.reference(CASES[name]))
    assert_parity(CASES[name], want)
    for key, value in committed(name).items():
        if value.dtype == np.float64 and key not in ("checksums", "norms"):
            assert_near(want[key], value, RTOL64, f"committed {key}")


@each_case
def test_a_model_saved_here_opens_in_diffusers(name, live, tmp_path):
    import torch
    from diffusers import AutoencoderKL

    case = CASES[name]
    model = ours(case, np.float32)
    model.save_pretrained(tmp_path)
    theirs, info = AutoencoderKL.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    want = live.run(theirs.eval(), case, torch.float32)
    for key, value in run(model, case, np.float32).items():
        assert_near(value, want[key], rtol32(key), key)


@each_case
def test_a_model_saved_by_diffusers_opens_here(name, live, tmp_path):
    import torch

    case = CASES[name]
    live.build(case.config, torch.float32).save_pretrained(tmp_path)
    model = Autoencoder.from_pretrained(tmp_path)
    for n, p in model.parameters():
        np.testing.assert_array_equal(p.value, weight(n, p.shape).astype(np.float32))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_has_diffusers_tensors_live(name, live):
    shapes = {n: p.shape for n, p in Autoencoder(**PUBLISHED[name]).parameters()}
    assert shapes == live.published_shapes(PUBLISHED[name])


def test_the_defaults_above_are_those_of_diffusers(live):
    import inspect

    from diffusers import AutoencoderKL

    signature = inspect.signature(AutoencoderKL.__init__).parameters
    assert {field: signature[field].default for field in DEFAULTS} == DEFAULTS
