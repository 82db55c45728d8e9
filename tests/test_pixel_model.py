"""The pixel-space model that was shipped first keeps what its page promises."""
import json

import numpy as np
import pytest

import tinydiff
from tinydiff.datasets import data_folder, load_emoji
from tinydiff.evaluate import TRAINING, Setting, evaluate
from tinydiff.metrics import nearest

FOLDER = data_folder() / "models" / "emoji-pixel"


def test_it_takes_under_4_mb_and_has_a_page():
    files = [p for p in FOLDER.rglob("*") if p.suffix in (".json", ".safetensors", ".txt")]
    assert sum(p.stat().st_size for p in files) < 4e6
    assert {"curve.png", "samples.png", "log.csv"} <= {p.name for p in FOLDER.iterdir()}
    assert "tinydiff train emoji-pixel" in (FOLDER / "README.md").read_text(encoding="utf-8")


def test_the_committed_table_says_that_half_of_the_captions_find_their_picture():
    table = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))
    training = table["rows"][0]
    assert (table["sampler"], table["steps"]) == ("ddim", 50)
    assert (training["n"], training["among"]) == (200, 1415) and training["at_1"] >= 0.5


def test_a_red_heart_is_red_and_a_heart():
    pictures = load_emoji(32, ["noto"], split="all")
    labels = [record["label"] for record in pictures.records]
    pipe = tinydiff.load("emoji-pixel")
    *_, last = pipe.steps("red heart, noto style", count=4, steps=25, seed=0)
    found = nearest(np.clip(last.x_s, -1, 1), pictures.array())[:, 0]
    assert [labels[i] for i in found] == ["red heart"] * 4

    heart = pictures.array([labels.index("red heart")])[0].min(axis=0) < 0        # (32, 32)
    for x in last.x_s:
        drawn = x.min(axis=0) < 0                                     # not white
        assert (drawn & heart).sum() / (drawn | heart).sum() > 0.8    # a heart
        red, green, blue = x[:, drawn & heart].mean(axis=1)
        assert red > green + 0.5 and red > blue + 0.5                 # and red


@pytest.mark.slow
def test_half_of_the_training_captions_find_their_picture():
    rows, _ = evaluate(tinydiff.load("emoji-pixel"), [Setting(50, 3.0)], count=200, seed=0)
    training = next(row for row in rows if row.of == TRAINING)
    assert training.metric == "picture found by pixels, at 1"
    assert training.n == 200 and training.among == 1415
    assert training.value >= 0.5
    on_page = json.loads((FOLDER / "evaluation.json").read_text(encoding="utf-8"))["rows"][0]
    assert abs(training.value - on_page["at_1"]) <= 0.02               # rounding on other machines


def test_its_parts_open_in_diffusers_and_transformers_and_say_the_same():
    torch = pytest.importorskip("torch")
    diffusers, transformers = pytest.importorskip("diffusers"), pytest.importorskip("transformers")
    unet = diffusers.UNet2DConditionModel.from_pretrained(FOLDER / "unet").float()
    text_encoder = transformers.CLIPTextModel.from_pretrained(FOLDER / "text_encoder").float()
    tokenizer = transformers.CLIPTokenizer.from_pretrained(FOLDER / "tokenizer")
    scheduler = diffusers.DDIMScheduler.from_pretrained(FOLDER / "scheduler")
    prompts = ["red heart, noto style", "a dog's face"]
    ids = tokenizer(prompts, padding="max_length", truncation=True, max_length=20,
                    return_tensors="pt").input_ids
    x_t = np.random.default_rng(0).standard_normal((2, 3, 32, 32), dtype=np.float32)
    with torch.no_grad():
        text = text_encoder(ids)
        want = unet(torch.from_numpy(x_t), 700, encoder_hidden_states=text.last_hidden_state,
                    class_labels=text.pooler_output).sample.numpy()

    pipe = tinydiff.load("emoji-pixel")
    own = pipe.encode(prompts)
    got = pipe.unet.forward(x_t, 700, own.hidden, own.pooled)
    assert np.array_equal(ids.numpy(), pipe.tokenizer.encode_batch(prompts))
    assert scheduler.config.prediction_type == pipe.scheduler.prediction_type
    assert np.abs(got - want).max() < 1e-4 * np.abs(want).max()
