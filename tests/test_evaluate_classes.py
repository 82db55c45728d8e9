"""A painter of real pictures is as far from real ones as they are, and every other one further."""
from types import SimpleNamespace

import numpy as np
import pytest
from tiny import tiny_class_pictures, tiny_class_pipeline

from tinydiff import evaluate_classes as module
from tinydiff.backends import normal
from tinydiff.backends.random import generator
from tinydiff.diffusion import Step
from tinydiff.evaluate import Setting
from tinydiff.evaluate_classes import Walk, evaluate_classes, sweep
from tinydiff.likelihood import bound
from tinydiff.metrics import frechet_distance, kernel_distance

KERNEL, FRECHET, READ = "kernel distance", "Fréchet distance", "read as the class asked for"
SETTING = Setting(3, 1.0)


class Reader:
    """A classifier that is always right: a class's bar is one pixel thicker than the last's."""

    config = {"num_classes": 3}

    def like(self):
        return np.zeros(1, np.float32)

    def forward(self, x, timestep):
        assert timestep == -1                                         # clean
        rows = x[:, 0, :, 4]                                          # (B, 8), across the bar
        thick = (rows > 0).sum(axis=1) - 1
        return SimpleNamespace(features=rows, logits=(thick[:, None] == np.arange(3)) * 1.0)


class Painter:
    """A pipeline that paints real pictures of the classes asked for, or what `paint` makes."""

    size = 8

    def __init__(self, paint=lambda x: x):
        self.library = tiny_class_pictures(300)
        self.classes = np.array([r["class"] for r in self.library.records])
        self.paint = paint
        self.asked = []

    def steps(self, labels, *, pictures, seed, sampler, steps, guidance):
        self.asked += [(sampler, steps, k, label) for k, label in zip(pictures, labels.tolist(),
                                                                      strict=True)]
        rng = np.random.default_rng(seed)
        chosen = [rng.choice(np.flatnonzero(self.classes == label)) for label in labels]
        yield Step(None, None, None, None, None, self.paint(self.library.array(chosen)))


def values(painter, walks=None, count=40, **options):
    """Return ``{(metric, of): row}``, and what was drawn."""
    walks = walks or [Walk("ddim", SETTING, count)]
    rows, samples = evaluate_classes(painter, Reader(), tiny_class_pictures(120), walks, bits=0,
                                     batch=16, **options)
    return {(row.metric, row.of): row for row in rows}, samples


def test_a_painter_of_real_pictures_is_near_the_floor():
    rows, samples = values(Painter())
    kernel, frechet, read = (rows[name, "ddim"] for name in (KERNEL, FRECHET, READ))
    assert read.value == read.real == 1
    assert kernel.margin > 0 and abs(kernel.value) < 2 * kernel.margin
    assert frechet.value < 3 * frechet.real and frechet.margin is None
    assert all(row.n == 40 and row.setting == SETTING for row in (kernel, frechet, read))
    (x,) = samples.values()
    assert x.shape == (40, 1, 8, 8)


@pytest.mark.parametrize("paint, seen", [
    (lambda x: np.full_like(x, -1), {KERNEL, FRECHET, READ}),         # nothing
    (lambda x: np.repeat(x[:1], len(x), axis=0), {KERNEL, FRECHET, READ}),     # always the same
    (lambda x: x[:, :, :, ::-1], set()),                              # mirrored: a bar is a bar
    (lambda x: np.maximum(x, -0.5), {KERNEL, FRECHET}),               # grey instead of black
])
def test_a_painter_s_faults_are_seen(paint, seen):
    rows, _ = values(Painter(paint), count=60)
    kernel, frechet, read = (rows[name, "ddim"] for name in (KERNEL, FRECHET, READ))
    found = {KERNEL} if kernel.value > 2 * kernel.margin else set()
    found |= {FRECHET} if frechet.value > 5 * frechet.real else set()
    assert found | ({READ} if read.value < 0.9 else set()) == seen


def test_the_floor_is_real_against_real_at_the_same_n():
    walks = [Walk("ddim", SETTING, 40), Walk("ddpm", Setting(5, 1.0), 10)]
    rows, samples = values(Painter(), walks)
    assert [len(x) for x in samples.values()] == [40, 10]
    for n, of in ((40, "ddim"), (10, "ddpm, n = 10")):
        floor = rows[KERNEL, f"real pictures, n = {n}"]
        assert floor.n == rows[KERNEL, of].n == n
        assert rows[KERNEL, of].real == floor.value and floor.margin > 0
        assert rows[FRECHET, of].real == rows[FRECHET, f"real pictures, n = {n}"].value
        order = generator(0, "evaluate classes").permutation(120)     # 40 asked for, 40 others
        ours, others = (tiny_class_pictures(120).array(order[k:k + n])[:, 0, :, 4] for k in (0, 40))
        assert floor.value == kernel_distance(ours, others).value


