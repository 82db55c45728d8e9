"""CLIP learns by contrast: its loss is the definition's, its gradient is the derivative of the loss
through both encoders, its batches and augmentations are what they say, and captions find pictures.
"""
import numpy as np
import pytest
from gradients import assert_direction
from tiny import LABELS, same, tiny_pictures, wake

from tinydiff.backends.random import generator
from tinydiff.cross_entropy import contrastive
from tinydiff.datasets import Pictures, augment, captions
from tinydiff.metrics import match_rank
from tinydiff.models import CLIP, CLIPText, CLIPVision
from tinydiff.nn import Tape
from tinydiff.ops import unit_forward
from tinydiff.pictures import resize
from tinydiff.pipelines.clip import ClipEncoder
from tinydiff.recipes.clip import LARGEST_SCALE, ClipObjective
from tinydiff.text import Tokenizer
from tinydiff.train import TrainConfig, Trainer, train

SMALL = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
         "num_attention_heads": 2, "hidden_act": "silu"}
RECIPE = {
    "text_encoder": SMALL, "image_encoder": {**SMALL, "patch_size": 4},
    "loss": {"projection_dim": 6, "augment": True},
    "train": {"steps": 3, "batch_size": 8, "shards": 1, "lr": 3e-3, "warm_up": 1},
    "samples": {"every": 1000, "prompts": ["red heart", "pizza"]},
}
IDS = np.array([[18, 3, 4, 19], [18, 3, 19, 19], [18, 5, 6, 19]])


def tiny_clip(dtype=np.float64, **config):
    """Return a CLIP that answers every picture and caption differently."""
    clip = CLIP(text_config={**SMALL, "vocab_size": 20, "eos_token_id": 19,
                             "max_position_embeddings": 4},
                vision_config={**SMALL, "image_size": 8, "patch_size": 4},
                projection_dim=6, **config)
    return wake(clip.initialise(0, dtype))


def tiny_objective(count=10, recipe=RECIPE, **options):
    pictures = tiny_pictures(count)
    tokenizer = Tokenizer.train(LABELS, 530, model_max_length=16)
    return ClipObjective(recipe, pictures, tokenizer, **options)


# ---- the loss ----

def definition(image, text, t, alike):
    """Return the loss, one picture and one caption at a time."""
    B, value = len(image), 0.0
    for i in range(B):
        to_captions = [np.exp(np.exp(t) * image[i] @ text[j]) for j in range(B)]
        to_pictures = [np.exp(np.exp(t) * image[j] @ text[i]) for j in range(B)]
        right = [j for j in range(B) if alike[i, j]]
        for scores in (to_captions, to_pictures):
            value -= np.mean([np.log(scores[j] / sum(scores)) for j in right]) / (2 * B)
    return value


ALIKE = np.eye(5, dtype=bool)
ALIKE[0, 3] = ALIKE[3, 0] = True


def unit_vectors(seed, shape=(5, 4), dtype=np.float64):
    return unit_forward(np.random.default_rng(seed).normal(size=shape))[0].astype(dtype)


@pytest.mark.parametrize("alike", [None, ALIKE])
def test_the_loss_is_its_definition(alike):
    image, text = unit_vectors(0), unit_vectors(1)
    got = contrastive(image, text, 1.3, alike)[0]
    want = definition(image, text, 1.3, np.eye(5) if alike is None else alike)
    assert got == pytest.approx(want, rel=1e-13)


@pytest.mark.parametrize("alike", [None, ALIKE])
def test_the_gradients_are_the_derivatives_of_the_loss(alike):
    x = {"image": unit_vectors(0), "text": unit_vectors(1), "t": np.array(0.7)}
    f = lambda: np.array(contrastive(x["image"], x["text"], float(x["t"]), alike)[0])
    _, dimage, dtext, dt = contrastive(x["image"], x["text"], 0.7, alike)
    for seed in range(3):
        assert_direction(f, x, np.array(1.0), np.random.default_rng(seed), rtol=1e-8, h=1e-5,
                         image=dimage, text=dtext, t=np.array(dt))


def test_pictures_that_share_a_caption_are_drawn_together_and_not_apart():
    image = text = np.eye(4)
    alike = np.eye(4, dtype=bool)
    alike[0, 3] = alike[3, 0] = True
    _, apart, *_ = contrastive(image, text, 1.0)
    _, together, *_ = contrastive(image, text, 1.0, alike)
    assert apart[0, 3] > 0 > together[0, 3]                      # going down the gradient
    same = np.eye(4)[[0, 1, 2, 0]]                               # they agree: nothing is left
    value, dimage, *_ = contrastive(same, same, 5.0, alike)
    assert value == pytest.approx(np.log(2) / 2, rel=1e-9)       # the target's own entropy
    assert np.abs(dimage).max() < 1e-9


