"""Our CLIP is transformers' CLIPModel, its image half CLIPVisionModelWithProjection.

What transformers computes for the configurations of clip_configs.py is committed (made by
reference/make_clip.py); where torch and transformers are installed it is computed afresh too,
and models travel in both directions as files.  Tolerances are relative to the largest entry of
the array compared: 1e-9 in float64, 1e-5 in float32 (on the kernels that are in use).
"""
import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from clip_configs import CASES, cotangents, ids, pictures, weight
from gradients import assert_direction
from unet_configs import checksum

from tinydiff.cross_entropy import contrastive
from tinydiff.models import CLIP, CLIPText, CLIPVision
from tinydiff.nn import Tape

FOLDER = Path(__file__).parent / "reference" / "clip"
PROJECTED = ["CLIPVisionModelWithProjection"]

each_case = pytest.mark.parametrize("name", CASES)


def committed(name):
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def filled(model, dtype=np.float64):
    return model.load_state({name: weight(name, p.shape) for name, p in model.parameters()}, dtype)


def ours(case, dtype=np.float64):
    return filled(CLIP(text_config=case.text, vision_config=case.vision,
                       projection_dim=case.projection_dim), dtype)


def our_vision(case, dtype=np.float64):
    return filled(CLIPVision(**case.vision, projection_dim=case.projection_dim,
                             architectures=PROJECTED), dtype)


def assert_near(got, want, rtol, what):
    assert got.dtype == want.dtype, f"{what}: {got.dtype}, expected {want.dtype}"
    assert got.shape == want.shape, f"{what}: {got.shape}, expected {want.shape}"
    error = np.abs(got - want).max() / np.abs(want).max()
    assert error < rtol, f"{what}: relative error {error:.1e} (tolerance {rtol:.0e})"


def assert_parity(case, want):
    """Compare names, shapes, outputs, loss and all gradients of the joined model."""
    single = ours(case, np.float32).forward(pictures(case).astype(np.float32), ids(case))
    clip, tape = ours(case), Tape()
    assert {name: list(p.shape) for name, p in clip.parameters()} == json.loads(str(want["shapes"]))
    pairs = clip.forward(pictures(case), ids(case), tape)
    for key, value in pairs._asdict().items():
        assert_near(value, want[key], 1e-9, key)
        assert_near(getattr(single, key), want[f"{key}32"], 1e-5, f"{key}, float32")

    loss, dimage, dtext, dlogit_scale = contrastive(*pairs, float(clip.logit_scale.value))
    assert loss == pytest.approx(float(want["loss"]), abs=1e-12)
    clip.backward(dimage, dtext, tape)
    clip.logit_scale.accumulate(np.array(dlogit_scale))
    grads = {name: p.grad for name, p in clip.parameters()}
    # The gradient of a key's bias is zero in theory: softmax ignores a common shift.
    floor = 1e-6 * want["norms"].max()
    for name, sum_, norm in zip(json.loads(str(want["shapes"])), want["checksums"],
                                want["norms"], strict=True):
        error = abs(checksum(name, grads[name]) - sum_) / (norm + floor)
        assert error < 1e-8, f"d {name}: relative error {error:.1e}"


def assert_vision_parity(case, want):
    """Compare the image half's three outputs, and their gradient in the pictures."""
    vision, tape = our_vision(case), Tape()
    encoding = vision.forward(pictures(case), tape)
    d_pictures = vision.backward(*cotangents(case).values(), tape=tape)
    assert not tape.stack
    for key, value in (encoding._asdict() | {"d_pictures": d_pictures}).items():
        assert_near(value, want[key], 1e-9, key)


@each_case
def test_clip_is_transformers(name):
    assert_parity(CASES[name], committed(name))


@each_case
def test_the_image_encoder_is_transformers(name):
    assert_vision_parity(CASES[name], committed(name))


def test_the_cases_move_every_field_of_the_image_encoder():
    from tinydiff.models.clip_vision import SUPPORTED
    for field in SUPPORTED.keys() - {"architectures", "projection_dim"}:
        values = {str(case.vision.get(field, "default")) for case in CASES.values()}
        assert len(values) > 1, f"{field} is the same in every case"


