"""Training is a function of its recipe: the same bits, whatever the threads."""
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits
from tiny import same, tiny_objective, tiny_pictures, tiny_recipe, tiny_trainer, wake
from two_threads import on_one_and_two_threads

from tinydiff.backends.table import obstacle, use
from tinydiff.pipelines import TextToImage
from tinydiff.recipes.text_to_image import TextToImageObjective, new_pipeline
from tinydiff.train import TrainConfig, Trainer, TrainStep, train

needs_numba = pytest.mark.skipif(obstacle() is not None, reason=str(obstacle()))


def trained(*settings, **options):
    """Train to the end; return the trainer and its steps."""
    trainer = tiny_trainer(*settings, **options)
    return trainer, list(train(trainer))


def losses(steps):
    return [step.loss for step in steps]


# ---- reproducible ----

def test_two_runs_of_a_seed_are_equal_bit_for_bit():
    (a, steps_a), (b, steps_b) = trained(), trained()
    assert same(a.state()[0], b.state()[0])
    assert [s[:4] for s in steps_a] == [s[:4] for s in steps_b]       # all but the seconds


def test_another_seed_is_another_run():
    (a, _), (b, _) = trained(), trained("train.seed=1")
    assert not same(a.state()[0], b.state()[0])


def test_a_state_taken_half_way_goes_on_to_the_same_end():
    full, steps = trained("train.steps=5")
    half = tiny_trainer("train.steps=5")
    first = [step for _, step in zip(range(2), train(half), strict=False)]
    arrays, step = half.state()
    arrays = {n: a.copy() for n, a in arrays.items()}
    assert step == 2
    rest = tiny_trainer("train.steps=5")
    rest.load_state(arrays, step)
    second = list(train(rest))
    assert [s[:4] for s in first + second] == [s[:4] for s in steps]
    assert same(rest.state()[0], full.state()[0]) and rest.step == 5


def test_a_trainer_that_goes_back_to_an_earlier_state_takes_the_same_way_again():
    trainer = tiny_trainer("train.steps=4")
    next(train(trainer))
    arrays, step = trainer.state()
    arrays = {n: a.copy() for n, a in arrays.items()}
    first, end = list(train(trainer)), {n: a.copy() for n, a in trainer.state()[0].items()}
    trainer.load_state(arrays, step)
    again = list(train(trainer))
    assert [s[:4] for s in again] == [s[:4] for s in first]
    assert same(trainer.state()[0], end)


def test_gradients_of_an_interrupted_update_are_not_in_the_next():
    trainer, whole = tiny_trainer(), trained()[0]
    shard, calls = trainer.objective.shard, []

    def interrupted(*arguments):
        loss = shard(*arguments)
        calls.append(loss)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return loss
    trainer.objective.shard = interrupted
    with pytest.raises(KeyboardInterrupt):
        next(train(trainer))
    trainer.objective.shard = shard
    list(train(trainer))
    assert same(trainer.state()[0], whole.state()[0])


def test_the_number_of_threads_changes_no_bit(monkeypatch):
    with use("reference"):
        four, _ = trained("train.shards=4")
        monkeypatch.setattr("tinydiff.train.ThreadPoolExecutor", lambda n: ThreadPoolExecutor(1))
        one, _ = trained("train.shards=4")
    assert same(four.state()[0], one.state()[0])


@needs_numba
def test_the_number_of_threads_that_kernels_share_changes_no_bit():
    with use("fast"):
        one, two = on_one_and_two_threads(lambda: trained()[0].state()[0])
    assert same(one, two)


@needs_numba
def test_with_kernels_the_shards_take_turns_in_the_thread_that_calls():
    for mode, threads in (("fast", {threading.get_ident()}), ("reference", set())):
        seen, trainer = [], tiny_trainer("train.shards=4")
        shard = trainer.objective.shard

        def watched(*arguments, shard=shard, seen=seen):
            seen.append(threading.get_ident())
            return shard(*arguments)
        trainer.objective.shard = watched
        with use(mode):
            next(train(trainer))
        assert len(seen) == 4 and {threading.get_ident()} & set(seen) == threads


@needs_numba
def test_the_readable_path_and_the_kernels_train_alike():
    curves = []
    for mode in ("reference", "fast"):
        with use(mode):
            curves.append(losses(trained("train.steps=20", "train.lr=0.01")[1]))
    np.testing.assert_allclose(*curves, rtol=1e-3)
    assert curves[0] != curves[1]


def test_the_number_of_blas_threads_changes_no_bit():
    threadpoolctl = pytest.importorskip("threadpoolctl")
    states = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads, user_api="blas"):
            states.append(trained()[0].state()[0])
    assert same(*states)


