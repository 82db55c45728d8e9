"""Claim: a published folder loads exactly, or is refused by the name of what does not fit."""

import errno
import os
import re

import numpy as np
import pytest

import tinydiff.nn.module as module
from tinydiff import atomic
from tinydiff.jsonfile import read_json, write_json
from tinydiff.models.pretrained import (
    check_config,
    find_weights,
    load_model,
    modern_names,
    save_model,
)
from tinydiff.nn import Linear, Module
from tinydiff.safetensors import write_safetensors

SUPPORTED = {"width": 3, "act_fn": "silu", "heads": [1, 2], "extra": None}
ONLY_DEFAULT = {"dual": False, "scale": 1.0, "kinds": ("a", "b")}


class Net(Module):
    """Three square layers: six tensors."""

    weights_name = "diffusion_pytorch_model.safetensors"
    config_header = {"_class_name": "PublishedNet"}

    def __init__(self, **config):
        self.config = check_config(config, SUPPORTED, ONLY_DEFAULT, "Net")
        width = self.config["width"]
        self.layers = [Linear(width, width) for _ in range(3)]


def saved(folder, dtype="float32", **config):
    net = Net(**config).initialise(seed=1)
    save_model(net, folder, dtype)
    return net


def assert_same(got, want, dtype=np.float32):
    assert got.keys() == want.keys()
    for name, values in want.items():
        assert got[name].dtype == dtype
        np.testing.assert_array_equal(got[name], values)


# ---- configurations ----

@pytest.mark.parametrize("given", [
    {}, {"_class_name": "X", "_anything": [1]}, {"dual": False, "scale": 1, "kinds": ["a", "b"]},
    {"architectures": ["X"], "torch_dtype": "float16"}, {"width": [1, 2], "act_fn": ["relu", None]},
])
def test_supported_private_and_default_fields_are_accepted(given):
    config = check_config(given, SUPPORTED, ONLY_DEFAULT, "Net")
    assert config == {**SUPPORTED, **{k: v for k, v in given.items() if k in SUPPORTED}}


@pytest.mark.parametrize(("given", "fault"), [
    ({"dual": True}, "Net config: dual=True is not supported; only False is"),
    ({"kinds": ["a"]}, "Net config: kinds=['a'] is not supported; only ('a', 'b') is"),
    ({"new": 1}, "Net config: new=1 is not a supported field; supported are width, act_fn, heads"),
    ({"width": "3"}, "Net config: width='3' should be a number or a list of numbers"),
    ({"width": None}, "Net config: width=None should be a number or a list of numbers"),
    ({"heads": [1, [2, "x"]]}, "Net config: heads=[1, [2, 'x']] should be a number"),
    ({"act_fn": 3}, "Net config: act_fn=3 should be a name or a list of names"),
    ({"extra": {"a": 1}}, "Net config: extra={'a': 1} should be a value or a list of values"),
])
def test_anything_else_is_refused_by_name_and_value(given, fault):
    with pytest.raises(ValueError, match="^" + re.escape(fault)):
        check_config(given, SUPPORTED, ONLY_DEFAULT, "Net")


def test_tuples_become_lists_as_in_a_file():
    assert check_config({"a": (1, (2,))}, {"a": (), "b": (3,)}) == {"a": [1, [2]], "b": [3]}


def test_a_long_value_does_not_fill_the_screen():
    with pytest.raises(ValueError) as refused:
        check_config({"new": "x" * 10_000}, SUPPORTED)
    assert len(str(refused.value)) < 200


# ---- folders ----

@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_a_model_survives_a_round_trip(tmp_path, dtype):
    net = saved(tmp_path / "new" / "net", dtype, width=5)
    again = load_model(Net, tmp_path / "new" / "net")
    assert again.config == net.config
    assert_same(again.state(), {k: v.astype(dtype) for k, v in net.state().items()})


def test_weights_are_cast_as_asked(tmp_path):
    saved(tmp_path)
    state = load_model(Net, tmp_path, np.float64).state()
    assert all(values.dtype == np.float64 for values in state.values())