@pytest.fixture
def live():
    """Return the module that runs transformers; other people's warnings are not our errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("torch")
        pytest.importorskip("transformers")
        from reference import make_clip
        yield make_clip


@each_case
def test_clip_is_transformers_live(name, live):
    want = live.reference(CASES[name])
    assert_parity(CASES[name], want)
    assert_vision_parity(CASES[name], want)


@each_case
def test_a_clip_saved_here_opens_in_transformers(name, live, tmp_path):
    import transformers

    case, want = CASES[name], committed(name)
    clip = ours(case, np.float32)
    clip.save_pretrained(tmp_path)
    theirs, info = transformers.CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for key, value in live.run(theirs.eval(), case).items():
        assert_near(value.detach().numpy(), np.float32(want[key]), 1e-5, key)

    clip.vision.save_pretrained(tmp_path / "image_encoder")
    theirs, info = transformers.CLIPVisionModelWithProjection.from_pretrained(
        tmp_path / "image_encoder", output_loading_info=True)
    assert not any(info.values()), info
    pooled = live.run_vision(theirs.eval(), case)["pooled"]
    assert_near(pooled.detach().numpy(), np.float32(want["pooled"]), 1e-5, "pooled")


@each_case
def test_a_clip_saved_by_transformers_opens_here(name, live, tmp_path):
    import torch

    case, want = CASES[name], committed(name)
    live.build(case, torch.float32).save_pretrained(tmp_path / "clip")
    pairs = CLIP.from_pretrained(tmp_path / "clip").forward(
        pictures(case).astype(np.float32), ids(case))
    for key, value in pairs._asdict().items():
        assert_near(value, want[f"{key}32"], 1e-5, key)
    live.build(case, torch.float32).vision_model.save_pretrained(tmp_path / "vision")
    encoding = CLIPVision.from_pretrained(tmp_path / "vision").forward(
        pictures(case).astype(np.float32))
    assert_near(encoding.hidden, np.float32(want["hidden"]), 1e-5, "hidden")


def test_the_text_half_is_a_stable_diffusion_text_encoder(live, tmp_path):
    import transformers

    case = CASES["emoji"]
    clip = ours(case, np.float32)
    clip.text.save_pretrained(tmp_path)
    theirs, info = transformers.CLIPTextModelWithProjection.from_pretrained(
        tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    plain = transformers.CLIPTextModel.from_pretrained(tmp_path).eval()
    import torch
    with torch.no_grad():
        tokens = torch.from_numpy(ids(case))
        hidden, pooled = plain(tokens).last_hidden_state, theirs.eval()(tokens).text_embeds
    encoding = CLIPText.from_pretrained(tmp_path).forward(ids(case))
    assert_near(hidden.numpy(), encoding.hidden, 1e-5, "hidden")
    assert_near(pooled.numpy(), encoding.pooled, 1e-5, "pooled")


# ---- gradients ----

@each_case
def test_every_gradient_of_the_image_encoder_is_the_derivative_along_a_random_direction(name):
    case = CASES[name]
    vision, tape = our_vision(case), Tape()
    x = pictures(case)
    vision.forward(x, tape)
    dx = vision.backward(*cotangents(case).values(), tape=tape)
    dy = np.concatenate([d.ravel() for d in cotangents(case).values()])
    assert_direction(lambda: np.concatenate([y.ravel() for y in vision.forward(x)]),
                     {"x": x} | {n: p.value for n, p in vision.parameters()}, dy,
                     np.random.default_rng(0),
                     x=dx, **{n: p.grad for n, p in vision.parameters()})


def test_outputs_that_were_not_used_count_as_zero_and_frozen_weights_take_no_gradient():
    case = CASES["published"]
    for name, d in cotangents(case).items():
        full, part = our_vision(case), our_vision(case)
        dx = []
        for vision, ds in ((full, {k: d * (k == name) for k, d in cotangents(case).items()}),
                           (part, dict.fromkeys(cotangents(case)) | {name: d})):
            tape = Tape()
            vision.forward(pictures(case), tape)
            dx.append(vision.backward(*ds.values(), tape=tape))
        np.testing.assert_allclose(dx[0], dx[1], rtol=1e-11, atol=1e-12)
        for (path, p), (_, q) in zip(full.parameters(), part.parameters(), strict=True):
            np.testing.assert_allclose(q.grad, p.grad, rtol=1e-11, atol=1e-12, err_msg=path)

    frozen, tape = our_vision(case).freeze(), Tape()
    frozen.forward(pictures(case), tape)
    np.testing.assert_allclose(frozen.backward(*ds.values(), tape=tape), dx[1], rtol=1e-12)
    assert all(p.grad is None for _, p in frozen.parameters())
    tape = Tape()
    part.forward(pictures(case), tape)
    assert part.backward(*ds.values(), tape=tape, needs_dx=False) is None


def test_pictures_of_a_batch_do_not_meet():
    case = CASES["published"]
    together = our_vision(case).forward(pictures(case)).pooled
    for i in range(len(together)):
        alone = our_vision(case).forward(pictures(case)[i:i + 1]).pooled
        np.testing.assert_allclose(alone[0], together[i], rtol=0, atol=1e-12)


@pytest.mark.parametrize("field, value", [
    ("hidden_act", "gelu_42"), ("architectures", ["ViT"]), ("num_attention_heads", 5),
    ("num_hidden_layers", 0), ("patch_size", [4, 4]), ("image_size", 10), ("model_type", "vit"),
    ("hiden_size", 16)])
def test_an_unsupported_field_or_value_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"\b{field}\b") as error:
        CLIPVision(**CASES["emoji"].vision | {field: value})
    assert "\n" not in str(error.value)


def test_a_picture_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"\(3, 16, 16\): this image encoder takes \(3, 12, 12\)"):
        our_vision(CASES["emoji"]).forward(np.zeros((1, 3, 16, 16)))


def test_attention_dropout_is_refused_only_where_it_would_act():
    vision = our_vision(CASES["deep"])
    vision.forward(pictures(CASES["deep"]), Tape())
    with pytest.raises(ValueError, match="attention_dropout"):
        vision.forward(pictures(CASES["deep"]), Tape(np.random.Generator(np.random.Philox(0))))


VIT_L_14 = {                            # openai/clip-vit-large-patch14, the image half
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 224, "patch_size": 14, "projection_dim": 768,
    "architectures": PROJECTED,
}


def test_a_published_size_is_built_without_taking_memory():
    vision = CLIPVision(**VIT_L_14)
    assert vision.count() == 303_966_208
    assert all(p.value is None for _, p in vision.parameters())


def test_the_initial_spread_is_the_published_one():
    D = 64
    vision = CLIPVision(hidden_size=D, intermediate_size=128, num_attention_heads=4,
                        num_hidden_layers=2, image_size=64, patch_size=4, projection_dim=80,
                        initializer_range=0.05, initializer_factor=2.0,
                        architectures=PROJECTED).initialise(seed=0)
    spread = {"class_embedding": 2 * D**-0.5, "patch_embedding": 0.1, "position_embedding": 0.1,
              "visual_projection": 2 * D**-0.5}
    for name, p in vision.parameters():
        part = next((part for part in spread if part in name), None)
        if part:
            sem = (2 * p.value.size) ** -0.5
            assert abs(p.value.std() / spread[part] - 1) < 5 * sem, name


def published(**fields):
    """Return one half of openai/clip-vit-base-patch32's config.json, by transformers 4.16."""
    no = ("add_cross_attention do_sample early_stopping is_decoder is_encoder_decoder "
          "output_attentions output_hidden_states output_scores remove_invalid_values "
          "return_dict_in_generate tie_encoder_decoder torchscript use_bfloat16")
    nothing = ("architectures bad_words_ids bos_token_id cross_attention_hidden_size "
               "decoder_start_token_id eos_token_id finetuning_task forced_bos_token_id "
               "forced_eos_token_id pad_token_id prefix problem_type sep_token_id "
               "task_specific_params tokenizer_class torch_dtype")
    return {
        "_name_or_path": "", **dict.fromkeys(no.split(), False), **dict.fromkeys(nothing.split()),
        "attention_dropout": 0.0, "chunk_size_feed_forward": 0, "diversity_penalty": 0.0,
        "dropout": 0.0, "encoder_no_repeat_ngram_size": 0, "hidden_act": "quick_gelu",
        "id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "initializer_factor": 1.0,
        "initializer_range": 0.02, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
        "layer_norm_eps": 1e-05, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
        "no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_hidden_layers": 12,
        "num_return_sequences": 1, "projection_dim": 512, "pruned_heads": {},
        "repetition_penalty": 1.0, "return_dict": True, "temperature": 1.0,
        "tie_word_embeddings": True, "top_k": 50, "top_p": 1.0,
        "transformers_version": "4.16.0.dev0", **fields}


