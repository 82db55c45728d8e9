"""Claims: editing starts from the picture it is given, keeps what it is told to keep, and goes from
one prompt or seed to the other; from Python and from the command line.
"""
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_pipeline

from tinydiff.cli import main
from tinydiff.commands.edit import read_mask
from tinydiff.pipelines.edit import completed, image_to_image, inpaint, interpolate

PROMPT = "red heart, noto style"
PIPE = tiny_pipeline()
S = PIPE.size
X = np.random.default_rng(0).uniform(-1, 1, (2, 3, S, S)).astype(np.float32)
MASK = np.zeros((S, S), np.float32)
MASK[:, : S // 2] = 1


def last(walk):
    *_, step = walk
    return step


def test_little_strength_keeps_the_picture_and_much_forgets_it():
    apart = {}
    for strength in (0.05, 1.0):
        walk = list(image_to_image(PIPE, X, PROMPT, strength=strength, steps=20, guidance=1.0))
        assert len(walk) == max(1, round(20 * strength))
        apart[strength] = np.abs(walk[0].x_t - X).mean()
    assert apart[0.05] < 0.2 < apart[1.0]


def test_full_strength_walks_from_the_noise_of_the_seed():
    """At t = 1000 of this schedule nothing of the picture is left: it is generation."""
    drawn = last(image_to_image(PIPE, X, PROMPT, strength=1.0, steps=5, seed=3)).x_s
    plain = last(PIPE.steps(PROMPT, count=2, steps=5, seed=3)).x_s
    np.testing.assert_allclose(drawn, plain, atol=0.05)


def test_inpainting_keeps_the_known_pixels_exactly():
    step = last(inpaint(PIPE, X, MASK, PROMPT, steps=5, repeat=2))
    done = completed(PIPE, step, X, MASK)
    np.testing.assert_array_equal(done[..., : S // 2], X[..., : S // 2])
    assert np.abs(done[..., S // 2:] - X[..., S // 2:]).max() > 0.1
    assert done.dtype == np.float32


def test_interpolation_meets_both_ends():
    step = last(interpolate(PIPE, PROMPT, "blue square, noto style", frames=3, seed=0, to_seed=5,
                            steps=4))
    first = last(PIPE.steps(PROMPT, steps=4, seed=0)).x_s
    end = last(PIPE.steps("blue square, noto style", steps=4, seed=5)).x_s
    np.testing.assert_allclose(step.x_s[[0, 2]], np.concatenate([first, end]), atol=1e-4)
    assert np.abs(step.x_s[1] - step.x_s[0]).max() > 1e-3


def test_rescale_and_interval_change_a_guided_walk():
    plain = last(PIPE.steps(PROMPT, steps=6, guidance=4.0)).x_s
    rescaled = last(PIPE.steps(PROMPT, steps=6, guidance=4.0, rescale=0.7)).x_s
    never = last(PIPE.steps(PROMPT, steps=6, guidance=4.0, interval=(1e-9, 2e-9))).x_s
    always = last(PIPE.steps(PROMPT, steps=6, guidance=4.0, interval=(0.0, np.inf))).x_s
    followed = last(PIPE.steps(PROMPT, steps=6, guidance=1.0)).x_s
    assert np.abs(rescaled - plain).max() > 1e-4
    np.testing.assert_array_equal(always, plain)
    np.testing.assert_allclose(never, followed, atol=1e-6)


@pytest.mark.parametrize("call, message", [
    (lambda: image_to_image(PIPE, X[:, :, 1:], PROMPT), "this model draws"),
    (lambda: image_to_image(PIPE, X, [PROMPT] * 3), "3 prompts for 2 pictures"),
    (lambda: image_to_image(PIPE, X, PROMPT, strength=0), "strength=0"),
    (lambda: image_to_image(PIPE, X, PROMPT, sampler="plms"), "unknown sampler"),
    (lambda: inpaint(PIPE, X, MASK[1:], PROMPT), "the same size is needed"),
    (lambda: next(inpaint(PIPE, X, MASK, PROMPT, repeat=0)), "repeat=0"),
    (lambda: interpolate(PIPE, PROMPT, "", frames=3), "the prompt is empty"),
    (lambda: interpolate(PIPE, PROMPT, PROMPT, frames=1), "frames=1"),
    (lambda: PIPE.steps(PROMPT, interval=(3.0, 1.0)), "guidance interval"),
    (lambda: next(PIPE.steps(PROMPT, rescale=2.0)), "guidance rescale 2.0"),
])
def test_bad_input_is_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# ---- the command line ----


@pytest.fixture
def files(tmp_path):
    """Return a folder with a tiny model, a picture and a mask."""
    PIPE.save_pretrained(tmp_path / "model")
    pixels = ((X[0].transpose(1, 2, 0) + 1) * 127.5).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    Image.fromarray(((1 - MASK) * 255).astype(np.uint8)).save(tmp_path / "mask.png")
    Image.new("L", (50, 30)).save(tmp_path / "wide.png")
    (tmp_path / "text.png").write_text("no picture")
    return tmp_path


def test_a_picture_is_edited_and_inpainted(files):
    common = [PROMPT, "--model", str(files / "model"), "--image", str(files / "picture.png"),
              "--steps", "3", "--scale", "1"]
    main(["edit", *common, "--count", "2", "--out", str(files / "edited.png")])
    with Image.open(files / "edited.png") as edited:
        assert edited.width > 2 * S
    main(["edit", *common, "--mask", str(files / "mask.png"), "--out", str(files / "filled.png")])
    with Image.open(files / "filled.png") as filled, Image.open(files / "picture.png") as before:
        left = lambda image: np.asarray(image)[:S, -S:][:, : S // 2]
        inside = np.asarray(filled.convert("RGB"))
        gap = (inside.shape[0] - S) // 2
        kept = inside[gap:gap + S, gap:gap + S // 2]
        assert np.abs(kept.astype(int) - left(before.convert("RGB"))).max() <= 1


def test_a_mask_is_cut_to_the_same_square_as_its_picture(tmp_path):
    """Of a wide picture the middle is drawn, and of its mask: not the whole, squeezed."""
    wide = np.zeros((40, 100), np.uint8)
    wide[:, 30:50] = 255                               # left half of the middle square: new
    Image.fromarray(wide).save(tmp_path / "mask.png")
    mask = read_mask(tmp_path / "mask.png", Image.new("RGB", (100, 40)), 20)
    np.testing.assert_array_equal(mask, np.repeat([[0.0, 1.0]], 10, axis=1).repeat(20, axis=0))
    alpha = Image.new("RGBA", (100, 40))               # transparent counts as white
    alpha.save(tmp_path / "alpha.png")
    assert (read_mask(tmp_path / "alpha.png", alpha, 20) == 0).all()


def test_frames_become_a_sheet_or_a_moving_picture(files):
    common = [PROMPT, "blue square, noto style", "--model", str(files / "model"), "--steps", "2",
              "--frames", "3", "--scale", "1"]
    main(["interpolate", *common, "--out", str(files / "sheet.png")])
    main(["interpolate", *common, "--to-seed", "4", "--out", str(files / "there.gif")])
    with Image.open(files / "there.gif") as moving:
        assert 3 <= moving.n_frames <= 5 and moving.size == (S, S)     # equal ones are merged


@pytest.mark.parametrize("arguments, message", [
    (["edit", PROMPT, "--image", "nowhere.png"], "nowhere.png: no such picture"),
    (["edit", PROMPT, "--image", "FILES/picture.png", "--mask", "nowhere.png"], "no such picture"),
    (["edit", PROMPT, "--image", "FILES/picture.png", "--mask", "FILES/wide.png"],
     f"wide.png: the mask has 50 x 30 pixels, the picture {S} x {S}: the same are needed"),
    (["edit", PROMPT, "--image", "FILES/picture.png", "--mask", "FILES/text.png"],
     "text.png: not a readable picture"),
    (["edit", PROMPT, "--image", "FILES/picture.png", "--strength", "2"], "strength=2.0"),
    (["edit", PROMPT, "--image", "FILES/picture.png", "--repeat", "3"], "needs --mask"),
    (["edit", PROMPT, "--image", "FILES/picture.png", "--out", "x.txt"], "not a picture's name"),
    (["interpolate", PROMPT, PROMPT, "--frames", "1"], "frames=1"),
    (["interpolate", PROMPT, " "], "the prompt is empty"),
])
def test_every_fault_is_one_line(files, capsys, arguments, message):
    filled = [word.replace("FILES", str(files)) for word in arguments]
    with pytest.raises(SystemExit) as stopped:
        main([*filled, "--model", str(files / "model"), "--steps", "2"])
    said = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and message in said[-1]
    assert not any("Traceback" in line for line in said)
