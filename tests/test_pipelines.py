"""From a prompt to a picture: any prompt draws, a seed's picture is its own, files keep it."""
import json
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_pipeline

from tinydiff.backends import normal
from tinydiff.grids import levels
from tinydiff.guidance import classifier_free
from tinydiff.jsonfile import read_json, write_json
from tinydiff.pipelines import Denoiser, TextToImage, guided, load
from tinydiff.pipelines.denoiser import network_timestep
from tinydiff.samplers import SAMPLERS
from tinydiff.schedules import Schedule

PROMPT = "red heart, noto style"


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def final(pipe, prompt=PROMPT, steps=3, **options):
    """Return the last step's pictures, (B, C, H, W)."""
    *_, last = pipe.steps(prompt, steps=steps, **options)
    return last.x_s


# ---- files ----

def test_a_saved_model_draws_the_same_bits(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model", dtype="float32")
    again = TextToImage.from_pretrained(tmp_path / "model")
    for sampler in SAMPLERS.keys() - {"flow"}:          # its line is not this model's schedule
        a, b = (final(p, sampler=sampler, count=2) for p in (pipe, again))
        assert a.tobytes() == b.tobytes(), sampler
    assert again.scheduler.to_config() == pipe.scheduler.to_config()


def test_a_model_saved_in_half_precision_draws_nearly_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")                          # float16: what is shipped
    again = load(tmp_path / "model")
    assert {p.value.dtype.name for _, p in again.unet.parameters()} == {"float32"}
    difference = np.abs(final(again) - final(pipe)).max()
    assert 0 < difference < 0.1
    halves = [(tmp_path / d / "model" / "unet" / "diffusion_pytorch_model.safetensors")
              for d in ("", "32")]
    pipe.save_pretrained(tmp_path / "32" / "model", dtype="float32")
    sizes = [file.stat().st_size for file in halves]
    assert abs(sizes[1] - sizes[0] - 2 * pipe.unet.count()) < 2000    # the headers' digits


def test_the_folder_is_the_published_layout(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    files = {str(f.relative_to(tmp_path / "model")) for f in (tmp_path / "model").rglob("*.*")}
    assert files == {
        "model_index.json", "scheduler/scheduler_config.json", "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors", "text_encoder/config.json",
        "text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt",
        "tokenizer/tokenizer_config.json", "tokenizer/special_tokens_map.json"}
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["unet"] == ["diffusers", "UNet2DConditionModel"]


@pytest.mark.parametrize("part", ["unet", "text_encoder", "tokenizer", "scheduler"])
def test_a_part_that_is_missing_is_named(pipe, tmp_path, part):
    pipe.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / part).rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError, match=part) as error:
        load(tmp_path / "model")
    assert "\n" not in str(error.value)


def test_an_index_that_names_no_text_encoder_is_refused(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    index = tmp_path / "model" / "model_index.json"
    index.write_text('{"unet": ["diffusers", "UNet2DConditionModel"]}')
    with pytest.raises(ValueError, match="text_encoder is missing; a text-to-image model has v"):
        load(tmp_path / "model")


def test_a_part_that_is_not_supported_is_refused_and_an_absent_one_is_not(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "model")
    path = tmp_path / "model" / "model_index.json"
    index = read_json(path)
    write_json(path, {**index, "safety_checker": [None, None], "_diffusers_version": "0.30.0"})
    load(tmp_path / "model")
    write_json(path, {**index, "controlnet": ["diffusers", "ControlNetModel"]})
    with pytest.raises(ValueError, match=r"model_index.json: controlnet is not supported"):
        load(tmp_path / "model")


def test_saving_never_deletes_what_is_not_the_models(pipe, tmp_path):
    folder = tmp_path / "model"
    pipe.save_pretrained(folder)
    pipe.save_pretrained(folder)                                      # a model replaces a model
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"also holds thesis\.txt: name a new folder"):
        pipe.save_pretrained(folder)
    assert (folder / "thesis.txt").read_text() == "years of work"


def test_an_unknown_model_is_named():
    with pytest.raises(ValueError, match=r"unknown model 'emojis'; shipped: .*or name a folder"):
        load("emojis")


# ---- seeds ----