VIT_B_32 = {
    "_name_or_path": "openai/clip-vit-base-patch32", "architectures": ["CLIPModel"],
    "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "clip",
    "projection_dim": 512, "text_config_dict": None, "vision_config_dict": None,
    "transformers_version": None, "torch_dtype": "float32",
    "text_config": published(
        bos_token_id=0, eos_token_id=2, pad_token_id=1, hidden_size=512, intermediate_size=2048,
        max_position_embeddings=77, model_type="clip_text_model", num_attention_heads=8,
        vocab_size=49408),
    "vision_config": published(
        hidden_size=768, image_size=224, intermediate_size=3072, model_type="clip_vision_model",
        num_attention_heads=12, patch_size=32),
}


def test_a_published_config_is_read_whole():
    clip = CLIP(**VIT_B_32)
    assert clip.count() == 151_277_313
    assert clip.text.config["eos_token_id"] == 2 and clip.vision.config["patch_size"] == 32


@pytest.mark.parametrize("field, value", [("is_decoder", True), ("pruned_heads", {"0": [1]})])
def test_what_every_model_has_is_refused_at_another_value(field, value):
    changed = VIT_B_32["vision_config"] | {field: value}
    with pytest.raises(ValueError, match=rf"\b{field}\b"):
        CLIP(**VIT_B_32 | {"vision_config": changed})