def test_the_cut_of_a_batch_changes_rounding_only():
    one, steps_one = trained("train.shards=1")
    two, steps_two = trained("train.shards=2")
    for a, b in zip(steps_one, steps_two, strict=True):
        np.testing.assert_allclose([a.loss, a.grad_norm], [b.loss, b.grad_norm], rtol=1e-4)
    assert not same(one.state()[0], two.state()[0])
    # One update from equal weights: Adam's first would turn rounding into +-lr, its mean does not.
    gradients = []
    for shards in (1, 2):
        trainer = tiny_trainer("train.steps=1", f"train.shards={shards}", "train.clip_norm=1e9")
        wake(trainer.model)
        next(train(trainer))
        gradients.append({n: m / 0.1 for n, m in trainer.optimiser.m.items()})
    largest = max(np.abs(g).max() for g in gradients[0].values())
    for name, g in gradients[0].items():
        np.testing.assert_allclose(gradients[1][name], g, rtol=0, atol=1e-5 * largest,
                                   err_msg=name)


# ---- what an update is ----

def test_each_epoch_visits_each_picture_once():
    trainer = tiny_trainer("train.batch_size=4", count=10)
    seen = np.concatenate([trainer.batch(step) for step in range(15)])    # 60: six epochs of ten
    epochs = seen.reshape(6, 10)
    assert (np.sort(epochs, axis=1) == np.arange(10)).all()
    assert len({tuple(epoch) for epoch in epochs}) == 6                   # each in another order
    np.testing.assert_array_equal(tiny_trainer(count=10).batch(7), trainer.batch(7))


def test_a_batch_larger_than_the_data_holds_whole_epochs():
    trainer = tiny_trainer("train.batch_size=20", count=10)
    assert set(Counter(trainer.batch(3).tolist()).values()) == {2}


def test_the_first_gradient_is_that_of_the_mean_loss_over_the_batch():
    trainer = tiny_trainer("train.clip_norm=1e9", "train.weight_decay=0")
    wake(trainer.model)
    reference = tiny_objective()
    wake(reference.model)
    pictures = list(enumerate(trainer.batch(0).tolist()))
    each = [reference.shard(reference.model, 0, [picture], 1 / 4) for picture in pictures]
    norm = np.sqrt(sum(float((p.grad.astype(float)**2).sum())
                       for _, p in reference.model.parameters()))
    step = next(train(trainer))
    assert step.step == 1 and np.isclose(step.loss, np.mean(each), rtol=1e-4)
    assert np.isclose(step.grad_norm, norm, rtol=1e-4)
    for name, p in reference.model.parameters():
        np.testing.assert_allclose(trainer.optimiser.m[name], 0.1 * p.grad, rtol=0,
                                   atol=1e-5 * norm, err_msg=name)


def test_a_shards_pictures_keep_their_noise_time_and_caption():
    objective = tiny_objective()
    assert [objective.time(3, k) for k in range(4)] == [tiny_objective().time(3, k)
                                                        for k in range(4)]
    times = [objective.time(step, k) for step in range(100) for k in range(4)]
    assert 1 <= min(times) < 50 and 950 < max(times) <= 1000 and len(set(times)) > 250


def test_a_time_power_above_one_draws_noisy_levels_more_often():
    objectives = {power: tiny_objective(f"loss.time_power={power}") for power in (1, 3)}
    times = {power: np.array([objective.time(step, 0) for step in range(400)])
             for power, objective in objectives.items()}
    assert abs(times[1].mean() - 500) < 50                            # T / 2
    assert abs(times[3].mean() - 750) < 50                            # T * 3 / 4
    assert 1 <= times[3].min() and times[3].max() <= 1000


def test_a_share_of_the_captions_is_dropped_for_guidance_to_contrast_with():
    objective = tiny_objective("loss.caption_dropout=0.25")
    captions = [objective.caption(step, k, 0) for step in range(200) for k in range(4)]
    assert 0.2 < captions.count("") / 800 < 0.3
    assert all("red heart" in c for c in captions if c) and len(set(captions)) > 3
    never = tiny_objective("loss.caption_dropout=0")
    assert all(never.caption(step, 0, 0) for step in range(50))


def test_steps_tell_step_loss_norm_rate_and_seconds():
    trainer, steps = trained("train.lr=0.01", "train.warm_up=2", "train.lr_end=0")
    assert [s.step for s in steps] == [1, 2, 3] and trainer.step == 3
    assert [s.lr for s in steps] == [0.005, 0.01, 0.01]
    assert all(isinstance(s, TrainStep) and {*map(type, s)} == {int, float} for s in steps)
    assert all(s.loss > 0 and s.grad_norm > 0 and s.seconds > 0 for s in steps)
    assert list(train(trainer)) == []                                 # nothing is left to do


