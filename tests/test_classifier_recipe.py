"""A classifier learns from clean and noisy pictures alike, and says how often it is right."""
import numpy as np
import pytest
from gradients import assert_direction
from tiny import (
    same,
    tiny_class_pictures,
    tiny_class_recipe,
    tiny_classifier_objective,
    tiny_pictures,
    wake,
)

from tinydiff.backends import normal
from tinydiff.cross_entropy import cross_entropy
from tinydiff.diffusion import q_sample
from tinydiff.models import Classifier
from tinydiff.nn import Tape
from tinydiff.recipes import load_recipe
from tinydiff.recipes.classifier import ClassifierObjective
from tinydiff.train import TrainConfig, Trainer, train


def trainer_of(objective, *settings):
    recipe = tiny_class_recipe(*settings, recipe="fashion-classifier")
    return Trainer(objective, TrainConfig(**recipe["train"]))


def test_the_recipe_s_classifier_has_128_features_in_under_a_megabyte():
    recipe = load_recipe("fashion-classifier")
    model = Classifier(**recipe["model"])
    assert model.config["block_out_channels"][-1] >= 128 and 2 * model.count() < 1.2e6
    assert TrainConfig(**recipe["train"]).steps > 100


def test_the_loss_is_the_cross_entropy_of_noisy_pictures_told_their_level():
    objective = tiny_classifier_objective("loss.augment=false")
    model, pictures = wake(objective.model), list(enumerate([4, 2, 7, 0]))
    rows = [objective.time(3, k) for k in range(4)]
    assert 0 in rows and max(rows) > 0                                # clean ones, and noisy ones
    x0 = objective.pictures.array([4, 2, 7, 0])
    level = objective.scheduler.schedule.batch(rows, x0)
    eps = normal(x0.shape[1:], 0, "train eps", 3, range(4))
    logits, _ = model.forward(q_sample(x0, eps, level.signal, level.noise), level.t - 1)
    want, _ = cross_entropy(logits, np.array([4 % 3, 2, 7 % 3, 0]))
    np.testing.assert_allclose(objective.shard(model, 3, pictures, 1.0), want, rtol=1e-5)


def test_the_gradient_is_that_of_the_loss():
    objective = tiny_classifier_objective()
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


def test_a_share_of_the_pictures_is_noisy_at_every_level():
    for share in (0, 0.3, 1):
        objective = tiny_classifier_objective(f"loss.noisy={share}")
        rows = np.array([objective.time(step, k) for step in range(200) for k in range(4)])
        assert abs((rows > 0).mean() - share) < 0.05
        assert share == 0 or set(rows[rows > 0]) == set(range(1, 21))


def test_pictures_are_moved_and_mirrored_only_if_asked_for():
    objectives = [tiny_classifier_objective(f"loss.augment={flag}", size=28)
                  for flag in ("true", "false")]
    moved, still = (o.inputs(o.model, 0, [(0, 5), (1, 5)])[0] for o in objectives)
    original = tiny_class_pictures(size=28).array([5, 5])
    np.testing.assert_array_equal(still, original)
    assert (moved != original).any() and moved.shape == original.shape


def test_it_learns_to_tell_three_classes_and_is_the_same_run_twice():
    settings = ("train.steps=40", "train.lr=0.02", "train.batch_size=12", "train.ema_decay=0.8",
                "loss.noisy=0.2", "loss.augment=false")
    trainers = [trainer_of(tiny_classifier_objective(*settings), *settings) for _ in range(2)]
    for trainer in trainers:
        list(train(trainer))
    assert same(trainers[0].state()[0], trainers[1].state()[0])
    assert trainers[0].objective.metrics(trainers[0].ema.model)["accuracy"] > 0.8     # chance: 1/3


def test_the_accuracy_is_that_of_held_out_pictures():
    held_out = tiny_class_pictures(count=9)
    objective = tiny_classifier_objective(held_out=held_out)
    model = wake(objective.model)
    answers = model.forward(held_out.array(), -1).logits.argmax(axis=1)
    right = np.arange(9) % 3
    assert objective.metrics(model) == {"accuracy": float((answers == right).mean())}
    image = objective.sample_sheet(model, {"every": 1, "count": 4})
    assert image.size == (2 * (4 * 10 - 2), 2 * 8)


def test_what_is_saved_comes_back(tmp_path):
    objective = tiny_classifier_objective()
    objective.pipeline(wake(objective.model)).save_pretrained(tmp_path / "model")
    again = Classifier.from_pretrained(tmp_path / "model")
    assert same(again.state(), objective.model.state())
    assert again.config["num_classes"] == 3 and again.config["in_channels"] == 1


@pytest.mark.parametrize("settings, words", [
    (["model.act_fn=tanh"], r"\[model\]: Classifier config: act_fn"),
    (["model.num_classes=10"], "model.num_classes follows from the data"),
    (["loss.noisy=2"], "loss.noisy=2 should be a number from 0 to 1"),
])
def test_what_is_wrong_in_a_recipe_is_named(settings, words):
    with pytest.raises(ValueError, match=words) as error:
        tiny_classifier_objective(*settings)
    assert "\n" not in str(error.value)


def test_pictures_without_classes_are_refused():
    with pytest.raises(ValueError, match="captions and no classes"):
        ClassifierObjective(tiny_class_recipe(recipe="fashion-classifier"), tiny_pictures())
