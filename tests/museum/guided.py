"""Room 3: a prediction that is read, guided, clipped or put together wrongly."""
from functools import lru_cache, partial
from unittest.mock import patch

import numpy as np

import tinydiff
from museum.frame import (
    LINEAR,
    Exhibit,
    Pictures,
    Points,
    emoji,
    noise,
    off,
    petals,
    replaced,
    start,
    walked,
)
from tinydiff import editing, grids, guidance
from tinydiff.diffusion import q_sample
from tinydiff.guidance import classifier_free
from tinydiff.oracle import GaussianMixture
from tinydiff.pipelines import Denoiser
from tinydiff.samplers import ddim_sample
from tinydiff.targets import to_x0_eps

PROMPTS = ["red heart, noto style", "rocket, noto style", "tiger face, noto style",
           "pizza, noto style"]


# ---- the switches ----


def v_for_noise(prediction, x_t, level, kind):
    return to_x0_eps(prediction, x_t, level, "epsilon" if kind == "v_prediction" else kind)


def branches_exchanged(prediction_null, prediction_text, w):
    return classifier_free(prediction_text, prediction_null, w)


def some_channels(prediction_null, prediction_text, w):
    """All channels but the last are guided; that is the prompt's own."""
    guided = classifier_free(prediction_null, prediction_text, w)
    return np.concatenate([guided[:, :-1], prediction_text[:, -1:]], axis=1)


def clipped_alone(self, x_t, t):
    x0_hat, eps_hat = to_x0_eps(self.predict(x_t, t.t - 1), x_t, t, self.kind)
    return (x0_hat if self.clip is None else np.clip(x0_hat, -self.clip, self.clip)), eps_hat


class OneLevelLate:
    """As `q_sample` in an inpainting walk, at the level of the call before."""

    def __init__(self):
        self.before = (0.0, 1.0)

    def __call__(self, x0, eps, signal, noise):
        before, self.before = self.before, (signal, noise)
        return q_sample(x0, eps, *before)


# ---- the pictures ----


def by_v():
    def predict(x_t, timestep):
        t = LINEAR.level(timestep + 1)
        x0_hat, eps_hat = emoji()(x_t, t)
        return t.signal * eps_hat - t.noise * x0_hat
    return walked("ddim", grids.levels(LINEAR, 20), denoise=Denoiser(predict, "v_prediction"))


@lru_cache
def pair():
    return np.random.default_rng(0).normal(size=(2, 2, 4, 3, 3))


def prompted(w):
    """The shipped model's pictures, and how far guidance is from its formula."""
    pipe = tinydiff.load("emoji")
    *_, last = pipe.steps(PROMPTS, steps=10, guidance=w, seed=0)
    null, text = pair()
    apart = guidance.classifier_free(null, text, w) - (null + w * (text - null))
    return Pictures(pipe.decoded(last).x_s), float(np.abs(apart).max())


def pushed(w=3.0):
    """Points under exact guidance towards one petal, up right; behind them that petal's own."""
    data, rng = petals(), np.random.default_rng(0)
    one = GaussianMixture(data.means[1:2], 0.02)
    grid = grids.levels(LINEAR, 100)

    def denoise(x_t, t):
        eps = guidance.classifier_free(data(x_t, t)[1], one(x_t, t)[1], w)
        return to_x0_eps(eps, x_t, t, "epsilon")
    *_, last = ddim_sample(denoise, rng.normal(size=(300, 2)), grid)
    null, text = pair()
    apart = guidance.classifier_free(null, text, w) - (null + w * (text - null))
    return Points(last.x_s, one.sample(300, rng)), float(np.abs(apart).max())


def halves():
    """Strong guidance, where much is clipped; the error is in what the two halves make up."""
    pipe = tinydiff.load("fashion-unet")
    steps = list(pipe.steps(["sneaker", "dress", "bag", "coat"], steps=10, guidance=8.0, seed=0))
    apart = [np.abs(k.t.signal * k.x0_hat + k.t.noise * k.eps_hat - k.x_t).max() for k in steps]
    return Pictures(steps[-1].x_s), float(max(apart))


