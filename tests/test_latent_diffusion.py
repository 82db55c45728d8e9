"""The U-Net of a latent diffusion model learns from cached latents, between two models at rest."""
import numpy as np
import pytest
from tiny import same, tiny_latent_objective, tiny_latent_recipe, tiny_pictures, wake

from tinydiff.backends import normal
from tinydiff.diffusion import q_sample
from tinydiff.recipes import stage_recipe
from tinydiff.recipes.latent_diffusion import Latents, cached_latents, encode
from tinydiff.targets import target
from tinydiff.train import TrainConfig, Trainer, train


@pytest.fixture(scope="module")
def objective():
    return tiny_latent_objective()


def trainer_of(objective, *settings):
    recipe = stage_recipe(tiny_latent_recipe(*settings), "unet")
    return Trainer(objective, TrainConfig(**recipe["train"]))


# ---- the latents ----

def test_latents_are_what_the_encoder_says_times_the_scaling_factor(objective):
    vae, x = objective.autoencoder, objective.pictures.array()
    mean, logvar = vae.encode(x)
    scale = vae.config["scaling_factor"]
    np.testing.assert_allclose(objective.latents.mean, scale * mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(objective.latents.std, scale * np.exp(logvar / 2), rtol=1e-5)
    assert objective.latents.mean.dtype == objective.latents.std.dtype == np.float32
    assert abs(objective.latents.mean.std() - 1) < 1e-4               # what the U-Net expects


def test_latents_are_drawn_around_their_mean_with_their_deviation(objective):
    indices = [3] * 4000
    z = objective.draw(indices, 0, range(4000))
    mean, std = objective.latents.mean[3], objective.latents.std[3]
    np.testing.assert_allclose(z.mean(axis=0), mean, atol=0.1 * std.max())
    np.testing.assert_allclose(z.std(axis=0), std, rtol=0.1)
    assert (objective.draw([3], 0, [7])[0] == z[7]).all()             # keyed by its position


def test_latents_are_encoded_once_and_kept_in_a_file(objective, tmp_path, monkeypatch):
    vae, pictures = objective.autoencoder, objective.pictures
    path = tmp_path / "unet" / "latents.safetensors"
    first = cached_latents(path, vae, pictures)
    encodings = []
    monkeypatch.setattr("tinydiff.recipes.latent_diffusion.encode",
                        lambda *arguments: encodings.append(arguments) or encode(*arguments))
    again = cached_latents(path, vae, pictures)
    assert same(first._asdict(), again._asdict()) and not encodings
    others = tiny_pictures(9)
    assert len(cached_latents(path, vae, others).mean) == 9 and len(encodings) == 1
    weight = vae.encoder.conv_in.weight.value
    before = weight.copy()
    weight *= 1.5
    other = cached_latents(path, vae, others)                         # another autoencoder
    weight[...] = before
    assert len(encodings) == 2 and not same(other._asdict(), encode(vae, others)._asdict())


def test_encoding_says_how_far_it_is(objective):
    seen = []
    encode(objective.autoencoder, objective.pictures, progress=lambda w: seen.extend(w) or w,
           batch=4)
    assert seen == [0, 4, 8]


# ---- an update ----

def test_the_loss_is_the_error_of_v_over_a_batch(objective):
    model, pictures = wake(objective.model), list(enumerate([4, 2, 7]))
    positions = [0, 1, 2]
    z0 = objective.draw([4, 2, 7], 5, positions)
    level = objective.scheduler.schedule.batch([objective.time(5, k) for k in positions], z0)
    eps = normal(z0.shape[1:], 0, "train eps", 5, positions)
    z_t = q_sample(z0, eps, level.signal, level.noise)
    ids = objective.tokenizer.encode_batch([objective.caption(5, k, i) for k, i in pictures])
    hidden = objective.clip.text.forward(ids).hidden
    v_hat = model.forward(z_t, level.t - 1, hidden)
    want = ((v_hat - target("v_prediction", z0, eps, level)) ** 2).mean()
    got = objective.shard(model, 5, pictures, 1.0)
    model.zero_grad()
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_an_update_moves_the_unet_and_nothing_else(objective):
    rest = {"clip": objective.clip, "autoencoder": objective.autoencoder}
    before = {name: {k: a.copy() for k, a in m.state().items()} for name, m in rest.items()}
    unet = {k: a.copy() for k, a in objective.model.state().items()}
    list(train(trainer_of(objective)))
    assert all(same(before[name], m.state()) for name, m in rest.items())
    assert all(p.grad is None for m in rest.values() for _, p in m.parameters())
    assert not same(unet, objective.model.state())


def test_the_levels_of_a_batch_are_spread_evenly():
    objective = tiny_latent_objective("unet.train.batch_size=8")
    for step in range(20):
        rows = np.sort([objective.time(step, k) for k in range(8)])
        assert 1 <= rows[0] and rows[-1] <= 1000
        assert (np.abs(np.diff(rows) - 125) <= 1).all()
    starts = {objective.time(step, 0) for step in range(200)}
    assert min(starts) < 20 and max(starts) > 980 and len(starts) > 150


def test_a_time_power_above_one_draws_noisy_levels_more_often():
    objective = tiny_latent_objective("unet.loss.time_power=3", "unet.train.batch_size=100")
    rows = [objective.time(0, k) for k in range(100)]
    assert abs(np.mean(rows) - 750) < 10                              # T * 3 / 4


def test_captions_and_the_empty_prompt_are_what_the_unet_is_told(objective):
    drawn = [objective.caption(step, k, 0) for step in range(100) for k in range(4)]
    assert 0.05 < drawn.count("") / 400 < 0.15
    assert all("red heart" in c for c in drawn if c)


@pytest.mark.parametrize("gamma", [0, 5])
def test_the_loss_goes_down_on_four_pictures(gamma):
    settings = ("unet.train.steps=60", "unet.train.lr=0.02", "unet.loss.caption_dropout=0",
                f"unet.loss.min_snr_gamma={gamma}")
    objective = tiny_latent_objective(*settings, count=4)
    mean, std = objective.latents                # of an encoder at random: hardly more than noise
    objective.latents = Latents(mean, 0.01 * std)
    asked = [(k, k % 4) for k in range(32)]                           # always of the same noise
    before = objective.shard(objective.model, 1000, asked, 0.0)
    list(train(trainer_of(objective, *settings)))
    assert objective.shard(objective.model, 1000, asked, 0.0) < 0.85 * before


def test_two_runs_of_a_seed_are_equal_bit_for_bit():
    trainers = [trainer_of(tiny_latent_objective()) for _ in range(2)]
    for trainer in trainers:
        list(train(trainer))
    assert same(trainers[0].state()[0], trainers[1].state()[0])


def test_a_unet_that_never_looks_at_the_text_is_refused():
    with pytest.raises(ValueError, match=r"\[unet.model\] never looks at the text"):
        tiny_latent_objective("unet.model.down_block_types=['DownBlock2D', 'DownBlock2D']",
                              "unet.model.up_block_types=['UpBlock2D', 'UpBlock2D']",
                              "unet.model.mid_block_type=UNetMidBlock2D")


def test_a_further_leg_starts_from_the_weights_it_is_given(objective):
    wake(objective.model)
    further = tiny_latent_objective("unet.train.seed=9", init=objective.model)
    assert same(further.model.state(), objective.model.state())
    assert further.model.conv_in.weight.value is not objective.model.conv_in.weight.value


def test_a_sample_sheet_is_decoded_to_pixels(objective):
    samples = {"prompts": ["red heart"] * 3, "steps": 2, "guidance": 2.0}
    assert objective.sample_sheet(objective.model, samples).size == (2 * (8 * 18 - 2), 2 * 16)


def test_latents_are_an_autoencoders_and_not_of_pixels(objective):
    assert isinstance(objective.latents, Latents)
    assert objective.model.config["sample_size"] == 4                 # 16 pixels, factor 4
    assert objective.model.config["in_channels"] == 4
    assert objective.model.config["cross_attention_dim"] == [8, 8]
