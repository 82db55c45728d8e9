"""Fashion-MNIST from the command line: train, draw, evaluate; every error is one line."""
import json
import os
from pathlib import Path

import pytest
from PIL import Image
from test_class_to_image import RECIPES
from test_cli import fault
from tiny import CLASS_SETTINGS, tiny_class_pipeline, write_fashion

import tinydiff
from tinydiff.cli import main
from tinydiff.jsonfile import read_json


def settings(recipe):
    return [word for setting in (*CLASS_SETTINGS[recipe], *CLASS_SETTINGS["all"])
            for word in ("--set", setting)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Return a folder with a small Fashion-MNIST."""
    folder = tmp_path_factory.mktemp("data")
    write_fashion(folder)
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory, data):
    """Train each recipe for three updates; return the folder of the runs."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TINYDIFF_RUNS", str(folder))
        for recipe in ("fashion-unet", "fashion-classifier"):
            main(["train", recipe, "--data", str(data), *settings(recipe),
                  "--set", "samples.every=2"])
    return folder


@pytest.fixture
def model(runs):
    return str(runs / "fashion-unet" / "model")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, and keep runs beside it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TINYDIFF_RUNS", str(tmp_path / "runs"))


# ---- train ----

def test_a_run_leaves_samples_and_a_model_that_knows_the_names(runs):
    for recipe in ("fashion-unet", "fashion-classifier"):
        run = runs / recipe
        assert (run / "samples" / "000002.png").is_file() and (run / "curve.png").is_file()
        assert len((run / "log.csv").read_text(encoding="utf-8").splitlines()) == 4
    pipe = tinydiff.load(runs / "fashion-unet" / "model")
    assert pipe.id2label[7] == "sneaker" and pipe.size == 28
    accuracy = read_json(runs / "fashion-classifier" / "metrics.json")["accuracy"]
    assert 0 <= accuracy <= 1


@pytest.mark.parametrize("recipe", RECIPES)
def test_an_interrupted_run_goes_on_where_it_was(recipe, data, tmp_path, capsys):
    command = ["train", recipe, "--data", str(data), *settings(recipe)]
    main([*command, "--set", "train.steps=2", "--run", "short"])
    main([*command, "--run", "whole"])
    capsys.readouterr()
    assert "holds no checkpoint to resume from" in fault(capsys, *command, "--resume")
    assert "differs" in fault(capsys, *command, "--run", "short", "--resume")
    state = tmp_path / "here" / "short" / "checkpoint" / "state.json"
    content = read_json(state)
    content["recipe"]["train"]["steps"] = 3
    state.write_text(json.dumps(content), encoding="utf-8")
    main([*command, "--run", "short", "--resume"])
    part = next(p for p in os.listdir("whole/model") if p in ("unet", "transformer"))
    short, whole = (Path(run, "model", part, "diffusion_pytorch_model.safetensors").read_bytes()
                    for run in ("short", "whole"))
    assert short == whole


@pytest.mark.parametrize("arguments, words", [
    (["fashion-unet", "--data", "nowhere"], "train-images-idx3-ubyte.gz is not in"),
    (["fashion-unet", "--init", "emoji"], "emoji is a model of prompts"),
    (["fashion-classifier", "--init", "emoji"], "leave --init out"),
    (["fashion-unet", "--set", "data.size=30"], "size=30: Fashion-MNIST has sizes 28, 32"),
])
def test_what_cannot_be_trained_is_named(capsys, arguments, words):
    assert words in fault(capsys, "train", *arguments)


def test_a_model_of_classes_starts_no_run_of_prompts(capsys, model):
    assert "is a model of classes" in fault(capsys, "train", "emoji-pixel", "--init", model)


# ---- generate ----

def test_classes_become_pictures(model, capsys):
    main(["generate", "sneaker", "dress", "--model", model, "--steps", "2", "--count", "2",
          "--out", "out.png", "--each", "each", "--strip", "strip.png", "--scale", "1"])
    assert sorted(os.listdir("each")) == ["00-sneaker.png", "01-sneaker.png", "02-dress.png",
                                          "03-dress.png"]
    with Image.open("out.png") as sheet:
        assert sheet.size == (58, 58)
    capsys.readouterr()