def filled_in():
    """The left of four emoji is known, 20 columns of 32."""
    known, mask = emoji().pictures[:4], np.zeros((1, 32, 32))
    mask[:, :, :20] = 1
    *_, last = editing.inpaint_sample(emoji(), start(), grids.levels(LINEAR, 15), known, mask,
                                      noise=noise, repeat=1)
    return Pictures(last.x_s), off(last.x_s[..., :20], known[..., :20])


ROOM = [
    Exhibit(
        "v_for_noise", "A velocity read as noise",
        "The network predicts v, the file that says so was not read, and v is taken for the noise.",
        "converted checkpoints, such as SDXL models with v-prediction "
        "([InvokeAI #7495](https://github.com/invoke-ai/InvokeAI/issues/7495)).",
        "x0_hat = (x_t - t.noise * prediction) / t.signal",
        "x0_hat = t.signal * x_t - t.noise * prediction",
        partial(replaced, to_x0_eps, v_for_noise), by_v,
        "distance of the worst picture to the nearest emoji, root mean square",
        "test_targets.py::test_the_true_target_gives_back_the_truth", ("v_prediction", 500)),
    Exhibit(
        "branches_exchanged", "Guided away from the prompt",
        "The batch holds both predictions, the one without the prompt first; its halves were taken "
        "in the other order. The more guidance, the less of what was asked for.",
        "a wrong half was taken in diffusers' CLIP-guided pipeline "
        "([#667](https://github.com/huggingface/diffusers/pull/667)).",
        "text, null = np.split(prediction, 2)",
        "null, text = np.split(prediction, 2)",
        partial(replaced, classifier_free, branches_exchanged), partial(prompted, 3.0),
        "largest difference of a guided prediction from its formula",
        "test_guidance.py::test_weight_zero_is_unconditional_and_one_is_conditional_exactly"),
    Exhibit(
        "some_channels", "Three channels of four are guided",
        "Guidance was written for a network whose first three outputs are a picture's colours. "
        "With four latent channels the slice stayed. Here one of two is left out: the height.",
        "DiT, after GLIDE ([#41](https://github.com/facebookresearch/DiT/issues/41): kept in, "
        "so that its published figures can be had again).",
        "guided = null[:, :3] + w * (text[:, :3] - null[:, :3])",
        "guided = null + w * (text - null)",
        partial(replaced, classifier_free, some_channels), pushed,
        "largest difference of a guided prediction from its formula",
        "test_guidance.py::test_the_weight_is_linear", (4.0,)),
    Exhibit(
        "clipped_alone", "A clipped picture beside the old noise",
        "The predicted picture was clipped to its range, the predicted noise left as it was. "
        "The two no longer make up the sample that the network saw.",
        "denoising-diffusion-pytorch ([#84](https://github.com/lucidrains/"
        "denoising-diffusion-pytorch/pull/84)); diffusers still asks whether "
        "it should (`use_clipped_model_output`).",
        "x0_hat = np.clip(x0_hat, -1, 1)",
        "x0_hat = np.clip(x0_hat, -1, 1); eps_hat = (x_t - t.signal * x0_hat) / t.noise",
        partial(patch.object, Denoiser, "__call__", clipped_alone), halves,
        "largest difference between `x_t` and what the two halves make up",
        "test_pipelines.py::test_the_two_halves_always_add_up_to_the_noisy_picture",
        ("epsilon", 1.0)),
    Exhibit(
        "one_level_late", "Known pixels, one level too noisy",
        "In inpainting the known part is put back with the noise of the level that the step came "
        "from, not of the one where it ends. It is always noisier than the part that is drawn.",
        "diffusers' inpainting and RePaint "
        "([#3730](https://github.com/huggingface/diffusers/issues/3730), "
        "[#1581](https://github.com/huggingface/diffusers/issues/1581)).",
        "put_back = q_sample(known, eps, t.signal, t.noise)",
        "put_back = q_sample(known, eps, s.signal, s.noise)",
        lambda: patch.object(editing, "q_sample", OneLevelLate()), filled_in,
        "distance of the known part from what is known, root mean square, of the worst picture",
        "test_editing.py::test_known_entries_are_kept_exactly_and_the_rest_is_drawn"),
]