def test_extreme_temperatures_are_finite():
    image, text = unit_vectors(0, dtype=np.float32), unit_vectors(1, dtype=np.float32)
    for t in (-20.0, LARGEST_SCALE, 8.0):
        value, dimage, dtext, dt = contrastive(image, text, t)
        assert np.isfinite([value, dt]).all() and np.isfinite(dimage).all()
        assert dimage.dtype == dtext.dtype == np.float32 and type(dt) is type(value) is float
    assert contrastive(image, text, -20.0)[0] == pytest.approx(np.log(5), abs=1e-6)


def test_shapes_that_differ_are_refused():
    with pytest.raises(ValueError, match=r"\(5, 4\), text \(4, 4\)"):
        contrastive(unit_vectors(0), unit_vectors(0, (4, 4)), 0.0)


# ---- the model ----

def test_the_whole_gradient_of_the_loss_through_both_encoders():
    clip = tiny_clip()
    x = np.random.default_rng(0).normal(size=(3, 3, 8, 8))
    alike = np.eye(3, dtype=bool)
    alike[0, 2] = alike[2, 0] = True

    def loss():
        return np.array(contrastive(*clip.forward(x, IDS), float(clip.logit_scale.value), alike)[0])

    tape = Tape()
    pairs = clip.forward(x, IDS, tape)
    _, dimage, dtext, dt = contrastive(*pairs, float(clip.logit_scale.value), alike)
    clip.logit_scale.accumulate(np.array(dt))
    clip.backward(dimage, dtext, tape)
    assert not tape.stack
    for seed in range(3):
        assert_direction(loss, {n: p.value for n, p in clip.parameters()}, np.array(1.0),
                         np.random.default_rng(seed),
                         **{n: p.grad for n, p in clip.parameters()})


def test_both_halves_are_the_model_itself():
    clip = tiny_clip()
    own = dict(clip.parameters())
    for half in (clip.text, clip.vision):
        assert all(own[name] is p for name, p in half.parameters())
    assert len(own) == 1 + sum(len(dict(h.parameters())) for h in (clip.text, clip.vision))


def test_the_halves_open_on_their_own_and_together(tmp_path):
    clip = tiny_clip(np.float32)
    clip.save_pretrained(tmp_path / "clip")
    clip.text.save_pretrained(tmp_path / "text_encoder")
    clip.vision.save_pretrained(tmp_path / "image_encoder")
    again = CLIP.from_pretrained(tmp_path / "clip")
    assert same(again.state(), clip.state()) and again.config == clip.config
    assert same(CLIPText.from_pretrained(tmp_path / "text_encoder").state(), clip.text.state())
    assert same(CLIPVision.from_pretrained(tmp_path / "image_encoder").state(),
                clip.vision.state())


@pytest.mark.parametrize("config, match", [
    ({"projection_dim": "wide"}, "projection_dim"), ({"text_config": [1]}, "text_config"),
    ({"model_type": "siglip"}, "model_type"), ({"logit_bias": 1.0}, "logit_bias"),
    ({"vision_config": {"patch_size": 5}}, "patch_size=5 does not divide image_size=224")])
def test_an_unsupported_field_is_refused_by_name(config, match):
    with pytest.raises(ValueError, match=match) as error:
        CLIP(**config)
    assert "\n" not in str(error.value)


# ---- the objective ----

def test_an_update_lowers_the_loss_it_was_computed_from():
    objective = tiny_objective()
    batch = [(k, k) for k in range(8)]
    trainer = Trainer(objective, TrainConfig(**RECIPE["train"]))
    before = objective.shard(objective.model, 0, batch, 1.0)
    trainer.optimiser.step(1e-4)
    objective.model.zero_grad()
    assert objective.shard(objective.model, 0, batch, 1.0) < before


def test_a_white_patch_starts_as_its_place_alone():
    embeddings = tiny_objective().model.vision.vision_model.embeddings
    white = np.ones((1, 3, 16, 16), np.float32)
    place = embeddings.forward(white)[0, 1:]                          # (N, D)
    assert place.std() < 0.03                                         # as published, 0.02
    assert embeddings.forward(white - 1)[0, 1:].std() > 0.05


def test_a_batch_in_shards_is_refused():
    with pytest.raises(ValueError, match="shards must be 1"):
        tiny_objective(recipe={**RECIPE, "train": {**RECIPE["train"], "shards": 2}})


def test_pictures_with_one_caption_share_the_target_however_it_was_worded():
    """The loss of a batch with a repeated concept is the one with `alike` stated by hand."""
    objective = tiny_objective(12, {**RECIPE, "loss": {"projection_dim": 6, "augment": False}})
    assert LABELS[0] == objective.pictures.records[10]["label"]       # the labels start again
    wake(objective.model)
    batch = [(0, 0), (1, 10), (2, 1)]
    word = lambda step: [captions(objective.pictures.records[i], generator(0, "caption", step, k))
                         for k, i in batch]
    step = next(s for s in range(99) if word(s)[0] != word(s)[1])
    loss = objective.shard(objective.model, step, batch, 1.0)
    alike = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], bool)
    pairs = objective.model.forward(objective.pictures.array([0, 10, 1]),
                                    objective.tokenizer.encode_batch(word(step)))
    t = float(objective.model.logit_scale.value)
    assert loss == pytest.approx(contrastive(*pairs, t, alike)[0], rel=1e-5)
    assert abs(loss - contrastive(*pairs, t)[0]) > 1e-4