@pytest.mark.parametrize("arguments, words", [
    (["sofa"], "unknown class 'sofa'; this model draws t-shirt, trouser, pullover"),
    (["sneaker", "--attention", "words.png"], "--attention shows which word drew what"),
    (["sneaker", "--guidance", "nan", "--steps", "2"], "guidance weight nan"),
    (["sneaker", "--steps", "21"], "steps=21: an integer from 1 to 20"),
])
def test_what_cannot_be_drawn_is_named(model, capsys, arguments, words):
    assert words in fault(capsys, "generate", *arguments, "--model", model)
    assert not os.listdir()


def test_editing_needs_prompts(model, capsys):
    Image.new("RGB", (28, 28)).save("in.png")
    for command in (["edit", "dress", "--image", "in.png"], ["interpolate", "dress", "coat"]):
        assert "is a model of classes; here one of prompts is needed" in fault(
            capsys, *command, "--model", model)


# ---- evaluate ----

def test_an_evaluation_prints_and_writes_its_table(model, runs, data, capsys):
    main(["evaluate", model, "--classifier", str(runs / "fashion-classifier" / "model"),
          "--data", str(data), "--count", "6", "--steps", "2", "--bits", "2",
          "--json", "table.json", "--sheet", "drawn.png"])
    out = capsys.readouterr().out
    assert "| kernel distance " in out and "2 steps, w = 1" in out and "± " in out
    written = read_json("table.json")
    rows = {(row["metric"], row["of"]): row for row in written["rows"]}
    assert rows["kernel distance", "ddim"]["n"] == 6
    assert rows["kernel distance", "ddim"]["real"] == rows[
        "kernel distance", "real pictures, n = 6"]["value"]
    assert rows["bits per dimension, at most", "real pictures, told the class"]["value"] > 0
    assert written["classifier"].endswith("model") and written["seconds"] >= 0
    with Image.open("drawn.png") as sheet:
        assert sheet.size[0] == 20 * 30 - 2


def test_the_sweep_has_a_line_a_sampler_and_a_column_for_each_number_of_steps(runs, data, capsys):
    tiny_class_pipeline("scheduler.num_train_timesteps=1000", size=28, classes=10, count=10
                        ).save_pretrained("model")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tinydiff.evaluate_classes.SWEEP_STEPS", (1, 2))
        patch.setattr("tinydiff.evaluate_classes.LONG", 5)
        main(["evaluate", "model", "--classifier", str(runs / "fashion-classifier" / "model"),
              "--data", str(data), "--count", "12", "--sweep", "--bits", "0", "--guidance", "2"])
    out = capsys.readouterr().out
    assert all(f"| {name} " in out for name in ("ddpm", "ddim", "dpmpp_2m", "unipc",
                                                "heun, 2 N - 1 calls", "ddpm, n = 3"))
    assert all(f"{steps} steps, w = 2" in out for steps in (1, 2, 5)) and "bits" not in out


@pytest.mark.parametrize("arguments, words", [
    (["--count", "16"], "16 pictures to draw: at most 15"),
    (["--bits", "-1"], "--bits -1 must be at least 0"),
    (["--classifier", "nowhere"], "no classifier 'nowhere': name the folder"),
    (["--data", "nowhere"], "t10k-images-idx3-ubyte.gz is not in"),
    (["--batch", "0"], "--batch 0 must be at least 1"),
    (["--sampler", "plms", "--count", "3", "--steps", "2"], "unknown sampler 'plms'"),
])
def test_what_cannot_be_evaluated_is_named(model, runs, data, capsys, arguments, words):
    folder = str(runs / "fashion-classifier" / "model")
    assert words in fault(capsys, "evaluate", model, "--classifier", folder, "--data", str(data),
                          *arguments)