def test_the_noise_of_picture_k_is_the_same_bits_alone_and_in_a_batch(pipe):
    batch = next(pipe.steps(PROMPT, steps=3, seed=5, count=4))
    alone = next(pipe.steps(PROMPT, steps=3, seed=5, count=1))
    assert batch.x_t[0].tobytes() == alone.x_t[0].tobytes()
    assert batch.x_t.tobytes() == normal((3, 16, 16), 5, "x_T", 0, range(4)).tobytes()
    assert len({x.tobytes() for x in batch.x_t}) == 4


@pytest.mark.parametrize("options", [{}, {"eta": 1.0}, {"sampler": "ddpm"}])
def test_picture_k_is_the_same_to_rounding_alone_and_in_a_batch(pipe, options):
    batch = final(pipe, count=3, seed=5, **options)
    for k in (0, 1, 2):
        alone = final(pipe, count=k + 1, seed=5, **options)[k]
        np.testing.assert_allclose(batch[k], alone, rtol=0, atol=1e-4)
    assert np.abs(batch[0] - batch[1]).max() > 0.1


def test_a_seed_draws_the_same_bits_twice_and_another_seed_another_picture(pipe):
    a, b, c = (final(pipe, seed=seed, sampler="ddpm") for seed in (3, 3, 4))
    assert a.tobytes() == b.tobytes() and np.abs(a - c).max() > 0.1


# ---- guidance ----

def predictions(pipe, w):
    """Return ``guided(...)``'s answer, the two it mixes, and how many pictures were asked for."""
    x_t = normal((3, 16, 16), 0, "test", pictures=range(2))
    text, null = pipe.encode([PROMPT, "a rocket"]), pipe.encode(["", ""])
    asked, unet = [], pipe.unet

    class Spy:
        def forward(self, x, *rest):
            asked.append(len(x))
            return unet.forward(x, *rest)

    got = guided(Spy(), *((e.hidden, e.pooled) for e in (text, null)), w)(x_t, 499)
    by_text, by_null = (unet.forward(x_t, 499, e.hidden, e.pooled) for e in (text, null))
    return got, by_null, by_text, asked


@pytest.mark.parametrize("w", [-1.0, 0, 0.0, 0.5, 1, 1.0, 4.0])
@pytest.mark.parametrize("pooled", [False, True])
def test_guidance_is_its_formula_for_every_weight(pooled, w):
    got, null, text, asked = predictions(tiny_pipeline(pooled=pooled), w)
    np.testing.assert_allclose(got, classifier_free(null, text, w), rtol=0, atol=1e-4)
    assert got.dtype == np.float32
    assert asked == ([2] if w in (0, 1) else [4])                     # no work without weight
    assert np.abs(text - null).max() > 1e-2


def test_the_prompt_matters_only_with_guidance(pipe):
    def pictures(w):
        return [final(pipe, prompt, guidance=w) for prompt in (PROMPT, "a rocket")]

    ignoring, following = pictures(0), pictures(2.0)
    np.testing.assert_array_equal(*ignoring)
    assert np.abs(following[0] - following[1]).max() > 0.01


# ---- the denoiser ----

@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_the_two_halves_always_add_up_to_the_noisy_picture(kind, clip):
    rng, asked = np.random.default_rng(0), []

    def predict(x_t, timestep):
        asked.append(timestep)
        return 2 * rng.normal(size=x_t.shape)

    denoise = Denoiser(predict, kind, clip)
    grid = levels(Schedule.make("linear"), 10)[:-1]
    for t in grid:
        x_t = rng.normal(size=(2, 3, 4, 4))
        x0_hat, eps_hat = denoise(x_t, t)
        np.testing.assert_allclose(t.signal * x0_hat + t.noise * eps_hat, x_t, rtol=0, atol=1e-11)
        assert clip is None or np.abs(x0_hat).max() <= clip
    assert asked == [t.t - 1 for t in grid]                           # row t is the network's t - 1


def test_clipping_changes_nothing_where_there_is_nothing_to_clip():
    rng = np.random.default_rng(0)
    t, x0, eps = Schedule.make("linear").level(400), rng.uniform(-1, 1, (1, 3, 4, 4)), 0.3
    x_t = t.signal * x0 + t.noise * eps
    for clip in (None, 1.0):
        x0_hat, eps_hat = Denoiser(lambda x_t, timestep: x0, "sample", clip)(x_t, t)
        np.testing.assert_allclose(x0_hat, x0)
        np.testing.assert_allclose(eps_hat, np.full_like(x0, eps))