def test_loading_draws_no_random_number(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("drew")
    saved(tmp_path)
    monkeypatch.setattr(module, "generator", refuse)
    load_model(Net, tmp_path)


def test_loaded_weights_do_not_depend_on_the_file(tmp_path):
    # Values still mapped would change, or crash the process, with the file.
    net = saved(tmp_path)
    again = load_model(Net, tmp_path)
    with (tmp_path / Net.weights_name).open("rb+") as file:
        file.truncate(8)
    assert_same(again.state(), net.state())


def test_the_file_says_what_other_programs_ask_for(tmp_path):
    saved(tmp_path)
    assert read_json(tmp_path / "config.json")["_class_name"] == "PublishedNet"
    assert b'"format":"pt"' in (tmp_path / Net.weights_name).read_bytes()


def test_a_folder_without_class_name_and_one_of_another_class(tmp_path):
    saved(tmp_path)
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", {k: v for k, v in config.items() if k != "_class_name"})
    load_model(Net, tmp_path)
    write_json(tmp_path / "config.json", {**config, "_class_name": "AutoencoderKL"})
    with pytest.raises(ValueError, match=r"json: describes AutoencoderKL, not PublishedNet$"):
        load_model(Net, tmp_path)


@pytest.mark.parametrize("name", [
    "diffusion_pytorch_model.safetensors", "model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors", "model.fp16.safetensors",
])
def test_every_published_file_name_is_found(tmp_path, name):
    net = saved(tmp_path)
    (tmp_path / Net.weights_name).rename(tmp_path / name)
    assert_same(load_model(Net, tmp_path).state(), net.state())


def test_the_full_weights_are_preferred_to_the_halved(tmp_path):
    saved(tmp_path)
    (tmp_path / "diffusion_pytorch_model.fp16.safetensors").touch()
    assert find_weights(tmp_path).name == Net.weights_name


@pytest.mark.parametrize("index", ["diffusion_pytorch_model.safetensors.index.json",
                                   "model.safetensors.index.fp16.json"])
def test_sharded_weights_are_found(tmp_path, index):
    net = saved(tmp_path)
    (tmp_path / Net.weights_name).unlink()
    weight_map = {name: f"{name[:8]}.safetensors" for name in net.state()}
    for file in set(weight_map.values()):
        write_safetensors(tmp_path / file, {n: v for n, v in net.state().items()
                                            if weight_map[n] == file})
    write_json(tmp_path / index, {"weight_map": weight_map})
    assert_same(load_model(Net, tmp_path).state(), net.state())


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no: no such folder$"):
        load_model(Net, tmp_path / "no")
    with pytest.raises(FileNotFoundError, match=r"config.json: no such file$"):
        load_model(Net, tmp_path)
    write_json(tmp_path / "config.json", {})
    with pytest.raises(FileNotFoundError, match=r"has neither diffusion_.* nor model.safetensors$"):
        load_model(Net, tmp_path)
    (tmp_path / "diffusion_pytorch_model.bin").touch()
    with pytest.raises(FileNotFoundError, match=r"\(diffusion_pytorch_model.bin is a pickle"):
        load_model(Net, tmp_path)


@pytest.mark.parametrize(("config", "fault"), [
    ([], "should hold an object"), ({"dual": 3}, "Net config: dual=3"), ({"self": 1}, "self"),
])
def test_a_bad_configuration_names_its_file(tmp_path, config, fault):
    write_json(tmp_path / "config.json", config)
    with pytest.raises(ValueError, match=f"config.json: .*{fault}"):
        load_model(Net, tmp_path)


def without(state, *names):
    return {name: values for name, values in state.items() if name not in names}


@pytest.mark.parametrize(("change", "fault"), [
    (lambda s: without(s, "layers.1.bias"), r"missing tensors: layers.1.bias$"),
    (lambda s: {}, r"missing tensors: layers.0.weight; .*layers.2.weight and 1 more$"),
    (lambda s: {**s, "spare": s["layers.0.bias"]}, r"unexpected tensors: spare$"),
    (lambda s: {**s, "layers.0.bias": np.zeros(4)}, r"layers.0.bias \(4,\), expected \(3,\)$"),
    (lambda s: {**s, "layers.0.bias": np.full(3, np.nan)}, r"layers.0.bias' holds a value that is"),
])
def test_tensors_that_do_not_fit_are_named_with_their_file(tmp_path, change, fault):
    net = saved(tmp_path)
    write_safetensors(tmp_path / Net.weights_name, change(net.state()))
    with pytest.raises(ValueError, match=f"{Net.weights_name}: .*{fault}"):
        load_model(Net, tmp_path)


# ---- names of other years ----

def test_older_and_newer_published_names_are_understood():
    files = {
        "decoder.mid_block.attentions.0.query.weight": 1,
        "decoder.mid_block.attentions.0.proj_attn.bias": 2,
        "text_model.embeddings.position_ids": 3,
        "embeddings.position_ids": 4,
        "encoder.layers.0.mlp.fc1.weight": 5,
    }
    own = {"decoder.mid_block.attentions.0.to_q.weight": 1,
           "decoder.mid_block.attentions.0.to_out.0.bias": 2,
           "text_model.encoder.layers.0.mlp.fc1.weight": 5}
    assert modern_names(files, own) == own


def test_a_name_that_the_model_has_or_nobody_knows_is_left_alone():
    files = {"encoder.x": 1, "a.attentions.0.query.weight": 2, "b.attentions.0.key.weight": 3}
    own = {"encoder.x", "text_model.encoder.x", "a.attentions.0.query.weight"}
    assert modern_names(files, own) == files


def test_two_names_for_one_tensor_are_not_merged():
    files = {"a.attentions.0.query.bias": 1, "a.attentions.0.to_q.bias": 2}
    assert modern_names(files, {"a.attentions.0.to_q.bias"}) == files


# ---- saving ----

def test_what_cannot_be_saved_leaves_the_old_files(tmp_path):
    net = saved(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    weight = net.layers[0].weight
    for value, dtype, fault in [(np.nan, "float32", "'layers.0.weight' holds a value that is not"),
                                (7e4, "float16", "reaches 7e.04, float16 only 65504"),
                                (1.0, "bfloat16", "cannot be saved as bfloat16"),
                                (None, "float32", "layers.0.weight has no value yet")]:
        weight.value = None if value is None else np.full((3, 3), value, np.float32)
        with pytest.raises(ValueError, match=f"{Net.weights_name}: .*{fault}"):
            save_model(net, tmp_path, dtype)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch):
    def disk_full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    net = saved(tmp_path)
    other = Net().initialise(seed=2)
    with monkeypatch.context() as patched:
        patched.setattr(atomic.os, "fsync", disk_full)
        with pytest.raises(OSError, match=r"No space left.*; what was there before is intact$"):
            save_model(other, tmp_path)
    assert_same(load_model(Net, tmp_path).state(), net.state())
    assert len(list(tmp_path.iterdir())) == 2


def test_a_truncated_weight_file_is_named(tmp_path):
    saved(tmp_path)
    path = tmp_path / Net.weights_name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: damaged"):
        load_model(Net, tmp_path)
