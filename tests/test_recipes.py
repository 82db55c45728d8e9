"""A recipe is checked to the last key before anything is trained, and the shipped one is small."""
import re

import numpy as np
import pytest
from tiny import tiny_pictures, tiny_recipe

from tinydiff.datasets import load_emoji
from tinydiff.models import CLIP, Autoencoder, UNet
from tinydiff.recipes import load_recipe, names
from tinydiff.recipes.data import training_pictures
from tinydiff.recipes.text_to_image import TextToImageObjective, new_pipeline
from tinydiff.train import TrainConfig, Trainer, train


def shipped_toml():
    """Return the text of the shipped recipe."""
    from importlib.resources import files
    return (files("tinydiff.recipes") / "emoji-pixel.toml").read_text(encoding="utf-8")


def refused(name, *settings, error=ValueError):
    """Return the one line that `load_recipe` says."""
    with pytest.raises(error) as caught:
        load_recipe(name, settings)
    line = str(caught.value)
    assert "\n" not in line and len(line) < 400
    return line


def test_the_shipped_recipe_is_found_and_complete():
    assert "emoji-pixel" in names()
    recipe = load_recipe("emoji-pixel")
    assert recipe["name"] == "emoji-pixel" and recipe["kind"] == "text_to_image"
    config = TrainConfig(**recipe["train"])
    assert config.batch_size % config.shards == 0


def test_the_shipped_recipe_builds_a_model_under_four_megabytes():
    recipe = load_recipe("emoji-pixel")
    pipe = new_pipeline(recipe, tiny_pictures(size=recipe["data"]["size"]))
    # The tokenizer of the real captions fills its vocabulary, that of ten pictures does not.
    missing = recipe["tokenizer"]["vocab_size"] - len(pipe.tokenizer)
    numbers = (pipe.unet.count() + pipe.text_encoder.count()
               + missing * recipe["text_encoder"]["hidden_size"])
    assert 2 * numbers < 4e6, f"{2 * numbers / 1e6:.2f} MB in float16"
    assert pipe.unet.config["sample_size"] == 32
    assert pipe.text_encoder.config["hidden_size"] == pipe.unet.config["cross_attention_dim"][0]
    assert pipe.text_encoder.config["eos_token_id"] == len(pipe.tokenizer) - 1


def test_the_default_recipe_makes_a_folder_under_16_megabytes():
    recipe = load_recipe("emoji-64")
    clip, vae = recipe["clip"], recipe["autoencoder"]["model"]
    text = {**clip["text_encoder"], "vocab_size": recipe["tokenizer"]["vocab_size"],
            "max_position_embeddings": recipe["tokenizer"]["max_length"]}
    parts = [
        CLIP(text_config=text, vision_config={**clip["image_encoder"], "image_size": 64},
             projection_dim=clip["loss"]["projection_dim"]),
        Autoencoder(**vae),
        UNet(**recipe["unet"]["model"], cross_attention_dim=text["hidden_size"],
             in_channels=vae["latent_channels"], out_channels=vae["latent_channels"]),
    ]
    headers = 0.2e6                                                   # and the tokenizer's files
    assert 2 * sum(part.count() for part in parts) + headers < 16e6


def test_the_shipped_recipe_asks_for_training_pictures_alone():
    pictures = training_pictures(load_recipe("emoji-pixel")["data"])
    everything = load_emoji(32, "noto", split="all")
    assert 1000 < len(pictures) < len(everything)
    assert all(r["held_out"] is None and r["tone"] is None and r["style"] == "noto"
               for r in pictures.records)