def test_what_is_drawn_has_the_classes_of_real_pictures_and_each_its_own_noise():
    painter = Painter()
    walks = [Walk("ddim", SETTING, 40), Walk("unipc", SETTING, 40)]
    values(painter, walks)
    first, second = ([(k, label) for name, _, k, label in painter.asked if name == sampler]
                     for sampler in ("ddim", "unipc"))
    assert first == second and [k for k, _ in first] == list(range(40))
    assert {label for _, label in first} == {0, 1, 2}


def test_distances_are_those_of_the_features_of_eight_bit_pictures():
    painter = Painter(lambda x: 0.9973 * x)
    rows, samples = values(painter)
    (x,) = samples.values()
    steps = (x + 1) * 127.5
    np.testing.assert_allclose(steps, steps.round(), atol=1e-3)
    features, real = x[:, 0, :, 4], tiny_class_pictures(120)
    order = generator(0, "evaluate classes").permutation(120)
    others = real.array(order[40:80])[:, 0, :, 4]
    assert rows[FRECHET, "ddim"].value == frechet_distance(features, others)
    assert rows[KERNEL, "ddim"].value == kernel_distance(features, others).value


def test_the_seed_chooses_the_pictures():
    a, b, c = (values(Painter(), seed=seed)[0][FRECHET, "ddim"].real for seed in (0, 0, 1))
    assert a == b != c


def test_bits_per_dimension_are_the_bound_of_the_model_told_the_class():
    pipe, real = tiny_class_pipeline(), tiny_class_pictures(20)
    rows, _ = evaluate_classes(pipe, Reader(), real, [Walk("ddim", SETTING, 3)], bits=5, batch=2)
    row = rows[-1]
    assert row.metric == "bits per dimension, at most" and row.n == 5 and row.margin > 0
    chosen = generator(0, "evaluate classes").permutation(20)[:5]
    classes = np.array([real.records[i]["class"] for i in chosen])
    want = bound(pipe.denoise(classes), real.array(chosen), pipe.scheduler.levels(20),
                 lambda k: normal((1, 8, 8), 0, "bound", k, chosen)).total
    assert row.value == pytest.approx(want.mean(), rel=1e-4)


def test_most_pictures_are_asked_a_few_steps_drawn_for_them(monkeypatch):
    """Over four draws the figure is that of all steps, within the margin of four."""
    pipe, real, asked = tiny_class_pipeline(), tiny_class_pictures(120), []
    for name, value in (("WHOLE", 10), ("TERMS", 4), ("PIECE", 5)):
        monkeypatch.setattr(module, name, value)
    spied = lambda *args, **own: asked.append(len(own["chosen"] or [])) or bound(*args, **own)
    monkeypatch.setattr(module, "bound", spied)
    errors, margins = [], []
    for seed in range(4):
        *_, row = evaluate_classes(pipe, Reader(), real, [Walk("ddim", SETTING, 3)], bits=120,
                                   batch=5, seed=seed)[0]
        chosen = generator(seed, "evaluate classes").permutation(120)
        classes = np.array([real.records[i]["class"] for i in chosen])
        noise = lambda k, seed=seed, chosen=chosen: normal((1, 8, 8), seed, "bound", k, chosen)
        want = bound(pipe.denoise(classes), real.array(chosen), pipe.scheduler.levels(20), noise)
        errors.append(row.value - want.total.mean())
        margins.append(row.margin)
    assert asked == ([0, 0] + [4] * 22) * 4 and row.n == 120
    assert 0 < abs(np.mean(errors)) < np.mean(margins) / 2
    assert np.mean(margins) < 0.03 * want.total.mean()


def test_the_benchmark_is_five_samplers_by_four_steps_and_a_thousand_steps():
    walks = sweep(1.0, 40)
    assert len(walks) == 21 and walks[-1] == Walk("ddpm", Setting(1000, 1.0), 10)
    assert {walk.sampler for walk in walks} == {"ddpm", "ddim", "dpmpp_2m", "unipc", "heun"}
    rows, _ = values(Painter(), walks)
    assert rows[KERNEL, "heun, 2 N - 1 calls"].setting.steps == 50    # the last of its line
    assert rows[KERNEL, "ddpm, n = 10"].setting.steps == 1000


def test_progress_is_told_of_every_batch():
    seen = []
    values(Painter(), count=40, progress=lambda work: seen.extend(work) or work)
    assert [k for _, k in seen] == [0, 16, 32]


def test_what_cannot_be_compared_is_refused_in_one_line():
    with pytest.raises(ValueError, match="61 pictures to draw: at most 60"):
        values(Painter(), count=61)
    reader = Reader()
    reader.config = {"num_classes": 10}
    with pytest.raises(ValueError, match="tells num_classes=10 apart, the pictures have 3"):
        evaluate_classes(Painter(), reader, tiny_class_pictures(9), [Walk("ddim", SETTING, 3)])