def test_the_scale_stays_below_a_hundred():
    objective = tiny_objective()
    objective.model.logit_scale.value[...] = 7.0
    objective.shard(objective.model, 0, [(0, 0), (1, 1)], 1.0)
    assert objective.model.logit_scale.value == np.float32(LARGEST_SCALE)


def test_captions_find_their_pictures_after_a_little_training():
    recipe = {**RECIPE, "train": {**RECIPE["train"], "steps": 120, "warm_up": 10}}
    objective = tiny_objective(recipe=recipe)
    trainer = Trainer(objective, TrainConfig(**recipe["train"]))
    *_, last = train(trainer)
    metrics = objective.metrics(objective.model)
    assert last.loss < 1.0 < np.log(8)
    assert metrics["training caption to picture, at 1"] >= 0.8
    assert metrics["training picture to caption, at 5"] >= 0.9
    sheet = objective.sample_sheet(objective.model, RECIPE["samples"])
    assert sheet.size[1] == 2 * (2 * 16 + 2)                          # a row a prompt


def test_held_out_pictures_are_looked_for_among_all():
    held_out = Pictures(tiny_pictures(4).images[:, ::-1].copy(), tiny_pictures(4).records)
    metrics = tiny_objective(held_out=held_out).metrics(tiny_objective().model)
    assert {name.split()[0] for name in metrics} == {"held-out"}
    assert all(0 <= share <= 1 for share in metrics.values())


def test_the_rank_counts_what_is_as_near_as_the_truth():
    library = unit_vectors(0, (50, 6))
    queries = unit_vectors(1, (7, 6))
    truth = np.arange(7) * 3
    for b, rank in enumerate(match_rank(queries, library, truth)):
        near = library @ queries[b]
        assert rank == sum(near[n] >= near[truth[b]] for n in range(50) if n != truth[b])


# ---- augmentation and use ----

def test_an_augmented_picture_depends_on_nothing_but_its_key():
    x = tiny_pictures(4).array()
    together = augment(x, 3, 5, [0, 1, 2, 3])
    alone = augment(x[2:3], 3, 5, [2])
    np.testing.assert_allclose(together[2], alone[0], atol=1e-6)
    assert np.abs(augment(x, 3, 6, range(4)) - together).max() > 0.1
    assert together.dtype == np.float32 and together.min() >= -1 and together.max() <= 1


def test_augmentation_keeps_white_white_and_colours_near():
    white = np.ones((3, 3, 16, 16), np.float32)
    np.testing.assert_array_equal(augment(white, 0, 0, range(3)), white)
    x = np.full((64, 3, 16, 16), 1, np.float32)
    x[:, 1:, 5:11, 5:11] = -0.6                                       # a red square
    seen = augment(x, 0, 0, range(64))[:, :, 6:10, 6:10].mean(axis=(2, 3))
    assert (seen[:, 0] > 0.9).all() and (seen[:, 1:] < -0.1).all()


def test_without_shift_zoom_and_tint_a_picture_stays_itself(monkeypatch):
    for name in ("SHIFT", "ZOOM", "CONTRAST", "TINT"):
        monkeypatch.setattr(f"tinydiff.datasets.augmentation.{name}", 0.0)
    x = tiny_pictures(4).array()
    np.testing.assert_allclose(augment(x, 0, 0, range(4)), x, atol=1e-6)


def test_pictures_of_any_size_are_encoded():
    clip = tiny_clip(np.float32)
    encoder = ClipEncoder(clip.text, clip.vision, None)
    x = np.random.default_rng(0).uniform(-1, 1, (3, 3, 8, 8)).astype(np.float32)
    e = encoder.encode_image(x)
    np.testing.assert_allclose((e**2).sum(axis=1), 1, rtol=1e-5)
    larger = x.repeat(3, axis=2).repeat(3, axis=3)
    np.testing.assert_allclose(encoder.encode_image(larger), e, atol=1e-5)
    assert encoder.encode_image(np.zeros((1, 3, 13, 13), np.float32)).dtype == np.float32
    with pytest.raises(ValueError, match="projection"):
        ClipEncoder(clip.text, CLIPVision(**SMALL, image_size=8, patch_size=4), None)


def test_resizing_averages_areas_and_draws_lines_between_pixels():
    x = np.random.default_rng(0).normal(size=(1, 2, 6, 6))
    np.testing.assert_allclose(resize(x, 3)[0, 1, 2, 0], x[0, 1, 4:6, 0:2].mean())
    np.testing.assert_allclose(resize(x, 4).mean(axis=(2, 3)), x.mean(axis=(2, 3)))
    ramp = np.broadcast_to(np.arange(6.0), (1, 1, 6, 6))
    np.testing.assert_allclose(resize(ramp, 18)[0, 0, 5, 1:-1], np.arange(16) / 3)
    np.testing.assert_allclose(resize(np.ones((1, 1, 6, 6)), 7), 1)
