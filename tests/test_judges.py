"""What judges reconstructions beside their pixels: each gradient is a derivative."""
import numpy as np
import pytest
from gradients import assert_direction
from test_autoencoder import ONE, recipe
from test_device import VISION
from tiny import tiny_pictures, wake

from tinydiff.losses import hinge
from tinydiff.models import Autoencoder, CLIPVision, PatchDiscriminator
from tinydiff.nn import Tape
from tinydiff.recipes.autoencoder import AutoencoderObjective, autoencoder_loss
from tinydiff.recipes.judges import Adversaries, as_strong, contest, perceptual
from tinydiff.train import TrainConfig, Trainer, train

rng = np.random.default_rng(3)
X, X_HAT = rng.uniform(-1, 1, (2, 2, 3, 8, 8))


def in_float64(model):
    return wake(model.initialise(0, np.float64))


def discriminator():
    return in_float64(PatchDiscriminator(3, [4, 8, 8], norm_num_groups=4))


def vision(dtype=np.float64, **config):
    return wake(CLIPVision(**{**VISION, **config}).initialise(0, dtype)).freeze()


def loss_of(**weights):
    return {**recipe()["loss"], **weights}


def test_a_discriminators_gradients_are_derivatives():
    judge, tape = discriminator(), Tape()
    dlogits = rng.normal(size=judge.forward(X, tape).shape)
    dx = judge.backward(dlogits, tape)
    assert not tape.stack
    for wrt, got in (({"x": X}, {"x": dx}),
                     (judge.state(), {n: p.grad for n, p in judge.parameters()})):
        assert_direction(lambda: judge.forward(X), wrt, dlogits, np.random.default_rng(1), **got)


@pytest.mark.parametrize("channels, sees", [([4], 8), ([4, 8], 18), ([4, 8, 8], 38)])
def test_a_logit_sees_a_patch(channels, sees):
    """The pixels in which its gradient is not 0; group norm, which sees all, is left out."""
    judge = PatchDiscriminator(1, channels, norm_num_groups=1).initialise(0)
    for norm in judge.norms:
        norm.forward = lambda x, tape: x
        norm.backward = lambda dx, tape: (dx, None, None)
    tape = Tape()
    dlogits = np.zeros_like(judge.forward(np.ones((1, 1, 96, 96), np.float32), tape))
    middle = dlogits.shape[2] // 2
    dlogits[0, 0, middle, middle] = 1
    rows = np.flatnonzero(np.abs(judge.backward(dlogits, tape)).sum(axis=(0, 1, 3)))
    assert rows[-1] - rows[0] + 1 == sees


def test_a_picture_is_judged_alone():
    judge = discriminator()
    np.testing.assert_allclose(judge.forward(X)[1:], judge.forward(X[1:]), rtol=1e-12)


def test_the_perceptual_gradient_is_a_derivative_and_adds_nothing_to_the_encoder():
    encoder = vision()
    value, dx_hat = perceptual(encoder, X_HAT, X)
    assert 0 < value < 4 and all(p.grad is None for _, p in encoder.parameters())
    assert_direction(lambda: np.array(perceptual(encoder, X_HAT, X)[0]), {"x_hat": X_HAT}, ONE,
                     np.random.default_rng(1), x_hat=dx_hat)


def test_the_perceptual_distance_is_that_of_unit_tokens():
    encoder = vision()
    tokens = [encoder.forward(x).penultimate for x in (X_HAT, X)]
    cosine = np.array([[a @ b / np.linalg.norm(a) / np.linalg.norm(b)
                        for a, b in zip(*pair, strict=True)] for pair in zip(*tokens, strict=True)])
    assert perceptual(encoder, X_HAT, X)[0] == pytest.approx((2 - 2 * cosine).mean(), rel=1e-12)
    assert perceptual(encoder, X, X)[0] == 0


def test_a_contest_gives_each_side_its_own_gradient():
    judge = discriminator()
    dx_hat = contest(judge, X_HAT, X, share=0.5)
    got = {n: 2 * p.grad for n, p in judge.parameters()}
    assert_direction(lambda: np.array(hinge(judge.forward(X), judge.forward(X_HAT))[0]),
                     judge.state(), ONE, np.random.default_rng(1), **got)
    assert_direction(lambda: np.array(-judge.forward(X_HAT).mean()), {"x_hat": X_HAT}, ONE,
                     np.random.default_rng(2), x_hat=dx_hat)


