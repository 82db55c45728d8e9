"""An evaluation of a perfect painter is perfect, and every mistake of a painter is counted."""
import numpy as np
import pytest
from tiny import tiny_latent_pipeline

from tinydiff.commands.evaluate import table
from tinydiff.datasets import Pictures, caption, load_emoji
from tinydiff.diffusion import Step
from tinydiff.evaluate import NEW, NEW_COLOURS, SHAPES, TRAINING, Row, Setting, evaluate

SETTING = Setting(20, 2.0)
HELD_OUT = "held out: "


def small_pack():
    """Return 300 pictures of the Noto style at 16 pixels: hearts, shapes, and any others."""
    pictures = load_emoji(16, "noto", split="all")
    first = [i for i, r in enumerate(pictures.records)
             if any(word in r["label"].split() for word in ("heart", *SHAPES))]
    chosen = sorted({*first, *range(0, len(pictures), 7)})
    return Pictures(pictures.images[chosen], [pictures.records[i] for i in chosen])


class Painter:
    """A pipeline that paints the true picture, or what `paint(prompt)` gives instead."""

    vae = image_encoder = None
    size = 16

    def __init__(self, library, paint=None):
        self.pictures = dict(zip(map(caption, library.records), library.array(), strict=True))
        self.paint = paint or self.truth
        self.seen = []

    def truth(self, prompt):
        return self.pictures[prompt] if prompt in self.pictures else self.never_seen(prompt)

    def never_seen(self, prompt):
        """Paint the right shape in the mean colour of the right heart."""
        colour, _, shape = prompt.removesuffix(", noto style").rpartition(" ")
        heart, red = (self.pictures[f"{what}, noto style"] for what in
                      (f"{colour} heart", f"red {shape}"))
        inside = (np.abs(red - 1) > 0.15).any(axis=0)
        ink = heart[:, (np.abs(heart - 1) > 0.15).any(axis=0)].mean(axis=1)
        return np.where(inside, ink[:, None, None], 1).astype(np.float32)

    def decode(self, x):
        return x

    def steps(self, prompts, *, pictures, **options):
        self.seen += [*pictures]
        x = np.stack([self.paint(p) for p in prompts])
        yield Step(None, None, None, None, None, x)


@pytest.fixture(scope="module")
def library():
    return small_pack()


def values(painter, library, **options):
    """Return ``{(metric, of): row}``, and what was drawn."""
    rows, samples = evaluate(painter, [SETTING], library=library, batch=16, **options)
    assert all(row.setting == SETTING for row in rows)
    return {(row.metric, row.of): row for row in rows}, samples[SETTING]


# ---- retrieval ----

def test_a_perfect_painter_is_found_every_time(library):
    painter = Painter(library)
    rows, samples = values(painter, library, count=40)
    kinds = {TRAINING, HELD_OUT + "colour x shape", HELD_OUT + "role x gender x tone",
             HELD_OUT + "style x concept"}
    for k in (1, 5):
        found = {of: r for (metric, of), r in rows.items()
                 if metric == f"picture found by pixels, at {k}"}
        assert found.keys() == kinds and all(r.value == 1 for r in found.values())
        assert found[TRAINING].n == 40 and found[TRAINING].among == len(library)
    assert len(samples[TRAINING]) == 40 and samples[NEW].shape == (48, 3, 16, 16)
    assert len(set(painter.seen)) == len(painter.seen)                # each picture its own noise


def test_a_painter_of_one_picture_is_found_once_at_most(library):
    painter = Painter(library, lambda prompt: painter.pictures["red heart, noto style"])
    rows, _ = values(painter, library, count=40)
    assert rows["picture found by pixels, at 1", TRAINING].value <= 1 / 40
    assert rows["picture found by pixels, at 5", TRAINING].value <= 5 / 40


def test_the_seed_chooses_the_captions(library):
    a, b, c = (values(Painter(library), library, count=10, seed=s)[1][TRAINING] for s in (0, 0, 1))
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_a_copy_from_another_style_scores_what_real_pictures_in_its_place_do():
    everything = load_emoji(16, split="all")
    concepts = [r["label"] for r in everything.records if r["held_out"] == "style x concept"][:50]
    kept = [i for i, r in enumerate(everything.records) if r["label"] in concepts]
    library = Pictures(everything.images[kept], [everything.records[i] for i in kept])
    x = library.array()

    def copy(prompt):
        own = next(i for i, r in enumerate(library.records) if caption(r) == prompt)
        others = [i for i, r in enumerate(library.records) if i != own and not r["held_out"]
                  and r["label"] == library.records[own]["label"]]
        return min(x[others], key=lambda other: ((other - x[own]) ** 2).sum())

    rows, _ = values(Painter(library, copy), library, count=25)
    for k in (1, 5):
        row = rows[f"picture found by pixels, at {k}", HELD_OUT + "style x concept"]
        assert row.value == row.real < 1 and row.n == 25


def test_where_a_concept_was_seen_in_no_other_style_there_is_nothing_to_copy(library):
    rows, _ = values(Painter(library), library, count=4)
    assert rows["picture found by pixels, at 1", HELD_OUT + "colour x shape"].real is None


# ---- copies ----

