"""A model of classes: what it learns is the error of its prediction, and each class is its own."""
import json
import shutil

import numpy as np
import pytest
from gradients import assert_direction
from tiny import (
    same,
    tiny_class_objective,
    tiny_class_pictures,
    tiny_class_pipeline,
    tiny_class_recipe,
    tiny_pictures,
    tiny_pipeline,
    wake,
)

import tinydiff
from tinydiff import models
from tinydiff.backends import normal
from tinydiff.diffusion import q_sample
from tinydiff.guidance import classifier_free
from tinydiff.nn import Module, Tape
from tinydiff.pipelines import ClassToImage, TextToImage
from tinydiff.pipelines.class_to_image import ByClass
from tinydiff.pipelines.denoiser import guided
from tinydiff.recipes import load_recipe
from tinydiff.recipes.class_to_image import ClassToImageObjective, new_denoiser
from tinydiff.targets import target
from tinydiff.train import TrainConfig, Trainer, train

needs_dit = pytest.mark.skipif(not hasattr(models, "DiT"), reason="there is no DiT yet")
RECIPES = ["fashion-unet", pytest.param("fashion-dit", marks=needs_dit)]
each_recipe = pytest.mark.parametrize("recipe", RECIPES)


@pytest.fixture(params=RECIPES, scope="module")
def pipe(request):
    return tiny_class_pipeline(recipe=request.param)


def trainer_of(objective, *settings, **options):
    return Trainer(objective, TrainConfig(**tiny_class_recipe(*settings, **options)["train"]))


def final(pipe, labels, steps=3, **options):
    *_, last = pipe.steps(labels, steps=steps, **options)
    return last.x_s


# ---- recipes ----

@each_recipe
def test_the_recipe_builds_a_model_of_at_most_two_million_parameters(recipe):
    recipe = load_recipe(recipe)
    model = new_denoiser(recipe["denoiser"], 1, recipe["data"]["size"], 10)
    assert 1e6 < model.count() <= 2e6
    assert TrainConfig(**recipe["train"]).steps > 1000


@each_recipe
def test_the_model_and_the_classifier_take_less_than_four_megabytes(recipe):
    recipe, other = load_recipe(recipe), load_recipe("fashion-classifier")
    parts = [new_denoiser(recipe["denoiser"], 1, recipe["data"]["size"], 10),
             models.Classifier(**other["model"])]
    # What a DiT's blocks share stands in the file once for each: Module's own list has it all.
    numbers = sum(np.prod(p.shape) for part in parts for _, p in Module.parameters(part))
    assert 2 * numbers + 0.03e6 < 4e6                                 # float16, and the headers


@pytest.mark.parametrize("settings, words", [
    (["denoiser._class_name=PriorTransformer"], "_class_name='PriorTransformer'"),
    (["denoiser.num_class_embeds=3"], "denoiser.num_class_embeds follows from the data"),
    (["denoiser.time_embedding_type=fourier"], r"\[denoiser\]: UNet config: time_embedding_type"),
    (["denoiser.mid_block_type=UNetMidBlock2DCrossAttn"], "this UNet attends to a text"),
    (["denoiser.class_embed_type=timestep"], "the denoiser knows 0 classes"),
    (["loss.label_dropout=2"], "loss.label_dropout=2 should be a number from 0 to 1"),
    (["samples.prompts=['sneaker']"], "unknown key samples.prompts"),
    (["scheduler.beta_schedule=wavy"], "beta_schedule"),
])
def test_what_is_wrong_in_a_recipe_is_named(settings, words):
    with pytest.raises(ValueError, match=words) as error:
        tiny_class_objective(*settings)
    assert "\n" not in str(error.value)


def test_pictures_without_classes_are_refused():
    with pytest.raises(ValueError, match="captions and no classes"):
        ClassToImageObjective(tiny_class_recipe(), tiny_pictures())
    pictures = tiny_class_pictures()
    for record in pictures.records:
        record["class"] += 1
    with pytest.raises(ValueError, match=r"the classes are \[1, 2, 3\]"):
        ClassToImageObjective(tiny_class_recipe(), pictures)


# ---- an update ----