def test_the_first_row_of_the_table_is_the_networks_timestep_zero():
    schedule = Schedule.make("linear")
    assert network_timestep(schedule.level(1)) == 0
    assert network_timestep(schedule.level(1000)) == 999


# ---- from Python ----

@pytest.mark.parametrize("prompt", [
    "zyxwvut qqq", "❤️", "👩🏽‍🚀🚀", "红色的心", "קלב אדום", "e\u0301\u0323\u200d\ufeff",
    "\x00\x07", "\ud800", "<|endoftext|> <|startoftext|>", "heart " * 500, "A\nB\tC", "'\"\\;--"])
def test_any_text_draws_something(pipe, prompt):
    x = final(pipe, prompt, steps=1)
    assert x.shape == (1, 3, 16, 16) and np.isfinite(x).all() and x.std() > 0.01


@pytest.mark.parametrize("prompt", ["", "  \t\n", [], ["red heart", " "]])
def test_an_empty_prompt_is_refused(pipe, prompt):
    with pytest.raises(ValueError, match="the prompt is empty; describe a picture"):
        pipe.steps(prompt)


@pytest.mark.parametrize("options, message", [
    ({"steps": 0}, "steps=0: an integer from 1 to 1000"),
    ({"steps": 1001}, "steps=1001: an integer from 1 to 1000"),
    ({"steps": 2.5}, "steps=2.5"),
    ({"sampler": "plms"}, "unknown sampler 'plms'; known: ddim, ddpm"),
    ({"spacing": "even"}, "unknown spacing 'even'"),
    ({"seed": -1}, "seed=-1: an integer from 0"),
    ({"seed": 2**64}, "seed=18446744073709551616"),
    ({"count": 0}, "count=0: a whole number from 1"),
    ({"count": 1.5}, "count=1.5: a whole number from 1"),
    ({"prompt": ["a", "b"], "count": 2}, "count is for a single prompt"),
    ({"guidance": float("nan")}, "guidance weight nan: a finite number"),
    ({"guidance": float("inf")}, "guidance weight inf: a finite number"),
    ({"eta": 2.0}, r"eta=2.0 is outside \[0, 1\]"),
    ({"eta": float("nan")}, "eta=nan is outside"),
    ({"sampler": "ddpm", "variance": "huge"}, "unknown variance 'huge'"),
])
def test_what_cannot_be_drawn_is_named(pipe, options, message):
    with pytest.raises(ValueError, match=message) as error:
        final(pipe, **options)
    assert "\n" not in str(error.value)


def test_an_option_of_another_sampler_is_named(pipe):
    with pytest.raises(ValueError, match="'ddpm' has no option 'eta', only variance"):
        final(pipe, sampler="ddpm", eta=1.0)


def test_steps_hand_over_to_each_other_and_end_at_the_picture(pipe):
    steps = list(pipe.steps(PROMPT, steps=4, count=2))
    assert len(steps) == 4 and steps[0].t.t == 1000 and steps[-1].s.t == 0
    for a, b in pairwise(steps):
        assert b.x_t is a.x_s and a.s == b.t
    for step in steps:
        assert {a.dtype.name for a in (step.x_t, step.x0_hat, step.eps_hat, step.x_s)} == {
            "float32"}
        assert np.abs(step.x0_hat).max() <= 1
    np.testing.assert_array_equal(steps[-1].x_s, steps[-1].x0_hat)


def test_one_prompt_gives_one_picture_and_several_a_list(pipe):
    image = pipe(PROMPT, steps=2)
    assert isinstance(image, Image.Image) and image.size == (16, 16) and image.mode == "RGB"
    images = pipe(PROMPT, steps=2, count=2)
    assert len(images) == 2 and images[0].tobytes() == image.tobytes()
    pair = pipe([PROMPT, "a rocket"], steps=2)
    assert len(pair) == 2 and len(pipe([PROMPT], steps=2)) == 1


def test_prompts_of_a_list_are_drawn_as_they_would_be_alone(pipe):
    both = final(pipe, ["a rocket", PROMPT])
    np.testing.assert_allclose(both[:1], final(pipe, "a rocket"), rtol=0, atol=1e-4)


def test_sampling_leaves_no_gradient_and_no_trace(pipe):
    final(pipe)
    for network in (pipe.unet, pipe.text_encoder):
        assert all(p.grad is None for _, p in network.parameters())