def test_copies_of_training_pictures_are_counted_beside_those_that_real_pictures_are(library):
    copied = library.array(next(i for i, r in enumerate(library.records) if not r["held_out"]))
    rows, _ = values(Painter(library, lambda prompt: copied * 0.99), library, count=40)
    row = rows["copies of training pictures", HELD_OUT + "colour x shape"]
    assert row.value == 1 and row.n == 3 and row.real < 1
    rows, _ = values(Painter(library), library, count=40)
    row = rows["copies of training pictures", HELD_OUT + "style x concept"]
    assert row.value == row.real == 0


# ---- colours and shapes ----

def test_a_painter_that_composes_gets_colours_and_shapes_right(library):
    rows, _ = values(Painter(library), library, count=4)
    assert rows["both", NEW].value == 1 and rows["both", NEW].n == 48
    assert rows["shape, overlap", NEW].value > 0.95
    assert rows["colour, CIELAB distance", NEW].value < 5


def red_instead(prompt):
    for colour in NEW_COLOURS:
        prompt = prompt.replace(colour, "red")
    return prompt


@pytest.mark.parametrize("instead, colour, shape", [
    (lambda prompt: prompt.replace("circle", "heart").replace("square", "heart"), 1, 0),
    (red_instead, 0, 1),
])
def test_the_right_colour_in_another_shape_is_half_right(library, instead, colour, shape):
    painter = Painter(library)
    painter.paint = lambda prompt: painter.truth(instead(prompt))
    rows, _ = values(painter, library, count=4)
    assert rows["colour within 20", NEW].value == colour
    assert rows["shape above 0.9", NEW].value == shape
    assert rows["both", NEW].value == 0


def test_the_colours_that_are_asked_for_exist_in_hearts_and_in_no_other_shape():
    labels = {r["label"] for r in load_emoji(16, "noto", split="all").records}
    for colour in NEW_COLOURS:
        assert f"{colour} heart" in labels
        assert not any(label.startswith(colour) and any(s in label for s in SHAPES)
                       for label in labels)


# ---- a latent model, with its autoencoder and its CLIP ----

@pytest.fixture(scope="module")
def latent(library):
    pipe = tiny_latent_pipeline()
    return evaluate(pipe, [Setting(1, 1.0), Setting(2, 1.0)], count=6, library=library)[0]


def test_a_latent_model_is_measured_by_its_own_clip_and_autoencoder_too(latent, library):
    _, psnr, *rest = latent
    assert psnr.metric == "reconstruction PSNR, dB, of all pixels" and psnr.setting is None
    assert psnr.n == sum(bool(r["held_out"]) for r in library.records)
    metrics = {row.metric for row in rest}
    assert metrics >= {"picture found by CLIP, at 1", "caption found by CLIP, at 5",
                       "Fréchet distance, CLIP", "kernel distance, CLIP"}
    assert {row.setting for row in rest} == {Setting(1, 1.0), Setting(2, 1.0)}
    assert all(np.isfinite(row.value) for row in latent)


def test_every_distance_has_its_n_and_its_floor(latent):
    for row in latent:
        if "distance, CLIP" in row.metric:
            assert row.n == 6 and row.real is not None
            assert (row.margin is not None) == ("kernel" in row.metric)
        if "caption found" in row.metric:
            assert 0 <= row.real <= 1


def test_a_painter_of_real_pictures_is_as_far_as_real_pictures_are(library):
    pipe = tiny_latent_pipeline()
    painter = Painter(library)
    painter.image_encoder, painter.text_encoder = pipe.image_encoder, pipe.text_encoder
    painter.tokenizer = pipe.tokenizer
    rows, _ = values(painter, library, count=20)
    for metric in ("Fréchet distance, CLIP", "kernel distance, CLIP"):
        row = rows[metric, TRAINING]
        np.testing.assert_allclose(row.value, row.real, rtol=1e-3, atol=1e-6)
    row = rows["caption found by CLIP, at 5", TRAINING]
    assert row.value == row.real


def test_ones_own_pictures_have_nothing_held_out(library):
    own = Pictures(library.images[:12], [{"label": f"thing {k}", "style": "", "tags": [],
                                          "held_out": None} for k in range(12)])
    rows, samples = values(Painter(own), own, count=5)
    assert {of for _, of in rows} == {TRAINING} and list(samples) == [TRAINING]


# ---- the table ----

def test_the_table_has_a_line_a_metric_and_a_column_a_setting():
    settings = [Setting(5, 2.0), Setting(20, 2.0)]
    text = table([Row("PSNR", "held-out pictures", None, 30.123, 9),
                  Row("kernel", "all", settings[0], 0.01234, 8, margin=0.002, real=0.001),
                  Row("kernel", "all", settings[1], 0.5, 8, margin=0.002, real=0.001)], settings)
    head, line, psnr, kernel = text.splitlines()
    assert head.count("|") == line.count("|") == psnr.count("|") == 8
    assert "5 steps, w = 2" in head and "20 steps, w = 2" in head
    assert psnr.split("|")[6].strip() == psnr.split("|")[7].strip() == "30.1"
    assert kernel.split("|")[5].strip() == "0.001"
    assert kernel.split("|")[6].strip() == "0.0123 ± 0.002"