@each_recipe
def test_the_loss_is_the_error_of_v_over_a_batch(recipe):
    objective = tiny_class_objective(recipe=recipe)
    model, pictures = wake(objective.model), list(enumerate([4, 2, 7]))
    x0 = objective.pictures.array([4, 2, 7])
    level = objective.scheduler.schedule.batch([objective.time(5, k) for k in range(3)], x0)
    eps = normal(x0.shape[1:], 0, "train eps", 5, range(3))
    labels = np.array([objective.label(5, k, i) for k, i in pictures])
    v_hat = model.forward(q_sample(x0, eps, level.signal, level.noise), level.t - 1,
                          class_labels=labels)
    want = ((v_hat - target("v_prediction", x0, eps, level)) ** 2).mean()
    np.testing.assert_allclose(objective.shard(model, 5, pictures, 1.0), want, rtol=1e-5)


@each_recipe
@pytest.mark.parametrize("gamma", [0, 5])
def test_the_gradient_is_that_of_the_loss(recipe, gamma):
    objective = tiny_class_objective(f"loss.min_snr_gamma={gamma}", recipe=recipe)
    model = wake(objective.model)
    for _, p in model.parameters():
        p.value = p.value.astype(np.float64)
    inputs = objective.inputs(model, 1, list(enumerate([0, 1, 2, 3])))
    inputs = [a if a.dtype == np.int64 else a.astype(np.float64) for a in inputs]
    compute = lambda: np.array(objective.compute(model, *inputs, 1.0, Tape()))
    compute()
    gradients = {name: p.grad for name, p in model.parameters()}
    model.zero_grad()
    assert_direction(compute, {name: p.value for name, p in model.parameters()}, np.array(1.0),
                     np.random.default_rng(0), rtol=1e-5, **gradients)


def test_a_share_of_the_labels_is_dropped_and_the_others_are_true():
    objective = tiny_class_objective("loss.label_dropout=0.25")
    for index in (0, 1, 2):
        drawn = [objective.label(step, k, index) for step in range(100) for k in range(4)]
        assert 0.19 < drawn.count(3) / 400 < 0.31 and set(drawn) == {index, 3}
    objective = tiny_class_objective("loss.label_dropout=0")
    assert {objective.label(step, 0, 1) for step in range(50)} == {1}


def test_the_levels_of_a_batch_are_spread_evenly():
    objective = tiny_class_objective("train.batch_size=20")
    for step in range(5):
        assert sorted(objective.time(step, k) for k in range(20)) == list(range(1, 21))


@each_recipe
def test_the_loss_goes_down_on_three_pictures(recipe):
    settings = ("train.steps=60", "train.lr=0.02", "loss.label_dropout=0")
    objective = tiny_class_objective(*settings, recipe=recipe, count=3)
    asked = [(k, k % 3) for k in range(12)]
    before = objective.shard(objective.model, 1000, asked, 0.0)
    list(train(trainer_of(objective, *settings, recipe=recipe)))
    assert objective.shard(objective.model, 1000, asked, 0.0) < 0.7 * before


def test_a_run_that_stops_half_way_goes_on_to_the_same_bits():
    whole, half, rest = (trainer_of(tiny_class_objective()) for _ in range(3))
    list(train(whole))
    next(train(half))
    arrays, step = half.state()
    rest.load_state({name: a.copy() for name, a in arrays.items()}, step)
    list(train(rest))
    assert same(rest.state()[0], whole.state()[0])


def test_a_further_leg_starts_from_the_weights_it_is_given(pipe):
    recipe = "fashion-dit" if pipe.part == "transformer" else "fashion-unet"
    further = tiny_class_objective("train.seed=9", recipe=recipe, init=pipe)
    assert same(further.model.state(), pipe.denoiser.state())


def test_a_sample_sheet_has_a_column_a_class(pipe):
    recipe = "fashion-dit" if pipe.part == "transformer" else "fashion-unet"
    objective = tiny_class_objective(recipe=recipe)
    image = objective.sample_sheet(objective.model, {"steps": 1, "guidance": 2.0, "count": 2})
    assert image.size == (2 * (3 * 10 - 2), 2 * (2 * 10 - 2))


# ---- guidance ----

