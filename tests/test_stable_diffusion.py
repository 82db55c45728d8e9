"""Text to picture by way of latents is Stable Diffusion: its folders, its parts, its numbers."""
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_latent_pipeline, tiny_pipeline

from tinydiff.backends import normal
from tinydiff.jsonfile import read_json, write_json
from tinydiff.pipelines import TextToImage, load
from tinydiff.pipelines.text_to_image import PARTS
from tinydiff.viz import denoising_strip

REFERENCE = Path(__file__).parent / "reference" / "stable_diffusion.npz"
PROMPTS = ["red heart", "pizza, noto style"]
OPTIONS = {"steps": 8, "guidance": 2.0, "seed": 3}      # diffusers' own steps are even at 8


@pytest.fixture(scope="module")
def pipe():
    return tiny_latent_pipeline()


@pytest.fixture
def folder(pipe, tmp_path):
    """Return the folder of the model in full precision, to be changed."""
    pipe.save_pretrained(tmp_path / "model", dtype="float32")
    return tmp_path / "model"


def published(folder, x_T):
    """Return the latents and pictures that diffusers' own pipeline makes of `x_T`."""
    torch, diffusers = pytest.importorskip("torch"), pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    made = [pipe(PROMPTS, latents=torch.from_numpy(x_T.copy()), output_type=kind,
                 num_inference_steps=OPTIONS["steps"], guidance_scale=OPTIONS["guidance"]).images
            for kind in ("latent", "np")]
    return made[0].numpy(), made[1].transpose(0, 3, 1, 2)             # (B, C, h, w), (B, 3, H, W)


def own(pipe):
    """Return the noise, the latents and the pictures in [0, 1] that `pipe` makes."""
    steps = list(pipe.steps(PROMPTS, **OPTIONS))
    return steps[0].x_t, steps[-1].x_s, np.clip(pipe.decode(steps[-1].x_s) / 2 + 0.5, 0, 1)


# ---- the same numbers ----

@pytest.mark.filterwarnings("ignore")                                 # of other libraries
def test_the_folder_opens_in_diffusers_and_makes_the_same_latents_and_pictures(folder):
    x_T, latents, pictures = own(load(folder))
    want_latents, want_pictures = published(folder, x_T)
    np.testing.assert_allclose(latents, want_latents, rtol=0, atol=1e-4)
    np.testing.assert_allclose(pictures, want_pictures, rtol=0, atol=1e-4)


def test_latents_and_pictures_are_those_that_diffusers_made(pipe):
    want = np.load(REFERENCE)                # by tests/reference/make_stable_diffusion.py
    x_T, latents, pictures = own(pipe)
    np.testing.assert_array_equal(x_T, want["x_T"])
    np.testing.assert_allclose(latents, want["latents"], rtol=0, atol=1e-3)
    np.testing.assert_allclose(pictures, want["pictures"], rtol=0, atol=1e-3)
    assert np.abs(want["latents"]).max() > 1 and want["pictures"].std() > 0.05


@pytest.mark.filterwarnings("ignore")                                 # of other libraries
@pytest.mark.parametrize("change", [
    {"_class_name": "DPMSolverMultistepScheduler", "use_karras_sigmas": True},
    {"_class_name": "UniPCMultistepScheduler", "use_karras_sigmas": True},
    {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True,
     "timestep_spacing": "leading"},          # in the other spacings its noise has not variance 1
    {"_class_name": "DPMSolverMultistepScheduler", "thresholding": True, "sample_max_value": 2.0},
], ids=lambda change: ",".join(map(str, change.values())))
def test_a_folder_with_another_scheduler_draws_what_diffusers_draws(folder, change):
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    edited = read_json(folder / "scheduler" / "scheduler_config.json") | betas | change
    write_json(folder / "scheduler" / "scheduler_config.json", edited)
    index = read_json(folder / "model_index.json")
    write_json(folder / "model_index.json",
               index | {"scheduler": ["diffusers", change["_class_name"]]})
    x_T, latents, pictures = own(load(folder))
    want_latents, want_pictures = published(folder, x_T)
    # Their table is of float32: sigma at its row 1 is right to 1e-4 of itself.
    np.testing.assert_allclose(latents, want_latents, rtol=0, atol=3e-4)
    np.testing.assert_allclose(pictures, want_pictures, rtol=0, atol=3e-4)


# ---- folders ----

def test_the_index_is_that_of_a_stable_diffusion_pipeline(folder):
    index = read_json(folder / "model_index.json")
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert {k: v for k, v in index.items() if k != "_class_name"} == PARTS
    assert {p.name for p in folder.iterdir()} == {"model_index.json", *PARTS}


