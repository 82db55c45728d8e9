"""The autoencoder's backward pass is the derivative of its forward pass; folding the mean of the
latents into its convolutions changes no reconstruction.

That the forward pass is the published one is test_autoencoder_parity.py's claim.
"""
import numpy as np
import pytest
from autoencoder_configs import CASES, cotangents, inputs
from gradients import assert_direction
from tiny import tiny_pictures, wake
from unet_configs import weight

from tinydiff.losses import kl_to_normal
from tinydiff.metrics import psnr
from tinydiff.models import Autoencoder
from tinydiff.nn import Tape
from tinydiff.recipes.autoencoder import (
    AutoencoderObjective,
    augment,
    autoencoder_loss,
    centre_latents,
)
from tinydiff.train import TrainConfig, Trainer, train

each_case = pytest.mark.parametrize("name", CASES)
ONE = np.ones(())


def network(case, dtype=np.float64):
    model = Autoencoder(**case.config)
    return model.load_state({n: weight(n, p.shape) for n, p in model.parameters()}, dtype)


@each_case
def test_all_gradients_are_derivatives_along_random_directions(name):
    case = CASES[name]
    model, given, dy = network(case), inputs(case), cotangents(case)
    tape = Tape()
    model.forward(**given, tape=tape)
    dx = model.backward(dy["x_hat"], dy["mean"], dy["logvar"], tape)
    assert not tape.stack, "the backward pass left something on the tape"

    flat_dy = np.concatenate([dy[n].ravel() for n in ("x_hat", "mean", "logvar")])

    def f():
        return np.concatenate([part.ravel() for part in model.forward(**given)])

    for wrt, got in (({"x": given["x"]}, {"x": dx}),
                     (model.state(), {n: p.grad for n, p in model.parameters()})):
        assert_direction(f, wrt, flat_dy, np.random.default_rng(1), **got)


@each_case
def test_the_whole_loss_has_the_gradient_that_training_uses(name):
    case = CASES[name]
    config = case.config | {"out_channels": case.config.get("in_channels", 3)}
    model = Autoencoder(**config)
    model.load_state({n: weight(n, p.shape) for n, p in model.parameters()}, np.float64)
    given = inputs(case)
    weights = {"mse": 1.0, "l1": 0.7, "gradient": 0.3, "kl": 0.2}

    def loss():
        return np.array(autoencoder_loss(model.forward(**given), given["x"], weights)[0])

    tape = Tape()
    reconstruction = model.forward(**given, tape=tape)
    value, *gradients = autoencoder_loss(reconstruction, given["x"], weights)
    assert value == loss()
    model.backward(*gradients, tape, needs_dx=False)
    assert_direction(loss, model.state(), ONE, np.random.default_rng(2),
                     **{n: p.grad for n, p in model.parameters()})


def test_the_log_variance_stays_in_its_range_and_its_gradient_stops_there():
    case = CASES["two_levels"]
    model, given = network(case), inputs(case)
    C = case.config["latent_channels"]
    model.quant_conv.bias.value[C:] = [-100, 0, 100]
    tape = Tape()
    mean, logvar = model.encode(given["x"], tape)
    assert (logvar[:, 0] == -30).all() and (logvar[:, 2] == 20).all()
    assert (abs(logvar[:, 1]) < 20).all()
    model.encode_backward(np.zeros_like(mean), np.ones_like(logvar), tape)
    np.testing.assert_array_equal(model.quant_conv.bias.grad != 0, [0, 0, 0, 0, 1, 0])


@each_case
def test_float32_stays_float32(name):
    case = CASES[name]
    model = network(case, np.float32)
    given = {n: a.astype(np.float32) for n, a in inputs(case).items()}
    dy = {n: a.astype(np.float32) for n, a in cotangents(case).items()}
    tape = Tape()
    reconstruction = model.forward(**given, tape=tape)
    assert all(part.dtype == np.float32 for part in reconstruction)
    dx = model.backward(dy["x_hat"], dy["mean"], dy["logvar"], tape)
    assert dx.dtype == np.float32
    assert all(p.grad.dtype == np.float32 for _, p in model.parameters())
    assert model.to_pictures(model.to_latents(given["x"])).dtype == np.float32


def test_forward_is_encode_draw_decode():
    case = CASES["stable_diffusion"]
    model, given = network(case), inputs(case)
    mean, logvar = model.encode(given["x"])
    x_hat = model.decode(mean + np.exp(logvar / 2) * given["eps"])
    np.testing.assert_allclose(model.forward(**given).x_hat, x_hat, rtol=1e-12)


def test_latents_are_scaled_and_pictures_do_not_depend_on_their_batch():
    case = CASES["two_levels"]
    model, x = network(case), np.concatenate([inputs(case)["x"]] * 2)
    latents = model.to_latents(x, batch=3)
    np.testing.assert_allclose(latents, 0.5 * model.encode(x).mean, rtol=1e-12)
    np.testing.assert_allclose(model.to_pictures(latents, batch=3),
                               model.decode(model.encode(x).mean), rtol=1e-10, atol=1e-10)


def test_a_gradient_that_nobody_needs_is_not_computed():
    case = CASES["one_level"]
    model, given, dy = network(case), inputs(case), cotangents(case)
    tape = Tape()
    model.forward(**given, tape=tape)
    assert model.backward(dy["x_hat"], dy["mean"], dy["logvar"], tape, needs_dx=False) is None
    assert all(p.grad is not None for _, p in model.parameters())


def test_pictures_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match=r"20 x 12 pixels.*multiples of 8"):
        network(CASES["stable_diffusion"]).encode(np.zeros((1, 3, 20, 12)))


