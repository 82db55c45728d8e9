"""Every error a user can cause is one line that names the fault, with exit code 2."""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import LABELS, SETTINGS, tiny_latent_pipeline, tiny_pictures, tiny_pipeline

import tinydiff
from tinydiff.cli import main
from tinydiff.jsonfile import read_json
from tinydiff.safetensors import read_safetensors, write_safetensors

ROOT = Path(__file__).parents[1]
PROMPT = "red heart, noto style"
UNET = "unet/diffusion_pytorch_model.safetensors"
SET = [word for setting in SETTINGS for word in ("--set", setting)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Return the folder of a tiny model."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Return a folder with pictures of the user's own."""
    folder = tmp_path_factory.mktemp("own pictures")
    for k, x in enumerate(tiny_pictures(4).images):
        Image.fromarray(x.transpose(1, 2, 0)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text(LABELS[k], encoding="utf-8")
    return folder


@pytest.fixture
def broken(model, tmp_path):
    """Return a copy of the tiny model, to be damaged."""
    return shutil.copytree(model, tmp_path / "broken")


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Run in an empty folder, and keep runs there too."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TINYDIFF_RUNS", str(tmp_path / "runs"))


def fault(capsys, *arguments, bar=False):
    """Run a command that must fail; return the one line it says.

    With `bar`, it failed while working: the line then follows the progress bar's own.
    """
    with pytest.raises(SystemExit) as end:
        main([str(a) for a in arguments])
    assert end.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 or bar, lines
    assert lines[-1].startswith("tinydiff: error: ") and "Traceback" not in "".join(lines)
    return lines[-1]


# ---- generate ----

def test_a_prompt_becomes_a_picture_its_denoising_and_files_of_their_own(model, capsys):
    main(["generate", PROMPT, "a rocket", "--model", str(model), "--steps", "2", "--count", "2",
          "--out", "made/out.png", "--each", "made/each", "--strip", "made/strip.png",
          "--attention", "made/words.png", "--scale", "2", "--guidance", "1"])
    files = sorted(str(f) for f in Path("made").rglob("*.png"))
    assert files == ["made/each/00-red-heart--noto-style.png",
                     "made/each/01-red-heart--noto-style.png", "made/each/02-a-rocket.png",
                     "made/each/03-a-rocket.png", "made/out.png", "made/strip.png",
                     "made/words.png"]
    assert capsys.readouterr().out.split() == [str(Path(f)) for f in (
        files[4], *files[:4], *files[5:])]
    with Image.open("made/out.png") as sheet, Image.open(files[2]) as one:
        assert sheet.size == (2 * (16 + 2 + 16), 2 * (16 + 2 + 16)) and one.size == (32, 32)
        corner = sheet.crop((0, 36, 32, 68))
        assert np.array_equal(np.asarray(corner), np.asarray(one))


def test_a_latent_model_is_guided_by_its_own_clip(capsys):
    tiny_latent_pipeline().save_pretrained("latent")
    command = ["generate", PROMPT, "--model", "latent", "--steps", "3", "--guidance", "1"]
    for name, *options in ("a", ("b", "--clip-guidance", "50"), ("c", "--threshold", ".9")):
        main([*command, *options, "--out", f"{name}.png"])
    a, b, c = (Path(f"{name}.png").read_bytes() for name in "abc")
    assert len({a, b, c}) == 3


def test_the_same_command_writes_the_same_bytes(model):
    command = ["generate", PROMPT, "--model", str(model), "--steps", "2", "--sampler", "ddpm"]
    for seed, name in (("1", "a.png"), ("1", "b.png"), ("2", "c.png")):
        main([*command, "--seed", seed, "--out", name])
    a, b, c = (Path(name).read_bytes() for name in ("a.png", "b.png", "c.png"))
    assert a == b != c


@pytest.mark.parametrize("prompt", ["qqq zyx", "❤️🚀", "红色的心", "a/b\\..\\c: *?", "\ud800"])
def test_any_prompt_draws_and_names_its_file(model, prompt):
    main(["generate", prompt, "--model", str(model), "--steps", "1", "--each", "each"])
    assert len(os.listdir("each")) == 1 and Path("out.png").is_file()


@pytest.mark.parametrize("arguments, words", [
    ([""], "the prompt is empty; describe a picture"),
    (["  \t "], "the prompt is empty"),
    ([PROMPT, ""], "the prompt is empty"),
    ([PROMPT, "--sampler", "plms"], "unknown sampler 'plms'; known: ddim, ddpm"),
    ([PROMPT, "--steps", "0"], "steps=0: an integer from 1 to 1000"),
    ([PROMPT, "--steps", "1001"], "steps=1001: an integer from 1 to 1000"),
    ([PROMPT, "--guidance", "nan"], "guidance weight nan: a finite number"),
    ([PROMPT, "--guidance", "inf"], "guidance weight inf"),
    ([PROMPT, "--count", "0"], "--count 0 must be at least 1"),
    ([PROMPT, "--scale", "0"], "--scale 0"),
    ([PROMPT, "--seed", "-1"], "seed=-1: an integer from 0"),
    ([PROMPT, "--seed", str(2**64)], "seed=18446744073709551616"),
    ([PROMPT, "--eta", "1.5"], "eta=1.5 is outside [0, 1]"),
    ([PROMPT, "--eta", "nan"], "eta=nan is outside"),
    ([PROMPT, "--eta", "1", "--sampler", "ddpm"], "eta"),
    ([PROMPT, "--clip-guidance", "5"], "CLIP guidance needs the image encoder of a CLIP"),
    ([PROMPT, "--clip-guidance", "nan"], "clip guidance weight nan: a finite number"),
    ([PROMPT, "--threshold", "1.5"], "dynamic threshold: ratio=1.5"),
    ([PROMPT, "--rescale", "2"], "guidance rescale 2.0"),
    ([PROMPT, "--interval", "3", "1"], "guidance interval [3.0, 1.0]: 0 <= low < high"),
    ([PROMPT, "--out", "heart.xyz"], "heart.xyz"),
    ([PROMPT, "--out", "heart"], "heart"),
    ([PROMPT, "--strip", "strip.xyz"], "strip.xyz"),
    ([PROMPT, "--attention", "words.xyz"], "words.xyz"),
])
def test_what_cannot_be_drawn_is_named(model, capsys, arguments, words):
    assert words in fault(capsys, "generate", *arguments, "--model", model)
    assert not os.listdir()                                           # nothing half done is left


def test_an_unknown_model_is_named_with_those_there_are(capsys):
    assert "unknown model 'emojis'; shipped: " in fault(
        capsys, "generate", PROMPT, "--model", "emojis")


def test_a_folder_that_is_no_model_is_named(capsys, tmp_path):
    line = fault(capsys, "generate", PROMPT, "--model", tmp_path)
    assert f"{tmp_path / 'model_index.json'}: no such file" in line


@pytest.mark.parametrize("damage, words", [
    (lambda data: data[:len(data) // 2], "damaged, or not a safetensors file"),
    (lambda data: data[:20], "the header should end at byte"),
    (lambda data: b"", "0 bytes are too few"),
    (lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:], "checksum does not match"),
    (lambda data: b"\xff" * 200, "damaged"),
])
def test_a_truncated_or_corrupted_weight_file_is_named(broken, capsys, damage, words):
    file = broken / UNET
    file.write_bytes(damage(file.read_bytes()))
    line = fault(capsys, "generate", PROMPT, "--model", broken)
    assert f"{file}: " in line and words in line


def edit(file, change):
    """Change the JSON in `file`."""
    value = json.loads(file.read_text(encoding="utf-8"))
    change(value)
    file.write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize("file, change, words", [
    ("unet/config.json", {"time_embedding_type": "fourier"}, "time_embedding_type='fourier'"),
    ("unet/config.json", {"block_out_chanels": [8]}, "block_out_chanels=[8] is not a supported"),
    ("unet/config.json", {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]},
     "'AttnDownBlock2D'"),
    ("text_encoder/config.json", {"hidden_act": "tanh"}, "hidden_act"),
    ("scheduler/scheduler_config.json", {"beta_schedule": "wavy"}, "beta_schedule"),
    ("scheduler/scheduler_config.json", {"use_beta_sigmas": True}, "use_beta_sigmas=True"),
])
def test_a_config_field_that_is_not_supported_is_named(broken, capsys, file, change, words):
    edit(broken / file, lambda config: config.update(change))
    assert words in fault(capsys, "generate", PROMPT, "--model", broken)


@pytest.mark.parametrize("file", ["model_index.json", "unet/config.json", "tokenizer/vocab.json",
                                  "text_encoder/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize("content", ['{"a": ', "[1, 2]", "3", "", "\xff"])
def test_a_damaged_json_file_is_named(broken, capsys, file, content):
    (broken / file).write_bytes(content.encode("latin-1"))
    assert str(broken / Path(file).parts[0]) in fault(
        capsys, "generate", PROMPT, "--model", broken)


@pytest.mark.parametrize("change, words", [
    (lambda t: t.update({"conv_in.weight": t["conv_in.weight"][:, :2]}),
     "wrong shape: conv_in.weight (8, 2, 3, 3), expected (8, 3, 3, 3)"),
    (lambda t: t.pop("conv_out.bias"), "missing tensors: conv_out.bias"),
    (lambda t: t.update(extra=np.ones(3)), "unexpected tensors: extra"),
    (lambda t: t.update({"conv_out.bias": t["conv_out.bias"] * np.nan}),
     "'conv_out.bias' holds a value that is not finite"),
])
def test_a_tensor_that_does_not_fit_is_named(broken, capsys, change, words):
    tensors = {n: a.copy() for n, a in read_safetensors(broken / UNET).items()}
    change(tensors)
    write_safetensors(broken / UNET, tensors)
    line = fault(capsys, "generate", PROMPT, "--model", broken)
    assert f"{broken / UNET}: " in line and words in line


def test_a_text_encoder_that_does_not_fit_the_network_is_an_error(broken, capsys):
    other = tiny_pipeline("text_encoder.hidden_size=12", "unet.cross_attention_dim=12")
    shutil.rmtree(broken / "text_encoder")
    other.text_encoder.save_pretrained(broken / "text_encoder")
    fault(capsys, "generate", PROMPT, "--model", broken, bar=True)


# ---- train ----

def test_training_on_ones_own_pictures_makes_a_model_that_draws(pictures, capsys, tmp_path):
    train = ["train", "emoji-pixel", *SET, "--data", str(pictures), "--checkpoint-every", "2"]
    main([*train, "--run", "run"])
    out = capsys.readouterr().out
    assert "emoji-pixel: 4 pictures" in out and f"finished: {Path('run/model')}" in out
    main(["generate", PROMPT, "--model", "run/model", "--steps", "1"])
    assert Path("out.png").is_file()

    # A further leg, from those weights; --resume needs nothing but the folder.
    main([*train, "--run", "further", "--init", "run/model"])
    assert read_json("further/recipe.json")["init"] == "run/model"
    main(["train", "emoji-pixel", "--run", "further", "--resume"])
    main(train)                                                       # where runs live by default
    assert (tmp_path / "runs" / "emoji-pixel" / "model" / "model_index.json").is_file()


@pytest.mark.parametrize("arguments, words", [
    (["emoji-pixle"], "unknown recipe 'emoji-pixle'; known: emoji-32, emoji-64, emoji-pixel"),
    (["no/such.toml"], "no such recipe file"),
    (["emoji-pixel", "--set", "train.stpes=3"], "unknown key train.stpes"),
    (["emoji-pixel", "--set", "trian.steps=3"], "unknown table [trian]"),
    (["emoji-pixel", "--set", "train.steps"], "write table.key=value"),
    (["emoji-pixel", "--set", "train.steps=many"], "steps='many' should be a whole number"),
    (["emoji-pixel", "--set", "train.lr=fast"], "train.lr='fast' should be a number"),
    (["emoji-pixel", "--set", "samples.every=0"], "samples.every=0"),
    (["emoji-pixel", "--set", "train.shards=3"], "shards=3 does not divide"),
    (["emoji-pixel", "--set", "data.dataset=cats"], "dataset='cats' is unknown; known: emoji"),
    (["emoji-pixel", "--set", "data.size=20"], "size=20: the emoji pack has sizes 64, 32, 16"),
    (["emoji-pixel", "--set", "unet.time_embedding_dim=3"], "time_embedding_dim=3"),
    (["emoji-pixel", "--set", "unet.sample_size=64"], "unet.sample_size follows from the data"),
    (["emoji-pixel", "--set", "text_encoder.vocab_size=9"], "vocab_size follows from the data"),
    (["emoji-pixel", "--set", "unet.norm_num_groups=0"], "[unet]: "),
    (["emoji-pixel", "--set", "unet.layers_per_block=1.5"], "[unet]: "),
    (["emoji-pixel", "--set", "unet.block_out_channels=32"], "[unet]: "),
    (["emoji-pixel", "--set", "text_encoder.num_attention_heads=0"], "[text_encoder]: "),
    (["emoji-pixel", "--set", "train.betas=[1.0, 1.0]"], "train.betas=[1.0, 1.0] should be"),
    (["emoji-pixel", "--resume", "--init", "run/model"], "leave --init out"),
    (["emoji-pixel", "--set", "unet.norm_num_groups=7"], "norm_num_groups=7 does not divide"),
    (["emoji-pixel", "--data", "nowhere"], "nowhere: no such folder"),
    (["emoji-pixel", "--init", "nowhere"], "unknown model 'nowhere'"),
    (["emoji-pixel", "--resume"], "emoji-pixel"),
    (["emoji-pixel", "--checkpoint-every", "0"], "--checkpoint-every 0"),
])
def test_what_cannot_be_trained_is_named(capsys, arguments, words):
    assert words in fault(capsys, "train", arguments[0], *SET, *arguments[1:])


def test_a_run_that_is_there_is_not_overwritten(pictures, capsys):
    train = ["train", "emoji-pixel", *SET, "--data", str(pictures), "--run", "run",
             "--set", "train.steps=1"]
    main(train)
    capsys.readouterr()
    assert "run holds a run already: add --resume" in fault(capsys, *train)
    assert "[train] differs" in fault(capsys, *train, "--resume", "--set", "train.lr=1")


def test_a_missing_data_file_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr("tinydiff.datasets.dataset.data_folder", lambda: tmp_path)
    from tinydiff.datasets.emoji import read_records
    read_records.cache_clear()
    try:
        line = fault(capsys, "train", "emoji-pixel", *SET)
    finally:
        read_records.cache_clear()
    assert f"{tmp_path / 'emoji.jsonl'}: missing data file; restore it" in line


FULL = """
import resource, sys
from tinydiff.cli import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
main(sys.argv[2:])
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no RLIMIT_FSIZE")
def test_a_full_disk_is_one_line_and_the_old_checkpoint_survives(pictures, tmp_path):
    train = ["train", "emoji-pixel", *SET, "--data", str(pictures), "--run", str(tmp_path / "run"),
             "--set", "train.steps=4", "--checkpoint-every", "1"]
    from tinydiff.runs import Run
    with pytest.MonkeyPatch.context() as patch:                       # a run that stops at step 1
        save, saved = Run.save, []

        def once(self, trainer):
            if saved:
                raise KeyboardInterrupt
            saved.append(save(self, trainer))

        patch.setattr(Run, "save", once)
        with pytest.raises(SystemExit) as end:
            main(train)
        assert end.value.code == 130
    file = tmp_path / "run" / "checkpoint" / "state.safetensors"
    before = file.read_bytes()
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(len(before) // 2), *train, "--resume"], cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"}, capture_output=True, text=True,
        timeout=120)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert last == (f"tinydiff: error: {file.parent}: not saved: File too large; "
                    "what was there before is intact") or str(file.parent) in last
    assert file.read_bytes() == before
    main([*train, "--resume"])                                        # and it goes on from there
    assert (tmp_path / "run" / "model" / "model_index.json").is_file()


def test_an_interrupt_ends_with_a_line_and_its_own_code(model, capsys, monkeypatch):
    def interrupt(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("tinydiff.pipelines.TextToImage.steps", interrupt)
    with pytest.raises(SystemExit) as end:
        main(["generate", PROMPT, "--model", str(model)])
    assert end.value.code == 130
    assert capsys.readouterr().err == "tinydiff: interrupted\n"


# ---- info and help ----

def test_info_prints_what_runs_and_writes_it_as_json(capsys):
    main(["info", "--json", "facts.json"])
    out = capsys.readouterr().out
    facts = json.loads(Path("facts.json").read_text(encoding="utf-8"))
    assert facts["tinydiff"] == tinydiff.__version__
    assert {"python", "numpy", "models", "recipes", "samplers"} <= facts.keys()
    assert all(name in out and value in out for name, value in facts.items())
    assert "emoji-pixel" in facts["recipes"] and "ddim" in facts["samplers"]


def test_info_that_cannot_be_written_is_named(capsys):
    assert "facts.json: not saved: No such file" in fault(
        capsys, "info", "--json", Path("no") / "facts.json")


@pytest.mark.parametrize("command, words", [
    ([], ["generate", "train", "evaluate", "info"]),
    (["generate"], ["PROMPT", "--model", "--steps", "--sampler", "--guidance", "--seed", "--out"]),
    (["train"], ["RECIPE", "--set", "--resume", "--init", "--data", "--run"]),
    (["evaluate"], ["MODEL", "--count", "--sweep", "--data", "--json"]),
    (["train"], ["RECIPE", "--stage", "--resume", "--init", "--data"]),
    (["info"], ["--json"]),
])
def test_every_command_explains_itself(capsys, command, words):
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    out = capsys.readouterr().out
    assert all(word in out for word in words)


@pytest.mark.parametrize("arguments, words", [
    (["nowhere"], "unknown model 'nowhere'"),
    (["nowhere", "--count", "0"], "--count 0 must be at least 1"),
    (["nowhere", "--sheet", "sheet.xyz"], "sheet.xyz: not a picture's name"),
])
def test_what_cannot_be_evaluated_is_named(capsys, arguments, words):
    assert words in fault(capsys, "evaluate", *arguments)


@pytest.mark.parametrize("arguments", [
    [], ["draw"], ["generate"], ["generate", PROMPT, "--steps", "few"],
    ["generate", PROMPT, "--colour"], ["train"], ["info", "x"]])
def test_a_wrong_command_line_is_one_line(capsys, arguments):
    fault(capsys, *arguments)


# ---- the program as it is started ----

def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120)


def test_the_module_is_the_program():
    done = python("-m", "tinydiff", "generate", "a cat", "--model", "nowhere")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.startswith("tinydiff: error: unknown model") and done.stderr.count("\n") == 1


IMPORTED = """
import sys, threading, time
start = time.perf_counter()
import tinydiff
seconds = time.perf_counter() - start
heavy = {"scipy", "matplotlib", "numba", "PIL", "cupy", "tqdm", "concurrent"} & {*sys.modules}
print(seconds, threading.active_count(), *sorted(heavy))
"""


def test_importing_the_package_is_quick_and_quiet():
    runs = [python("-c", IMPORTED) for _ in range(3)]
    assert all(run.returncode == 0 and not run.stderr for run in runs)
    words = [run.stdout.split() for run in runs]
    assert min(float(seconds) for seconds, *_ in words) < 0.5
    assert all(threads == "1" for _, threads, *_ in words)
    assert not words[0][2:], "these should load when first needed"


def test_public_names_load_when_first_used():
    for name in tinydiff.__all__:
        assert getattr(tinydiff, name) is not None, name
    assert tinydiff.load is tinydiff.pipelines.load
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        tinydiff.nonsense  # noqa: B018