@pytest.mark.parametrize("w", [-1.0, 0, 0.5, 1, 4.0])
def test_guidance_is_its_formula_for_every_weight(pipe, w):
    x_t, asked = normal((1, 8, 8), 0, "test", pictures=range(2)), []
    network = pipe.denoiser
    labels, null = np.array([2, 0]), np.array([3, 3])

    class Spy(ByClass):
        def forward(self, x, *rest):
            asked.append(len(x))
            return super().forward(x, *rest)

    got = guided(Spy(network), (labels,), (null,), w)(x_t, 7)
    by_label, by_null = (network.forward(x_t, 7, class_labels=told) for told in (labels, null))
    np.testing.assert_allclose(got, classifier_free(by_null, by_label, w), rtol=0, atol=1e-4)
    assert asked == ([2] if w in (0, 1) else [4]) and np.abs(by_label - by_null).max() > 1e-2


def test_the_class_matters_only_with_guidance(pipe):
    ignoring, following = ([final(pipe, name, guidance=w) for name in ("trouser", "pullover")]
                           for w in (0, 2.0))
    np.testing.assert_array_equal(*ignoring)
    assert np.abs(following[0] - following[1]).max() > 0.01


def test_without_guidance_the_denoiser_is_told_the_null_class(pipe):
    x_t, level = normal((1, 8, 8), 0, "test", pictures=range(2)), pipe.scheduler.schedule.level(9)
    for w, told in ((0, [3, 3]), (1, [2, 0])):
        v_hat = pipe.denoiser.forward(x_t, 8.0, class_labels=np.array(told))
        x0_hat, _ = pipe.denoise(np.array([2, 0]), guidance=w)(x_t, level)
        np.testing.assert_allclose(x0_hat, level.signal * x_t - level.noise * v_hat, rtol=1e-3,
                                   atol=1e-3)


def test_an_interval_that_is_everything_or_nothing(pipe):
    guided_everywhere, followed = (final(pipe, [0, 1], guidance=w) for w in (3.0, 1.0))
    np.testing.assert_array_equal(
        final(pipe, [0, 1], guidance=3.0, interval=(0, np.inf)), guided_everywhere)
    np.testing.assert_allclose(
        final(pipe, [0, 1], guidance=3.0, interval=(1e8, 1e9)), followed, atol=1e-5)


def test_half_the_output_is_for_the_variance_and_is_left_out():
    class Learned:
        def forward(self, x, timestep, class_labels):
            return np.concatenate([x, 7 + x], axis=1)

    x = np.ones((2, 1, 4, 4), np.float32)
    np.testing.assert_array_equal(ByClass(Learned()).forward(x, 3, np.array([0, 1])), x)


# ---- sampling ----

@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"sampler": "ddpm"}])
def test_picture_k_is_the_same_to_rounding_alone_and_in_a_batch(pipe, options):
    batch = final(pipe, [0, 1, 2], seed=5, **options)
    alone = final(pipe, [2], pictures=[2], seed=5, **options)
    np.testing.assert_allclose(batch[2:], alone, atol=1e-4)
    assert np.abs(batch[0] - final(pipe, [0], seed=6, **options)[0]).max() > 0.1


def test_a_class_is_asked_for_by_name_or_by_number(pipe):
    want = pipe(["trouser", "t-shirt"], steps=2)
    for labels in ([1, 0], np.array([1, 0]), (" Trouser ", 0)):
        got = pipe(labels, steps=2)
        assert [a.tobytes() for a in got] == [b.tobytes() for b in want]
    assert pipe("trouser", steps=2).tobytes() == want[0].tobytes()
    assert pipe(1, steps=2).size == (8, 8) and len(pipe(1, count=2, steps=1)) == 2


def test_a_published_name_holds_several():
    pipe = tiny_class_pipeline()
    pipe = ClassToImage(pipe.denoiser, pipe.scheduler,
                        {"0": "tench, Tinca tinca", "1": "b", "2": "c"})
    names = ["tinca tinca", "Tench", "tench, Tinca tinca", "c"]
    assert pipe.numbers(names).tolist() == [0, 0, 0, 2]


