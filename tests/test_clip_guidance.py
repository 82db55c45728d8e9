"""Claims: the gradient of CLIP's similarity is right to the pixel, and to the latent behind the
decoder; following it makes pictures more like their prompt and leaves the models as they were;
a classifier's exact gradient makes the exact conditional denoiser.
"""
import numpy as np
import pytest
from gradients import numerical_vjp
from tiny import tiny_latent_pipeline, tiny_pipeline

from tinydiff.grids import levels
from tinydiff.guidance import dynamic_threshold
from tinydiff.oracle import GaussianMixture, guided_oracle
from tinydiff.pictures import resize, resize_backward
from tinydiff.pipelines import ClipGuidance, Denoiser, TextToImage
from tinydiff.pipelines.edit import image_to_image
from tinydiff.samplers import SAMPLERS
from tinydiff.schedules import EDM, Flow, Schedule

PROMPTS = ["red heart", "pizza"]
RNG = np.random.default_rng(0)
LINEAR = Schedule.make("linear")


@pytest.fixture(scope="module")
def pipe():
    return tiny_latent_pipeline()


def in_double(guidance):
    """Return the guidance with every weight in float64, for finite differences."""
    for part in filter(None, (guidance.vision, guidance.vae)):
        for _, p in part.parameters():
            p.value = p.value.astype(np.float64)
    guidance.text = guidance.text.astype(np.float64)
    return guidance


def on_pixels(pipe):
    """Return the CLIP of a latent pipeline beside a model that works on pixels."""
    return TextToImage(tiny_pipeline().unet, pipe.text_encoder, pipe.tokenizer, pipe.scheduler,
                       image_encoder=pipe.image_encoder)


# ---- the gradient ----


@pytest.mark.parametrize("side", [8, 16, 24])            # CLIP sees 16 pixels
def test_the_gradient_reaches_every_pixel(pipe, side):
    guidance = in_double(ClipGuidance(on_pixels(pipe), PROMPTS, 1.0))
    x = RNG.normal(size=(2, 3, side, side))
    _, gradient = guidance.similarity(x)
    direction, h = RNG.normal(size=x.shape), 1e-6
    slope = (guidance.similarity(x + h * direction)[0]
             - guidance.similarity(x - h * direction)[0]) / (2 * h)
    found = (gradient * direction).sum(axis=(1, 2, 3))
    np.testing.assert_allclose(found, slope, rtol=1e-6, atol=1e-9 * np.abs(gradient).max())
    assert gradient.std() > 0


def test_the_gradient_reaches_every_latent_through_the_decoder(pipe):
    guidance = in_double(ClipGuidance(pipe, PROMPTS, 1.0))
    z = RNG.normal(size=(2, 4, 4, 4))
    _, gradient = guidance.similarity(z)
    few = z[:, :1, :2]                                   # a view: nudged in place, 16 entries
    want = numerical_vjp(lambda: guidance.similarity(z)[0], few, np.ones(2))
    np.testing.assert_allclose(gradient[:, :1, :2], want, rtol=0, atol=1e-6 * np.abs(want).max())
    assert np.abs(want).max() > 1e-6


def test_each_picture_hears_of_its_own_prompt_alone(pipe):
    z = RNG.normal(size=(2, 4, 4, 4)).astype(np.float32)
    both = ClipGuidance(pipe, PROMPTS, 1.0).similarity(z)
    for k, prompt in enumerate(PROMPTS):
        alone = ClipGuidance(pipe, [prompt], 1.0).similarity(z[k:k + 1])
        np.testing.assert_allclose(both[0][k], alone[0][0], atol=1e-6)
        np.testing.assert_allclose(both[1][k], alone[1][0], atol=1e-5)
    assert both[0].dtype == both[1].dtype == np.float32


@pytest.mark.parametrize("S, side", [(8, 3), (8, 8), (5, 12), (16, 4)])
def test_resizing_backward_is_the_adjoint(S, side):
    x, dy = RNG.normal(size=(2, 3, S, S)), RNG.normal(size=(2, 3, side, side))
    left, right = np.vdot(resize(x, side), dy), np.vdot(x, resize_backward(dy, S))
    assert abs(left - right) <= 1e-12 * (abs(left) + abs(right))