def test_a_recipe_of_ones_own_is_a_toml_file(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(shipped_toml().replace('name = "emoji-pixel"', 'name = "mine"'),
                    encoding="utf-8")
    assert load_recipe(file)["name"] == "mine"
    assert load_recipe(str(file), ["train.steps=7"])["train"]["steps"] == 7


@pytest.mark.parametrize("setting, table, key, value", [
    ("train.steps=7", "train", "steps", 7),
    ("train.lr = 1e-4", "train", "lr", 1e-4),
    ("data.tones=true", "data", "tones", True),
    ("unet.act_fn=gelu", "unet", "act_fn", "gelu"),                   # a bare word is text
    ('unet.act_fn="gelu"', "unet", "act_fn", "gelu"),
    ("unet.block_out_channels=[8, 16]", "unet", "block_out_channels", [8, 16]),
    ("data.folder=C:\\my pictures", "data", "folder", "C:\\my pictures"),
    ("samples.prompts=['a = b']", "samples", "prompts", ["a = b"]),
])
def test_a_setting_changes_one_value(setting, table, key, value):
    changed, plain = load_recipe("emoji-pixel", [setting]), load_recipe("emoji-pixel")
    assert changed[table][key] == value
    plain[table][key] = value
    assert changed == plain


def test_the_last_of_two_settings_wins():
    assert load_recipe("emoji-pixel", ["train.steps=1", "train.steps=2"])["train"]["steps"] == 2


@pytest.mark.parametrize("setting, words", [
    ("train.stpes=7", ["unknown key train.stpes", "steps"]),
    ("trian.steps=7", ["unknown table [trian]", "train"]),
    ("train.steps", ["train.steps", "write table.key=value"]),
    ("steps=7", ["steps=7", "write table.key=value"]),
    ("name.x=7", ["name", "is not a table"]),
    ("", ["write table.key=value"]),
])
def test_a_wrong_setting_is_named(setting, words):
    line = refused("emoji-pixel", setting)
    assert all(word in line for word in words), line


def test_an_unknown_recipe_is_named_with_those_there_are():
    line = refused("emoji-pixle")
    assert "emoji-pixle" in line and "emoji-pixel" in line and ".toml" in line
    assert "no/such.toml: no such recipe file" in refused("no/such.toml", error=FileNotFoundError)


@pytest.mark.parametrize("change, words", [
    (lambda text: text + "\n[extra]\nx = 1\n", ["unknown table [extra]"]),
    (lambda text: text.replace("batch_size", "batchsize"), ["unknown key train.batchsize"]),
    (lambda text: text.replace('kind = "text_to_image"', ""), ["kind is missing"]),
    (lambda text: text.replace("[loss]", "[unet2]"), ["unknown table [unet2]"]),
    (lambda text: text + "\nnonsense\n", ["line"]),
    (lambda text: text.replace("[train]", "[train"), ["line"]),
])
def test_a_wrong_recipe_file_is_named_with_its_fault(tmp_path, change, words):
    file = tmp_path / "mine.toml"
    text = change(shipped_toml())
    assert text != shipped_toml()
    file.write_text(text, encoding="utf-8")
    line = refused(file)
    assert line.startswith(str(file)) and all(word in line for word in words), line


@pytest.mark.parametrize("key, line, message", [
    ("lr", "lr = 'fast'", "train.lr='fast' should be a number from 0"),
    ("lr", "lr = nan", "train.lr=nan should be a number from 0"),
    ("steps", "steps = 0", "train.steps=0 should be a whole number from 1"),
    ("steps", "", "train.steps is missing"),
    ("seed", "seed = -1", "train.seed=-1 should be a whole number from 0"),
    ("ema_decay", "betas = 0.9", "train.betas=0.9 should be two numbers from 0 to below 1"),
    ("size", "size = true", "data.size=True should be a whole number"),
    ("tones", "tones = 1", "data.tones=1 should be true or false"),
    ("styles", "styles = []", r"data.styles=\[\] should be a list of texts"),
    ("caption_dropout", "", "loss.caption_dropout is missing"),
    ("caption_dropout", "caption_dropout = 2", "caption_dropout=2 should be a number from 0"),
    ("every", "every = 0", "samples.every=0 should be a whole number from 1"),
    ("name", "name = 3", r"name=3.* name a text"),
    ("kind", "kind = 'sound'", r"kind='sound'.*should be 'text_to_image'"),
])
def test_a_value_that_cannot_be_is_named(tmp_path, key, line, message):
    text, changed = re.subn(rf"(?m)^{key} = .*$", line, shipped_toml(), count=1)
    assert changed
    file = tmp_path / "mine.toml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_recipe(file)
    assert refused(file).startswith(str(file))


def test_a_table_that_is_a_number_is_named(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text('name = "a"\nkind = "text_to_image"\nunet = 3\n', encoding="utf-8")
    assert "unet=3 should be a table" in refused(file)


def test_fields_of_a_network_are_checked_by_the_network():
    with pytest.raises(ValueError, match="UNet config: time_embedding_type='fourier'"):
        new_pipeline(tiny_recipe("unet.time_embedding_type=fourier"), tiny_pictures())
    with pytest.raises(ValueError, match="scheduler config: unknown field 'betas'"):
        new_pipeline(tiny_recipe("scheduler.betas=3"), tiny_pictures())


def test_an_unknown_data_set_is_named():
    with pytest.raises(ValueError, match="dataset='emojis' is unknown; known: emoji") as error:
        training_pictures(tiny_recipe("data.dataset=emojis")["data"])
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_the_shipped_recipe_trains():
    recipe = load_recipe("emoji-pixel", ["train.steps=2"])
    trainer = Trainer(TextToImageObjective(recipe, training_pictures(recipe["data"])),
                      TrainConfig(**recipe["train"]))
    assert len(trainer.objective.tokenizer) == recipe["tokenizer"]["vocab_size"]
    assert 2 * trainer.model.count() < 4e6                            # bytes in float16
    steps = list(train(trainer))
    assert len(steps) == 2 and np.isfinite([s.loss for s in steps]).all()