def test_a_model_on_pixels_keeps_its_own_index(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    index = read_json(tmp_path / "model" / "model_index.json")
    assert index["_class_name"] == "TextToImage" and {"vae", "image_encoder"}.isdisjoint(index)
    assert load(tmp_path / "model").vae is None


def test_the_index_and_the_default_sampler_are_those_of_the_schedulers_class(pipe, folder):
    path = folder / "scheduler" / "scheduler_config.json"
    write_json(path, read_json(path) | {"_class_name": "UniPCMultistepScheduler"})
    again = load(folder)
    again.save_pretrained(folder)
    assert read_json(folder / "model_index.json")["scheduler"] == ["diffusers",
                                                                   "UniPCMultistepScheduler"]
    drawn = [[*again.steps("pizza", steps=3, **named)][-1].x_s for named in (
        {}, {"sampler": "unipc"}, {"sampler": "ddim"})]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 1e-4


def test_a_saved_model_draws_the_same_bits(pipe, folder):
    again = TextToImage.from_pretrained(folder)
    for a, b in zip(own(pipe), own(again), strict=True):
        assert a.tobytes() == b.tobytes()
    assert again.image_encoder.config == pipe.image_encoder.config


def test_a_published_folder_opens_whatever_its_safety_checker(folder):
    index = read_json(folder / "model_index.json")
    del index["image_encoder"]
    for value in ([None, None], ["stable_diffusion", "StableDiffusionSafetyChecker"]):
        write_json(folder / "model_index.json", {
            **index, "safety_checker": value, "feature_extractor": value,
            "requires_safety_checker": True, "_diffusers_version": "0.6.0"})
        assert load(folder).image_encoder is None


@pytest.mark.parametrize("part", ["vae", "image_encoder"])
def test_a_part_that_the_index_names_must_be_there(folder, part):
    (folder / part).rename(folder.parent / "gone")
    with pytest.raises(FileNotFoundError, match=part):
        load(folder)


def test_an_autoencoder_of_other_latents_is_refused_by_name(pipe):
    other = tiny_latent_pipeline("autoencoder.model.latent_channels=8")
    with pytest.raises(ValueError, match="in_channels=4, the autoencoder's latents have latent_ch"):
        TextToImage(pipe.unet, pipe.text_encoder, pipe.tokenizer, pipe.scheduler, other.vae)


# ---- latents and pictures ----

def test_steps_are_of_latents_and_are_decoded_when_asked(pipe):
    step = next(pipe.steps(PROMPTS, steps=2, seed=5))
    assert step.x_t.shape == (2, 4, 4, 4)
    assert step.x_t.tobytes() == normal((4, 4, 4), 5, "x_T", 0, range(2)).tobytes()
    shown = pipe.decoded(step)
    for name in ("x_t", "x0_hat", "x_s"):
        picture = getattr(shown, name)
        assert picture.shape == (2, 3, 16, 16) and picture.dtype == np.float32
        np.testing.assert_allclose(picture, pipe.vae.to_pictures(getattr(step, name)), rtol=0,
                                   atol=1e-5)
    assert shown.t == step.t and shown.eps_hat is step.eps_hat


def test_a_call_returns_the_decoded_picture(pipe):
    image = pipe("red heart", steps=2)
    *_, last = pipe.steps("red heart", steps=2)
    pixels = np.clip(pipe.decode(last.x_s)[0] * 127.5 + 127.5, 0, 255).round().astype(np.uint8)
    assert image.size == (16, 16) and image.tobytes() == pixels.transpose(1, 2, 0).tobytes()


def test_decoding_divides_by_the_scaling_factor(pipe):
    z = normal((4, 4, 4), 0, "test", pictures=range(2))
    scale = pipe.vae.config["scaling_factor"]
    assert scale != 1
    np.testing.assert_allclose(pipe.decode(z), pipe.vae.decode(z / np.float32(scale)), atol=1e-5)


def test_on_pixels_there_is_nothing_to_decode():
    pixels = tiny_pipeline()
    step = next(pixels.steps("red heart", steps=2))
    assert pixels.decode(step.x_s) is step.x_s and pixels.decoded(step) is step


def test_a_strip_shows_decoded_steps(pipe):
    strip = denoising_strip([pipe.decoded(s) for s in pipe.steps("red heart", steps=3)], scale=1)
    assert strip.mode == "RGB" and strip.width > 4 * 16