def test_gradients_are_gone_after_an_update_and_the_average_has_none():
    trainer, _ = trained()
    assert all(p.grad is None for m in (trainer.model, trainer.ema.model)
               for _, p in m.parameters())


@pytest.mark.parametrize("prediction, updates", [
    ("epsilon", 40), ("sample", 40), ("v_prediction", 80)])
def test_the_loss_goes_down_on_four_pictures(prediction, updates):
    _, steps = trained(f"scheduler.prediction_type={prediction}", f"train.steps={updates}",
                       "train.lr=0.02", "loss.caption_dropout=0", "train.shards=1", count=4)
    early, late = np.mean(losses(steps)[:5]), np.mean(losses(steps)[-15:])
    assert late < 0.75 * early, f"{early:.3f} -> {late:.3f}"


def test_a_loss_that_is_not_finite_stops_the_run():
    trainer = tiny_trainer()
    steps = train(trainer)
    next(steps)
    before = {n: a.copy() for n, a in trainer.state()[0].items()}
    trainer.objective.shard = lambda *arguments: float("nan")
    with pytest.raises(FloatingPointError, match=r"loss nan, gradient norm .* at step 2: lower lr"):
        next(steps)
    assert same(trainer.state()[0], before) and trainer.step == 1


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_touches_a_weight():
    trainer = tiny_trainer()
    steps = train(trainer)
    next(steps)
    before = {n: a.copy() for n, a in trainer.state()[0].items()}
    shard = trainer.objective.shard

    def poisoned(model, *arguments):
        loss = shard(model, *arguments)
        model.unet.conv_out.bias.grad[0] = np.nan
        return loss
    trainer.objective.shard = poisoned
    with pytest.raises(FloatingPointError, match="gradient norm nan at step 2"):
        next(steps)
    assert same(trainer.state()[0], before) and not trainer.sound


def test_between_two_updates_the_matrix_products_have_all_their_threads():
    def threads():
        return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]
    with threadpool_limits(2, user_api="blas"):
        before, inside = threads(), []
        trainer = tiny_trainer()
        shard = trainer.objective.shard

        def watched(*arguments):
            inside.append(threads())
            return shard(*arguments)
        trainer.objective.shard = watched
        next(train(trainer))
        assert threads() == before and inside == [[1] * len(before)] * 2


@pytest.mark.parametrize("fields, message", [
    ({"steps": 0}, r"\[train\] steps must be a whole number from 1, got 0"),
    ({"steps": "many"}, "steps must be a whole number from 1, got 'many'"),
    ({"steps": 1, "batch_size": 2.5}, "batch_size must be a whole number from 1, got 2.5"),
    ({"steps": 1, "batch_size": 6, "shards": 4}, "shards=4 does not divide batch_size=6"),
])
def test_a_training_table_that_cannot_be_is_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(**fields)


# ---- where a run starts ----

def test_a_run_starts_from_the_weights_it_is_given(tmp_path):
    first, _ = trained("train.steps=20", "train.lr=0.01")
    first.objective.pipeline(first.model).save_pretrained(tmp_path / "model", "float32")
    init = TextToImage.from_pretrained(tmp_path / "model")

    settings = ("train.seed=9",)                                      # other noise, other order
    fresh, further = tiny_trainer(*settings), tiny_trainer(*settings, init=init)
    weights = dict(further.model.parameters())
    for name, p in first.model.parameters():
        np.testing.assert_array_equal(weights[name].value, p.value)
    assert same({n: p.value for n, p in further.ema.model.parameters()}, further.model.state())
    assert further.step == 0
    assert next(train(further)).loss < next(train(fresh)).loss
    assert init.unet.conv_in.weight.value is not further.model.unet.conv_in.weight.value


def test_a_further_leg_reads_with_the_tokenizer_of_its_start():
    init = new_pipeline(tiny_recipe("tokenizer.vocab_size=540"), tiny_pictures(4))
    objective = tiny_objective("tokenizer.vocab_size=540", init=init)
    assert objective.tokenizer is init.tokenizer


def test_weights_of_another_shape_are_refused_by_name():
    init = new_pipeline(tiny_recipe("unet.block_out_channels=[8, 12]"), tiny_pictures())
    with pytest.raises(ValueError, match=r"wrong shape: unet\.\S+ \(12, .*expected") as error:
        tiny_objective(init=init)
    assert "\n" not in str(error.value)


def test_a_run_is_described_by_its_recipe_alone():
    recipe = json.loads(json.dumps(tiny_recipe()))                    # as recipe.json keeps it
    trainer = Trainer(TextToImageObjective(recipe, tiny_pictures()), TrainConfig(**recipe["train"]))
    list(train(trainer))
    assert same(trainer.state()[0], trained()[0].state()[0])