def test_a_push_is_as_strong_as_it_is_told():
    push = as_strong(X, X_HAT, 0.3)
    assert np.linalg.norm(push) == pytest.approx(0.3 * np.linalg.norm(X_HAT))
    np.testing.assert_allclose(push / np.linalg.norm(push), X / np.linalg.norm(X))
    assert not as_strong(0 * X, X_HAT, 0.3).any() and not as_strong(X, 0 * X_HAT, 0.3).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_is_kept(dtype):
    x_hat, x = X_HAT.astype(dtype), X.astype(dtype)
    judge = PatchDiscriminator(3).initialise(0, dtype)
    push = contest(judge, x_hat, x, 1.0)
    assert push.dtype == as_strong(push, x, 0.5).dtype == dtype
    assert perceptual(vision(dtype), x_hat, x)[1].dtype == dtype
    assert all(p.grad.dtype == dtype for _, p in judge.parameters())


def test_the_autoencoder_is_pulled_by_all_its_judges():
    """Its gradient in x_hat is the sum of theirs; the last bias has the sum of that."""
    pictures, batch = tiny_pictures(8), [(0, 3), (1, 5)]
    settings = recipe(loss=loss_of(perceptual=0.1, adversarial=0.4))
    encoder = vision(np.float32, image_size=16)
    objective = AutoencoderObjective(settings, pictures, vision=encoder)
    plain = AutoencoderObjective(recipe(), pictures)
    judge = objective.model.discriminator.replica()
    x, eps = plain.inputs(plain.model, 0, batch)
    reconstruction = plain.model.forward(x, eps)
    loss, dx_hat, _, _ = autoencoder_loss(reconstruction, x, plain.loss)
    distance, ddistance = perceptual(encoder, reconstruction.x_hat, x)
    dx_hat += 0.1 * ddistance
    dx_hat += as_strong(contest(judge, reconstruction.x_hat, x, 1.0), dx_hat, 0.4)
    got = objective.shard(objective.model, 0, batch, 1.0)
    assert got == pytest.approx(loss + 0.1 * distance, rel=1e-5)
    np.testing.assert_allclose(objective.model.autoencoder.decoder.conv_out.bias.grad,
                               dx_hat.sum(axis=(0, 2, 3)), rtol=1e-3)
    for (name, p), (_, q) in zip(objective.model.discriminator.parameters(), judge.parameters(),
                                 strict=True):
        np.testing.assert_allclose(p.grad, q.grad, rtol=1e-4, atol=1e-7, err_msg=name)


def test_it_learns_against_a_discriminator_and_leaves_an_autoencoder():
    settings = recipe(loss=loss_of(adversarial=0.3), train={**recipe()["train"], "steps": 40})
    runs = []
    for _ in range(2):
        objective = AutoencoderObjective(settings, tiny_pictures(16))
        trainer = Trainer(objective, TrainConfig(**settings["train"]))
        losses = [step.loss for step in train(trainer)]
        runs.append({n: v.copy() for n, v in objective.model.state().items()})
    assert np.mean(losses[-5:]) < 0.7 * losses[0]
    assert all((runs[0][n] == runs[1][n]).all() for n in runs[0]), "two runs are the same run"
    start = AutoencoderObjective(settings, tiny_pictures(16)).model.state()
    assert all((start[n] != runs[0][n]).any() for n in start if "discriminator" in n)
    finished = objective.pipeline(trainer.ema.model)
    assert type(finished) is Autoencoder and type(trainer.ema.model) is Adversaries
    assert objective.metrics(objective.model)["PSNR"] > 5
    assert objective.sample_sheet(objective.model, {"count": 4}).size


def test_a_perceptual_term_needs_an_encoder():
    with pytest.raises(ValueError, match=r"perceptual compares tokens .* set it to 0"):
        AutoencoderObjective(recipe(loss=loss_of(perceptual=0.1)), tiny_pictures(4))