# ---- what it does ----


def similarity(pipe, x):
    return ClipGuidance(pipe, PROMPTS * (len(x) // 2), 1.0).similarity(x)[0].mean()


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_2m"])
def test_pictures_become_more_like_their_prompts(pipe, sampler):
    drawn = {w: [*pipe.steps(PROMPTS * 2, steps=10, sampler=sampler, guidance=1.0,
                             clip_guidance=w)][-1].x_s for w in (-30.0, 0.0, 30.0)}
    found = {w: similarity(pipe, x) for w, x in drawn.items()}
    assert found[-30.0] < found[0.0] - 0.02 < found[30.0] - 0.04


def test_exact_data_are_tilted_towards_the_prompt(pipe):
    """No network: pictures of N(0, I), whose denoiser's derivative is the one that is assumed."""
    pixels, start = on_pixels(pipe), RNG.normal(size=(8, 3, 16, 16))
    predict = lambda x_t, timestep: LINEAR.level(timestep + 1).noise * x_t
    found = []
    for w in (0.0, 20.0, 80.0):
        push = ClipGuidance(pixels, PROMPTS * 4, w)
        denoise = Denoiser(predict, "epsilon", push=push)
        *_, last = SAMPLERS["ddim"](denoise, start, levels(LINEAR, 25))
        found.append(similarity(pixels, last.x_s))
    assert found[0] < found[1] - 0.01 < found[2] - 0.02


def test_weight_zero_is_no_guidance_and_no_model_keeps_a_gradient(pipe):
    plain, off, on = ([*pipe.steps(PROMPTS, steps=2, **how)][-1].x_s for how in (
        {}, {"clip_guidance": 0.0}, {"clip_guidance": 5.0}))
    assert plain.tobytes() == off.tobytes() != on.tobytes() and on.dtype == np.float32
    for part in (pipe.unet, pipe.vae, pipe.image_encoder, pipe.text_encoder):
        assert all(p.grad is None and not p.frozen for _, p in part.parameters())


def test_editing_can_be_guided_too(pipe):
    x = RNG.uniform(-1, 1, (2, 3, 16, 16)).astype(np.float32)
    ends = [[*image_to_image(pipe, x, PROMPTS, steps=6, guidance=1.0, push=push)][-1].x_s
            for push in (None, ClipGuidance(pipe, PROMPTS, 30.0))]
    assert similarity(pipe, ends[1]) > similarity(pipe, ends[0]) + 0.01


@pytest.mark.parametrize("options, message", [
    ({"clip_guidance": float("nan")}, "clip guidance weight nan: a finite number"),
    ({"clip_guidance": float("inf")}, "clip guidance weight inf"),
    ({"clip_guidance": 1.0, "push": lambda x_t, t, x0_hat: x_t}, "one gradient at a time"),
    ({"threshold": 1.5}, "ratio=1.5"), ({"threshold": float("nan")}, "ratio=nan"),
])
def test_bad_input_is_one_line(pipe, options, message):
    with pytest.raises(ValueError, match=message) as error:
        list(pipe.steps("pizza", steps=1, **options))
    assert "\n" not in str(error.value)


def test_a_model_without_an_image_encoder_says_so():
    with pytest.raises(ValueError, match="needs the image encoder of a CLIP, and this model has n"):
        tiny_pipeline().steps("pizza", steps=1, clip_guidance=10.0)


# ---- a classifier's guidance, and thresholding, in the denoiser ----

MIXTURE = GaussianMixture([[-1.0, 0.2], [1.0, 0.5], [0.3, -1.0]], [0.05, 0.1, 0.08], labels="abb")


def denoiser(schedule, w, push=True):
    """Return the oracle, as a network, guided by its own exact classifier of class "b"."""
    level = {}

    def predict(x_t, timestep):
        return MIXTURE(x_t, level["t"])[1]

    def told(t):
        level["t"] = t
        return t.t

    gradient = lambda x_t, t, x0_hat: w * MIXTURE.class_score("b", x_t, t)
    return Denoiser(predict, "epsilon", push=gradient if push else None, timestep=told)


@pytest.mark.parametrize("schedule", [LINEAR, EDM(), Flow(shift=3.0)])
@pytest.mark.parametrize("share", [0.01, 0.3, 0.8, 0.99])
def test_the_exact_classifier_makes_the_exact_conditional(schedule, share):
    x_t, t = 2 * RNG.normal(size=(6, 2)), schedule.level(share * schedule.T)
    want = MIXTURE.of_class("b")(x_t, t)
    got = denoiser(schedule, 1.0)(x_t, t)
    scale = 1 + (t.noise / t.signal)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12 * scale)
    np.testing.assert_array_equal(denoiser(schedule, 0.0)(x_t, t)[1], MIXTURE(x_t, t)[1])


@pytest.mark.parametrize("w", [-1.0, 0.5, 1.0, 4.0])
def test_the_exact_classifier_at_weight_w_is_classifier_free_guidance(w):
    """Bayes once more: the gradient is the difference of the two scores, step by step."""
    start, grid = RNG.normal(size=(5, 2)), levels(LINEAR, 12, "logsnr")
    for sampler in ("ddim", "dpmpp_2m", "heun"):
        free = guided_oracle(MIXTURE.of_class("b"), MIXTURE, w)
        walks = [[step.x_s for step in SAMPLERS[sampler](denoise, start, grid)]
                 for denoise in (denoiser(LINEAR, w), free)]
        np.testing.assert_allclose(*walks, rtol=1e-7, atol=1e-9)


def test_the_classifiers_gradient_is_that_of_its_log_probability():
    x_t, t, h = RNG.normal(size=(5, 2)), LINEAR.level(300), 1e-5
    b = [k for k, label in enumerate(MIXTURE.labels) if label == "b"]
    log_p = lambda x: np.log(MIXTURE.shares(x, t)[:, b].sum(axis=1))
    for i in range(2):
        nudge = h * np.eye(2)[i]
        slope = (log_p(x_t + nudge) - log_p(x_t - nudge)) / (2 * h)
        np.testing.assert_allclose(MIXTURE.class_score("b", x_t, t)[:, i], slope, atol=1e-6)
    with pytest.raises(ValueError, match="'cat'"):
        MIXTURE.class_score("cat", x_t, t)


def test_pure_noise_is_not_pushed():
    t = Schedule.make("linear", zero_snr=True).level(1000)
    push = lambda x_t, t, x0_hat: 1 / 0
    x0_hat, _ = Denoiser(lambda x_t, s: x_t, "v_prediction", push=push)(RNG.normal(size=(2, 2)), t)
    assert np.isfinite(x0_hat).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_threshold_squeezes_and_the_noise_is_what_remains(dtype):
    x_t, t = RNG.normal(size=(2, 3, 8, 8)).astype(dtype), LINEAR.level(400)
    raw = (3 * RNG.normal(size=x_t.shape)).astype(dtype)
    for threshold in ((0.9,), (0.995, 1.5), (0.5, 1.0)):
        x0_hat, eps_hat = Denoiser(lambda x_t, s: raw, "sample", clip=0.1,
                                   threshold=threshold)(x_t, t)
        np.testing.assert_array_equal(x0_hat, dynamic_threshold(raw, *threshold))
        np.testing.assert_allclose(t.signal * x0_hat + t.noise * eps_hat, x_t, atol=1e-5)
        # By the definition: the share-th of the sorted sizes, at least 1, at most the largest.
        for picture, squeezed in zip(raw, x0_hat, strict=True):
            sizes = np.sort(np.abs(picture).ravel())
            place = threshold[0] * (sizes.size - 1)
            spread = np.interp(place, np.arange(sizes.size), sizes)
            spread = min(max(1.0, spread), *(threshold[1:] or (np.inf,)))
            np.testing.assert_allclose(squeezed, np.clip(picture, -spread, spread) / spread,
                                       rtol=1e-5)
        assert x0_hat.dtype == eps_hat.dtype == dtype


def test_the_models_own_threshold_gives_way_to_the_one_asked_for(pipe):
    drawn = {ratio: [*pipe.steps(PROMPTS, steps=3, threshold=ratio)][-1].x_s
             for ratio in (None, 0.5, 0.995)}
    assert np.abs(drawn[0.5]).max() <= 1 < np.abs(drawn[None]).max()
    assert np.abs(drawn[0.5] - drawn[0.995]).max() > 1e-3