@pytest.mark.parametrize("labels, options, words", [
    ("sofa", {}, "unknown class 'sofa'; this model draws t-shirt, trouser, pullover"),
    (["trouser", ""], {}, "unknown class ''"),
    (3, {}, "unknown class 3"),                                       # the null class is no class
    (-1, {}, "unknown class -1"),
    (1.5, {}, "unknown class 1.5"),
    ([[0]], {}, r"unknown class \[0\]"),
    ([], {}, "no class is asked for"),
    ("trouser", {"count": 0}, "count=0"),
    ([0, 1], {"count": 2}, "count is for a single class"),
    (0, {"guidance": np.nan}, "guidance weight nan"),
    (0, {"steps": 0}, "steps=0"),
    (0, {"sampler": "plms"}, "unknown sampler 'plms'"),
    (0, {"pictures": [1, 2]}, "2 picture numbers for 1 classes"),
    (0, {"churn": 3}, "has no option 'churn'"),
])
def test_what_cannot_be_drawn_is_named(pipe, labels, options, words):
    with pytest.raises(ValueError, match=words) as error:
        pipe.steps(labels, **{"steps": 2, **options})
    assert "\n" not in str(error.value)


# ---- the folder ----

def test_a_model_comes_back_from_its_folder_to_the_bit(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model", "float32")
    assert sorted(p.name for p in (tmp_path / "model").iterdir()) == sorted(
        ["model_index.json", "scheduler", pipe.part])
    index = json.loads((tmp_path / "model" / "model_index.json").read_text(encoding="utf-8"))
    assert index["id2label"] == {"0": "t-shirt", "1": "trouser", "2": "pullover"}
    assert index[pipe.part][1] == pipe.denoiser.config_header["_class_name"]
    again = tinydiff.load(tmp_path / "model")
    assert isinstance(again, ClassToImage) and again.id2label == pipe.id2label
    assert same(again.denoiser.state(), pipe.denoiser.state())
    np.testing.assert_array_equal(final(again, [0, 1, 2]), final(pipe, [0, 1, 2]))
    pipe.save_pretrained(tmp_path / "model")                          # over itself, as float16
    rounded, exact = final(tinydiff.load(tmp_path / "model"), 0), final(pipe, 0)
    assert 0 < np.abs(rounded - exact).max() < 0.02 * np.abs(exact).max()


@pytest.mark.parametrize("damage, words", [
    (lambda index: index.update(_class_name="DiTPipeline", vae=["diffusers", "AutoencoderKL"]),
     "vae is not supported; a class-to-image model has unet, scheduler"),
    (lambda index: index.pop("unet"), "unet is missing"),
    (lambda index: index.pop("id2label"), "id2label should name each class"),
    (lambda index: index.update(id2label=["a", "b", "c"]), "id2label should name each class"),
    (lambda index: index.update(id2label={"a": "dress"}), "id2label should name each class"),
    (lambda index: index["id2label"].pop("1"), "from 0 on, without gaps"),
    (lambda index: index["id2label"].update({"3": "sofa"}), "knows 4 classes.*names 4, so 5"),
])
def test_a_damaged_index_is_named(tmp_path, damage, words):
    tiny_class_pipeline().save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model_index.json"
    index = json.loads(path.read_text(encoding="utf-8"))
    damage(index)
    path.write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(ValueError, match=words) as error:
        tinydiff.load(tmp_path / "model")
    assert "\n" not in str(error.value) and str(tmp_path / "model") in str(error.value)


def test_a_folder_that_lacks_a_part_or_holds_something_else(tmp_path):
    pipe = tiny_class_pipeline()
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"also holds notes\.txt"):
        pipe.save_pretrained(tmp_path / "model")
    shutil.rmtree(tmp_path / "model" / "unet")
    with pytest.raises(FileNotFoundError, match="unet: no such folder"):
        tinydiff.load(tmp_path / "model")


def test_a_model_of_the_other_kind_is_refused_where_one_is_needed(tmp_path):
    for model, kind, words in ((tiny_class_pipeline(), TextToImage, "is a model of classes"),
                               (tiny_pipeline(), ClassToImage, "is a model of prompts")):
        folder = tmp_path / kind.__name__
        model.save_pretrained(folder)
        assert type(tinydiff.load(folder)) is type(model)
        with pytest.raises(ValueError, match=words):
            tinydiff.load(folder, kind)
