"""float32 stays float32: a single float64 scalar among a batch's numbers would widen it all."""
import numpy as np
import pytest

from tinydiff import losses, nn, ops, pictures, targets
from tinydiff.backends import normal
from tinydiff.datasets import Pictures
from tinydiff.diffusion import CLEAN, posterior, q_sample, q_step
from tinydiff.grids import levels
from tinydiff.guidance import classifier_free
from tinydiff.models import UNet
from tinydiff.models.clip_text import CLIPText
from tinydiff.nn import Tape
from tinydiff.pipelines import Denoiser
from tinydiff.samplers import SAMPLERS
from tinydiff.schedules import Flow, Schedule
from tinydiff.targets import KINDS

each_dtype = pytest.mark.parametrize("dtype", [np.float32, np.float64])
SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


def draw(dtype, *shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


LAYERS = {                            # name: (layer, shapes of its inputs)
    "linear": (nn.Linear(3, 4), [(2, 3)]),
    "conv": (nn.Conv2d(3, 4, 3, padding=1), [(2, 3, 5, 5)]),
    "conv strided": (nn.Conv2d(3, 4, 3, 2, ((0, 1), (0, 1))), [(2, 3, 6, 6)]),
    "group norm": (nn.GroupNorm(2, 4), [(2, 4, 3, 3)]),
    "layer norm": (nn.LayerNorm(4), [(2, 3, 4)]),
    "layer norm without weights": (nn.LayerNorm(4, affine=False), [(2, 3, 4)]),
    "dropout": (nn.Dropout(0.3), [(4, 5)]),
    "attention": (nn.Attention(2), [(2, 3, 4), (2, 5, 4), (2, 5, 4)]),
    "concat": (nn.Concat(), [(2, 3, 4), (2, 2, 4)]),
    "upsample": (nn.UpsampleNearest(), [(2, 3, 2, 2)]),
    **{name: (nn.activation(name), [(2, 5)]) for name in nn.ACTIVATIONS},
}


@each_dtype
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_keeps_its_dtype_there_and_back(name, dtype):
    layer, shapes = LAYERS[name]
    layer = layer.replica().initialise(0, dtype)
    tape = Tape(np.random.default_rng(0))
    y = layer.forward(*(draw(dtype, *shape) for shape in shapes), tape=tape)
    gradients = layer.backward(draw(dtype, *y.shape), tape)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)
    assert y.dtype == dtype and all(dx.dtype == dtype for dx in gradients)
    assert all(p.grad.dtype == dtype for _, p in layer.parameters())


@each_dtype
def test_an_embedding_keeps_the_dtype_of_its_table(dtype):
    table, tape = nn.Embedding(5, 3).initialise(0, dtype), Tape()
    y = table.forward(np.array([1, 4]), tape)
    table.backward(y, tape)
    assert y.dtype == table.weight.grad.dtype == dtype


@each_dtype
def test_networks_follow_the_dtype_of_their_weights(dtype):
    unet = UNet(in_channels=3, out_channels=3, block_out_channels=[8], layers_per_block=1,
                down_block_types=["CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D"],
                norm_num_groups=4, cross_attention_dim=8, attention_head_dim=2)
    text = CLIPText(vocab_size=20, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=2, eos_token_id=19)
    unet.initialise(0, dtype)
    encoding = text.initialise(0, dtype).forward(np.array([[18, 3, 19]]))
    assert all(part.dtype == dtype for part in encoding)
    for timestep in (999, 0.5, np.float64(3), np.array([7.0])):
        y = unet.forward(draw(dtype, 1, 3, 8, 8), timestep, encoding.hidden)
        assert y.dtype == dtype, type(timestep)


@each_dtype
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_forward_process_and_its_posterior(schedule, dtype):
    schedule = Schedule.make(schedule)
    x, z = draw(dtype, 2, 3, 4, 4), draw(dtype, 2, 3, 4, 4, seed=1)
    t, s = schedule.level(700), schedule.level(300.5)
    assert {*map(type, (*t, *s, t.lam))} == {float}                   # no NumPy scalar among them
    assert q_sample(x, z, t.signal, t.noise).dtype == dtype
    assert q_step(x, z, s, t).dtype == dtype
    for lower in (s, CLEAN):
        mean, variance = posterior(x, z, t, lower)
        assert mean.dtype == dtype and isinstance(variance, float)
    level = schedule.batch([1, 1000], x)
    assert level.t.dtype == level.signal.dtype == level.noise.dtype == dtype
    assert q_sample(x, z, level.signal, level.noise).dtype == dtype


@each_dtype
@pytest.mark.parametrize("kind", KINDS)
def test_targets_losses_and_guidance(kind, dtype):
    x, eps = draw(dtype, 2, 3, 4, 4), draw(dtype, 2, 3, 4, 4, seed=1)
    schedule = Schedule.make("linear")
    for level in (schedule.level(500), schedule.batch([3, 900], x)):
        assert targets.target(kind, x, eps, level).dtype == dtype
        assert {a.dtype for a in targets.to_x0_eps(x, eps, level, kind)} == {np.dtype(dtype)}
    weight = losses.min_snr_weight(level.signal, level.noise, kind)
    assert weight.dtype == dtype
    for w in (None, weight, weight.astype(np.float64)):
        value, dprediction = losses.mse(x, eps, w)
        assert type(value) is float and dprediction.dtype == dtype
    for w in (0, 1, 3.5, np.float64(3.5)):
        assert classifier_free(x, eps, w).dtype == dtype


@each_dtype
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("sampler, options", [
    *((name, {}) for name in SAMPLERS),
    ("ddim", {"eta": 0.5}), ("ddim", {"eta": np.float64(1)}), ("ddpm", {"variance": "large"})])
def test_every_sampler_keeps_the_dtype_of_its_noise(sampler, options, schedule, dtype):
    denoise = Denoiser(lambda x_t, timestep: 0.5 * x_t, "v_prediction", clip=1.0)
    grid = levels(Flow() if sampler == "flow" else Schedule.make(schedule), 5)
    noise = lambda k: draw(dtype, 1, 3, 4, 4, seed=k)
    for step in SAMPLERS[sampler](denoise, noise(9), grid, noise=noise, **options):
        assert {a.dtype.name for a in (step.x_t, step.x0_hat, step.eps_hat, step.x_s)} == {
            np.dtype(dtype).name}


@each_dtype
def test_noise_is_drawn_in_the_dtype_asked_for_and_is_the_same_noise(dtype):
    noise = normal((3, 4), 0, "test", dtype=dtype)
    assert noise.dtype == dtype
    np.testing.assert_array_equal(noise, normal((3, 4), 0, "test").astype(dtype))


def test_pictures_become_float32():
    data = Pictures(np.full((2, 3, 4, 4), 255, np.uint8), [{}, {}])
    assert data.array().dtype == data.array([1]).dtype == np.float32
    assert pictures.from_bytes(data.images).dtype == np.float32
    assert pictures.to_bytes(data.array()).dtype == np.uint8
    np.testing.assert_array_equal(data.array(), pictures.from_bytes(data.images))


def test_masks_and_embeddings_follow_what_they_are_added_to():
    for dtype in (np.float32, np.float64):
        assert ops.causal_mask(3, dtype).dtype == dtype
        assert ops.timestep_embedding(np.array([1, 2]), 4, dtype=dtype).dtype == dtype
