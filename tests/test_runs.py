"""A run on disk may be stopped anywhere: what is resumed is the run that was never stopped."""
import csv
import errno
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import same, tiny_objective, tiny_recipe

from tinydiff import atomic
from tinydiff.jsonfile import read_json
from tinydiff.pipelines import load
from tinydiff.runs import Run, default_folder, recipe_of
from tinydiff.safetensors import read_safetensors
from tinydiff.text import Tokenizer
from tinydiff.train import TrainConfig, Trainer

SETTINGS = ("train.steps=7", "train.batch_size=2", "train.shards=1")


def open_run(folder, *settings):
    """Return a `Run` and a fresh `Trainer` of the same tiny recipe."""
    recipe = tiny_recipe(*SETTINGS, *settings)
    return Run(folder, recipe), Trainer(tiny_objective(*SETTINGS, *settings),
                                        TrainConfig(**recipe["train"]))


def start(folder, *settings):
    run, trainer = open_run(folder, *settings)
    run.start()
    return run, trainer


def resume(folder, *settings, checkpoint_every=2):
    """Go on with the run in `folder`, to the end; return its trainer."""
    run, trainer = open_run(folder, *settings)
    run.resume(trainer)
    list(run.steps(trainer, checkpoint_every))
    return trainer


def log(folder):
    """Return the log without the wall time."""
    with open(folder / "log.csv", newline="", encoding="utf-8") as file:
        return [row[:4] for row in csv.reader(file)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a run that was never interrupted: its folder and its trainer."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run, trainer = start(folder)
    list(run.steps(trainer, checkpoint_every=2))
    return folder, trainer


def assert_same_run(folder, trainer, whole):
    assert same(trainer.state()[0], whole[1].state()[0]) and trainer.step == 7
    for file in ("checkpoint/state.safetensors", "model/unet/diffusion_pytorch_model.safetensors",
                 "model/text_encoder/model.safetensors"):
        assert (folder / file).read_bytes() == (whole[0] / file).read_bytes(), file
    assert log(folder) == log(whole[0])


# ---- stopped and resumed ----

@pytest.mark.parametrize("stop", [1, 4, 5])
def test_a_run_that_is_interrupted_and_resumed_is_the_run(tmp_path, whole, stop):
    run, trainer = start(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        for step in run.steps(trainer, checkpoint_every=2):
            if step.step == stop:
                raise KeyboardInterrupt
    del step
    assert read_json(run.checkpoint() / "state.json")["step"] == stop   # saved as it was left
    assert_same_run(tmp_path / "run", resume(tmp_path / "run"), whole)


def test_a_run_that_is_killed_goes_on_from_its_last_checkpoint(tmp_path, whole):
    run, trainer = start(tmp_path / "run")
    steps = run.steps(trainer, checkpoint_every=2)
    while next(steps).step < 5:
        pass
    shutil.copytree(tmp_path / "run", tmp_path / "killed")            # what a kill leaves
    steps.close()
    assert read_json(tmp_path / "killed" / "checkpoint" / "state.json")["step"] == 4
    assert_same_run(tmp_path / "killed", resume(tmp_path / "killed"), whole)


def test_a_run_may_be_interrupted_again_and_again(tmp_path, whole):
    start(tmp_path / "run")[0].save(start(tmp_path / "run")[1])       # a checkpoint of step 0
    for _ in range(7):
        run, trainer = open_run(tmp_path / "run")
        run.resume(trainer)
        steps = run.steps(trainer, checkpoint_every=100)
        next(steps)
        steps.close()
    assert_same_run(tmp_path / "run", resume(tmp_path / "run"), whole)


@pytest.mark.parametrize("where", ["accumulate", "update", "average"])
def test_an_interrupt_in_the_middle_of_an_update_spoils_nothing(tmp_path, whole, where,
                                                                monkeypatch):
    run, trainer = start(tmp_path / "run")
    steps = run.steps(trainer, checkpoint_every=2)
    for _ in range(3):
        next(steps)

    def interrupted(*arguments):
        if where == "update":                                         # some weights are moved
            trainer.model.unet.conv_in.weight.value += 1
        raise KeyboardInterrupt

    target = {"accumulate": (trainer.objective, "shard"), "update": (trainer.optimiser, "step"),
              "average": (trainer.ema, "share")}[where]
    monkeypatch.setattr(*target, interrupted)
    with pytest.raises(KeyboardInterrupt):
        next(steps)
    assert_same_run(tmp_path / "run", resume(tmp_path / "run"), whole)


def test_resuming_a_finished_run_changes_nothing(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "run")
    assert_same_run(tmp_path / "run", resume(tmp_path / "run"), whole)


# ---- when the disk is full ----

def disk_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_leaves_the_old_checkpoint_and_a_log_to_cut(tmp_path, whole, monkeypatch):
    run, trainer = start(tmp_path / "run")
    steps = run.steps(trainer, checkpoint_every=2)
    for _ in range(3):
        next(steps)
    before = (run.checkpoint() / "state.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(atomic.os, "fsync", disk_full)
        with pytest.raises(OSError, match=r"checkpoint.*No space left.*before is intact") as full:
            next(steps)
    assert "\n" not in str(full.value)
    assert (run.checkpoint() / "state.safetensors").read_bytes() == before
    assert os.listdir(run.checkpoint().parent).count("checkpoint") == 1
    steps_logged = [row[0] for row in log(tmp_path / "run")[1:]]
    assert steps_logged == ["1", "2", "3", "4"]                       # each once, two too many
    assert_same_run(tmp_path / "run", resume(tmp_path / "run"), whole)


def test_a_broken_loss_does_not_replace_a_good_checkpoint(tmp_path):
    run, trainer = start(tmp_path / "run")
    steps = run.steps(trainer, checkpoint_every=2)
    for _ in range(3):
        next(steps)
    trainer.objective.shard = lambda *arguments: float("nan")
    with pytest.raises(FloatingPointError):
        next(steps)
    assert read_json(run.checkpoint() / "state.json")["step"] == 2
    assert [row[0] for row in log(tmp_path / "run")[1:]] == ["1", "2", "3"]


# ---- what a folder holds ----

def test_a_finished_run_holds_recipe_log_checkpoint_and_model(whole):
    folder, trainer = whole
    assert sorted(os.listdir(folder)) == ["checkpoint", "log.csv", "model", "recipe.json"]
    assert read_json(folder / "recipe.json") == {**tiny_recipe(*SETTINGS), "init": None}
    assert recipe_of(folder, "emoji-pixel") == tiny_recipe(*SETTINGS)
    state = read_json(folder / "checkpoint" / "state.json")
    assert state == {"step": 7, "recipe": tiny_recipe(*SETTINGS)}
    rows = log(folder)
    assert rows[0] == ["step", "loss", "grad_norm", "lr"]
    assert [int(row[0]) for row in rows[1:]] == list(range(1, 8))
    arrays = read_safetensors(folder / "checkpoint" / "state.safetensors")
    assert same(arrays, trainer.state()[0])
    assert {name.split(".")[0] for name in arrays} == {"model", "ema", "optimiser"}


def test_the_finished_model_is_the_average_in_half_precision(whole):
    folder, trainer = whole
    pipe = load(folder / "model")
    for part in ("unet", "text_encoder"):
        average = getattr(trainer.ema.model, part).state()
        for name, value in getattr(pipe, part).state().items():
            np.testing.assert_array_equal(value, average[name].astype(np.float16))
    assert pipe.tokenizer.merges == trainer.objective.tokenizer.merges
    assert pipe.scheduler.prediction_type == trainer.objective.scheduler.prediction_type


def test_the_checkpoint_keeps_the_tokenizer(whole):
    saved = Tokenizer.from_pretrained(whole[0] / "checkpoint" / "tokenizer")
    assert saved.vocabulary == whole[1].objective.tokenizer.vocabulary
    assert saved.model_max_length == 8


def test_sample_sheets_are_drawn_while_it_trains(tmp_path):
    run, trainer = start(tmp_path / "run", "train.steps=4", "samples.every=2")
    list(run.steps(trainer))
    assert sorted(os.listdir(tmp_path / "run" / "samples")) == ["000002.png", "000004.png"]
    with Image.open(tmp_path / "run" / "samples" / "000004.png") as image:
        assert image.size[1] % 16 == 0 and image.mode == "RGB"


def test_sampling_while_it_trains_changes_no_bit(tmp_path, whole):
    run, trainer = start(tmp_path / "run", "samples.every=3")
    list(run.steps(trainer))
    assert same(trainer.state()[0], whole[1].state()[0])


def test_a_folder_that_holds_a_run_is_not_started_over(whole):
    with pytest.raises(ValueError, match="holds a run already: add --resume"):
        start(whole[0])


def test_there_must_be_something_to_resume(tmp_path):
    run, trainer = open_run(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="none holds no checkpoint"):
        run.tokenizer()
    with pytest.raises(FileNotFoundError, match=r"state\.json"):
        run.resume(trainer)


def test_another_recipe_is_not_resumed(whole):
    run, trainer = open_run(whole[0], "train.lr=0.5")
    with pytest.raises(ValueError, match=r"another recipe: \[train\] differs"):
        run.resume(trainer)


def test_the_prompts_drawn_on_the_way_may_change(tmp_path, whole):
    shutil.copytree(whole[0], tmp_path / "run")
    resume(tmp_path / "run", "samples.every=2000")


@pytest.mark.parametrize("damage, message", [
    (lambda data: data[:-100], "damaged, or not a safetensors file"),
    (lambda data: data[:-9] + b"x" + data[-8:], "checksum does not match"),
    (lambda data: b"", "damaged"),
])
def test_a_damaged_checkpoint_is_named(tmp_path, whole, damage, message):
    shutil.copytree(whole[0], tmp_path / "run")
    file = tmp_path / "run" / "checkpoint" / "state.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    run, trainer = open_run(tmp_path / "run")
    with pytest.raises(ValueError, match=f"state.safetensors: .*{message}"):
        run.resume(trainer)


def test_runs_live_outside_the_checkout(monkeypatch, tmp_path):
    monkeypatch.setenv("TINYDIFF_RUNS", str(tmp_path))
    assert default_folder("emoji-pixel") == tmp_path / "emoji-pixel"
    monkeypatch.delenv("TINYDIFF_RUNS")
    monkeypatch.setattr("pathlib.Path.home", lambda: tmp_path / "home")
    assert default_folder("emoji-pixel") == tmp_path / "home" / "tinydiff-runs" / "emoji-pixel"