# ---- the recipe ----

def recipe(**tables):
    return {"model": {"block_out_channels": [8, 16], "norm_num_groups": 4},
            "loss": {"mse": 1.0, "l1": 0.1, "gradient": 0.1, "kl": 1e-5,
                     "perceptual": 0.0, "adversarial": 0.0, "augment": True},
            "train": {"steps": 30, "batch_size": 8, "shards": 2, "lr": 3e-3, "warm_up": 1},
            "samples": {"every": 100, "count": 5}} | tables


def test_it_learns_and_two_runs_are_the_same_run():
    pictures = tiny_pictures(16)
    runs = []
    for _ in range(2):
        objective = AutoencoderObjective(recipe(), pictures)
        trainer = Trainer(objective, TrainConfig(**recipe()["train"]))
        losses = [step.loss for step in train(trainer)]
        runs.append({n: v.copy() for n, v in objective.model.state().items()})
    assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert all((runs[0][n] == runs[1][n]).all() for n in runs[0])


def test_the_noise_and_the_augmentation_belong_to_the_position_in_the_batch():
    objective = AutoencoderObjective(recipe(), tiny_pictures(16))
    batch = [(0, 3), (1, 3), (2, 9)]
    whole = objective.shard(objective.model, 7, batch, 1.0)
    apart = [objective.shard(objective.model, 7, [one], 1.0) for one in batch]
    assert whole == pytest.approx(np.mean(apart), rel=1e-5)
    assert apart[0] != apart[1], "the same picture at two positions is moved by two draws"


def test_augment_moves_a_picture_and_keeps_its_colours():
    x = tiny_pictures(3).array()[2]
    x[:, 8, 2] = -0.125                                               # left of the middle
    seen = [augment(x, np.random.default_rng(k)) for k in range(60)]
    assert all(y.shape == x.shape and y.dtype == x.dtype for y in seen)
    assert all(set(np.unique(y)) <= set(np.unique(x)) for y in seen)
    places = {tuple(np.argwhere(y[0] == -0.125)[0].tolist()) for y in seen}
    moves = {(8 + i, j + k) for i in (-1, 0, 1) for j in (2, 13) for k in (-1, 0, 1)}
    assert places == moves, "mirrored or not, and moved by up to a sixteenth of the side"


def test_folding_the_mean_changes_no_reconstruction():
    model = wake(Autoencoder(block_out_channels=[8, 16], norm_num_groups=4).initialise(
        3, np.float64))
    x = tiny_pictures(12).array().astype(np.float64)
    before = {n: v.copy() for n, v in model.state().items()}
    centred = centre_latents(model, x)
    latents = centred.to_latents(x)
    assert abs(model.encode(x).mean.mean(axis=(0, 2, 3))).max() > 0.01, "there is a mean to fold"
    np.testing.assert_allclose(latents.mean(axis=(0, 2, 3)), 0, atol=1e-12)
    assert latents.std() == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(centred.to_pictures(latents), model.decode(model.encode(x).mean),
                               rtol=1e-10, atol=1e-10)
    np.testing.assert_array_equal(centred.encode(x).logvar, model.encode(x).logvar)
    assert all((model.state()[n] == before[n]).all() for n in before), "the original is untouched"
    assert model.config["scaling_factor"] == 0.18215


def test_folding_needs_both_convolutions():
    for name in ("no_quant_conv", "no_post_quant_conv"):
        with pytest.raises(ValueError, match="use_quant_conv and use_post_quant_conv"):
            centre_latents(network(CASES[name]), inputs(CASES[name])["x"])


def test_a_fresh_encoder_draws_almost_without_noise_and_init_replaces_it():
    objective = AutoencoderObjective(recipe(), tiny_pictures(8))
    logvar = objective.model.encode(tiny_pictures(8).array()).logvar
    assert abs(logvar.mean() + 6) < 1
    start = Autoencoder(**objective.model.config).initialise(5)
    again = AutoencoderObjective(recipe(), tiny_pictures(8), init=start).model
    assert all((again.state()[n] == v).all() for n, v in start.state().items())


def test_metrics_and_sheet_are_of_the_held_out_pictures():
    training, held_out = tiny_pictures(12), tiny_pictures(20)
    objective = AutoencoderObjective(recipe(), training, held_out=held_out)
    numbers = objective.metrics(objective.model)
    x = held_out.array()
    mean, logvar = objective.model.encode(x)
    assert numbers["PSNR"] == pytest.approx(psnr(objective.model.decode(mean), x), abs=1e-4)
    assert numbers["PSNR, mean of pictures"] >= numbers["PSNR"]       # the log is concave
    assert numbers["nats"] == pytest.approx(kl_to_normal(mean, logvar)[0] * mean[0].size, rel=1e-4)
    assert numbers["latent std"] == pytest.approx(mean.std(), rel=1e-4)

    alone = AutoencoderObjective(recipe(), training)                  # a user's own pictures
    np.testing.assert_array_equal(alone.test_pictures(), training.array())
    for count, size in ((5, (5, 2)), (19, (8, 4))):
        sheet = objective.sample_sheet(objective.model, {"every": 1, "count": count})
        assert sheet.size == tuple(2 * (18 * n - 2) for n in size)


def test_psnr_is_in_decibels_of_the_whole_range():
    x = np.zeros((2, 1, 4, 4))
    assert psnr(x + 2 / 10, x) == pytest.approx(20)                   # a tenth of the range
    assert psnr(x + 5, x + 1) == np.inf                               # clipped to white
    with pytest.raises(ValueError, match=r"\(1, 1, 4, 4\)"):
        psnr(x[:1], x)
