"""A run in stages may be stopped in any of them; a stage that is finished is not done twice."""
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import LABELS, LATENT_SETTINGS, same, tiny_latent_recipe, tiny_pictures

from tinydiff.cli import main
from tinydiff.jsonfile import read_json
from tinydiff.models import CLIP, Autoencoder
from tinydiff.pipelines import load
from tinydiff.recipes.tables import STAGES
from tinydiff.safetensors import read_safetensors
from tinydiff.stages import StagedRun
from tinydiff.text import Tokenizer
from tinydiff.train import TrainConfig, Trainer

SET = [word for setting in LATENT_SETTINGS for word in ("--set", setting)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder with captioned pictures of the user's own, each of another size."""
    folder = tmp_path_factory.mktemp("own pictures")
    for k, x in enumerate(tiny_pictures(6).images):
        image = Image.fromarray(x.transpose(1, 2, 0)).resize((16 + 5 * k, 20 + 3 * k))
        image.save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(LABELS[k], encoding="utf-8")
    return folder


@pytest.fixture
def train(pictures, monkeypatch, tmp_path):
    """Return ``train(*arguments)``: the tiny recipe on those pictures, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tinydiff.commands.train.training_curve", lambda *files: None)  # slow
    return lambda *arguments: main(["train", "emoji-32", *SET, "--data", str(pictures),
                                    "--run", "run", "--checkpoint-every", "2", *arguments])


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory):
    """Return the folder of a run that was never interrupted."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    main(["train", "emoji-32", *SET, "--data", str(pictures), "--run", str(folder)])
    return folder


def states(folder):
    """Return every number of all stages' last checkpoints."""
    return {f"{stage}.{name}": values for stage in STAGES for name, values in
            read_safetensors(folder / stage / "checkpoint" / "state.safetensors").items()}


def fault(capsys, command, *arguments):
    """Run a command that must fail; return the line it says."""
    with pytest.raises(SystemExit) as end:
        command(*arguments)
    assert end.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


# ---- one command ----

def test_each_stage_is_a_run_and_the_last_leaves_a_model_that_draws(whole):
    for stage in STAGES:
        files = {path.name for path in (whole / stage).iterdir()}
        assert files >= {"recipe.json", "log.csv", "checkpoint", "curve.png", "model"}
        assert read_json(whole / stage / "recipe.json")["kind"] == stage
    CLIP.from_pretrained(whole / "clip" / "model")
    Autoencoder.from_pretrained(whole / "autoencoder" / "model")
    pipe = load(whole / "unet" / "model")
    image = pipe("red heart", steps=2)
    assert image.size == (16, 16) and pipe.vae is not None and pipe.image_encoder is not None
    assert pipe.tokenizer.vocabulary == Tokenizer.from_pretrained(whole / "tokenizer").vocabulary


def test_the_model_holds_what_the_stages_made(whole):
    pipe, clip = load(whole / "unet" / "model"), CLIP.from_pretrained(whole / "clip" / "model")
    for made, kept in ((clip.text, pipe.text_encoder), (clip.vision, pipe.image_encoder),
                       (Autoencoder.from_pretrained(whole / "autoencoder/model"), pipe.vae)):
        kept = kept.state()
        for name, values in made.state().items():
            np.testing.assert_array_equal(kept[name], values.astype(np.float16), err_msg=name)


def test_what_the_stages_measured_is_kept(whole):
    assert read_json(whole / "autoencoder" / "metrics.json")["PSNR"] > 0
    assert any("caption to picture" in name for name in read_json(whole / "clip/metrics.json"))


def test_prompts_drawn_on_the_way_are_the_users_own(whole):
    prompts = read_json(whole / "unet" / "recipe.json")["samples"]["prompts"]
    assert prompts == list(LABELS[:6])


def test_finished_stages_are_not_trained_again(whole, train, capsys):
    shutil.copytree(whole, "run")
    shutil.rmtree("run/unet/model")
    before = {p: p.stat().st_mtime_ns for stage in ("clip", "autoencoder")
              for p in Path("run", stage).rglob("*")}
    capsys.readouterr()
    train("--resume")
    said = capsys.readouterr().out
    assert "clip: finished before" in said and "autoencoder: finished before" in said
    assert "unet: finished before" not in said and load("run/unet/model")
    assert before == {p: p.stat().st_mtime_ns for p in before}
    train()                                                           # all finished: nothing to do
    assert "unet: finished before" in capsys.readouterr().out


def test_stages_one_by_one_in_another_order_are_the_same_run(whole, train):
    for stage in ("autoencoder", "clip", "unet"):
        train("--stage", stage)
    assert same(states(whole), states(Path("run")))


@pytest.mark.parametrize("stage", STAGES)
def test_stopped_in_any_stage_and_resumed_it_is_the_same_run(whole, train, stage, monkeypatch):
    from tinydiff.runs import Run
    steps = Run.steps

    def stopped(self, trainer, checkpoint_every):
        for step in steps(self, trainer, checkpoint_every):
            yield step
            if self.recipe["kind"] == stage and step.step == 1:
                raise KeyboardInterrupt
    with monkeypatch.context() as patch:
        patch.setattr(Run, "steps", stopped)
        with pytest.raises(SystemExit) as end:
            train()
        assert end.value.code == 130
    main(["train", "emoji-32", "--run", "run", "--resume"])           # the folder is enough
    assert same(states(whole), states(Path("run")))


def test_the_model_is_evaluated_on_the_users_own_pictures(whole, pictures, capsys, tmp_path):
    table, drawn = tmp_path / "table.json", tmp_path / "drawn.png"
    main(["evaluate", str(whole / "unet" / "model"), "--data", str(pictures), "--count", "3",
          "--steps", "2", "--json", str(table), "--sheet", str(drawn)])
    said, kept = capsys.readouterr().out, read_json(table)
    assert "reconstruction PSNR, dB, mean of pictures" in said and "2 steps, w = 3" in said
    metrics = [row["metric"] for row in kept["rows"]]
    assert "picture found by CLIP, at 5" in metrics and "kernel distance, CLIP" in metrics
    assert kept["rows"][-1]["setting"] == {"steps": 2, "guidance": 3.0}
    with Image.open(drawn) as image:
        assert image.height == 16                                     # one row of three


# ---- what cannot be ----

@pytest.mark.parametrize("setting, words", [
    ("unet.model.norm_num_groups=7", "norm_num_groups=7 does not divide"),
    ("unet.model.time_embedding_dim=3", "time_embedding_dim=3"),
    ("unet.scheduler.betas=3", "scheduler config: unknown field 'betas'"),
    ("unet.train.shards=3", "shards=3 does not divide batch_size=4"),
    ("autoencoder.model.norm_num_groups=3", "norm_num_groups=3"),
    ("clip.text_encoder.num_attention_heads=3", "num_attention_heads=3 does not divide"),
    ("clip.image_encoder.patch_size=5", "patch_size=5"),
    ("data.size=18", "size=18: this autoencoder needs a multiple of 4"),
])
def test_a_fault_in_any_stage_is_found_before_the_first_is_trained(train, capsys, setting, words):
    assert words in fault(capsys, train, "--set", setting)
    assert not Path("run/clip").exists()


def test_the_unet_waits_for_what_it_needs(train, capsys):
    assert "--stage clip first" in fault(capsys, train, "--stage", "unet")
    train("--stage", "clip")
    assert "--stage autoencoder first" in fault(capsys, train, "--stage", "unet")


def test_there_must_be_something_to_resume(train, capsys):
    assert "run holds no run to resume" in fault(capsys, train, "--resume")
    assert not Path("run").exists()


def test_an_unfinished_stage_is_not_started_over(whole, train, capsys):
    shutil.copytree(whole, "run")
    shutil.rmtree("run/clip/model")
    assert "clip holds a run already: add --resume" in fault(capsys, train)


def test_a_finished_stage_of_another_recipe_is_not_reused(whole, train, capsys):
    shutil.copytree(whole, "run")
    line = fault(capsys, train, "--set", "autoencoder.train.lr=0.5")
    assert "[autoencoder.train] differs" in line
    assert "[autoencoder.train] differs" in fault(capsys, train, "--resume", "--set",
                                                  "autoencoder.train.lr=0.5")
    train("--set", "unet.samples.every=7")                            # no weight depends on it


# ---- further legs ----

def test_a_further_leg_goes_on_with_the_unet_of_a_model(whole, train, pictures):
    model = str(whole / "unet" / "model")
    train("--init", model, "--set", "unet.train.seed=1")
    run, pipe = Path("run"), load(model)
    assert read_json(run / "unet" / "recipe.json")["init"] == model
    assert not (run / "clip" / "recipe.json").exists()                # not trained again
    kept = load(run / "unet" / "model")
    for part in ("vae", "text_encoder", "image_encoder"):
        assert same(getattr(kept, part).state(), getattr(pipe, part).state())
    assert not same(kept.unet.state(), pipe.unet.state())
    recipe = tiny_latent_recipe(f"data.folder={pictures}", "unet.train.seed=1")
    start = StagedRun("again", recipe, pipe, model)
    start.start(("unet",))
    objective = start.objective("unet")
    assert same(objective.model.state(), pipe.unet.state())
    assert Trainer(objective, TrainConfig(**recipe["unet"]["train"])).step == 0


def test_a_further_leg_takes_up_clip_or_the_autoencoder(whole, pictures, tmp_path):
    pipe = load(whole / "unet" / "model")
    recipe = tiny_latent_recipe(f"data.folder={pictures}")
    staged = StagedRun(tmp_path / "run", recipe, pipe, "it")
    staged.start(("clip",))
    clip, vae = staged.objective("clip").model, staged.objective("autoencoder").model
    assert same(clip.text.state(), pipe.text_encoder.state())
    assert same(clip.vision.state(), pipe.image_encoder.state())
    assert same(vae.state(), pipe.vae.state())


def test_a_further_leg_needs_a_folder_of_its_own_and_all_parts(whole, train, capsys):
    shutil.copytree(whole, "run")
    model = str(whole / "unet" / "model")
    assert "holds stages of its own" in fault(capsys, train, "--init", model)
    pipe = load(model)
    pipe.image_encoder = None
    pipe.save_pretrained("half")
    line = fault(capsys, train, "--run", "other", "--init", "half")
    assert "needs a model with vae, image_encoder" in line
