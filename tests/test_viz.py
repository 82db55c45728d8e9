"""Strips and curves show what they were given: the right pictures, in order, nothing covered up."""
import subprocess
import sys

import numpy as np
import pytest

from tinydiff.backends import normal
from tinydiff.diffusion import Level, q_sample
from tinydiff.grids import levels
from tinydiff.pictures import to_image
from tinydiff.samplers import ddim_sample
from tinydiff.schedules import Schedule
from tinydiff.viz import denoising_strip, forward_strip, schedule_curves, training_curve
from tinydiff.viz.curves import read_log, running_mean
from tinydiff.viz.strips import GAP

SCHEDULE = Schedule.make("linear", T=100)


def sampled(n, shape=(2, 3, 16, 16), grid=None):
    """Take `n` steps towards half of every sample: no two pictures are alike."""
    x_T = normal(shape[1:], 0, "x_T", pictures=range(shape[0]))
    denoise = lambda x_t, t: (x_t / 2, (x_t - t.signal * x_t / 2) / t.noise)
    return list(ddim_sample(denoise, x_T, grid or levels(SCHEDULE, n)))


def pixels(image):
    return np.asarray(image.convert("RGB"))


def cut(image, k, columns, row, side=64):
    """Cut frame `k` of `columns` out of a strip whose captions are narrower than its frames."""
    right = image.size[0] - (columns - 1 - k) * (side + GAP) - GAP
    top = GAP + row * (side + GAP)
    return pixels(image)[top:top + side, right - side:right]


def frame(x, scale=4):
    return pixels(to_image(x, scale))


def is_white(part):
    return bool((part == 255).all())


# ---- the denoising strip ----


def test_a_strip_runs_from_pure_noise_to_the_picture():
    steps = sampled(8)
    strip = denoising_strip(steps, frames=5)
    assert np.array_equal(cut(strip, 0, 5, 0), frame(steps[0].x_t[0]))
    for k in (1, 2, 3):
        assert np.array_equal(cut(strip, k, 5, 0), frame(steps[2 * k].x_t[0]))
    assert np.array_equal(cut(strip, 4, 5, 0), frame(steps[-1].x_s[0]))


def test_the_second_row_is_what_the_model_sees_in_the_first():
    steps = sampled(8)
    strip = denoising_strip(steps, frames=5)
    for k in range(4):
        assert np.array_equal(cut(strip, k, 5, 1), frame(steps[2 * k].x0_hat[0]))
    assert np.array_equal(cut(strip, 4, 5, 1), frame(steps[-1].x_s[0]))


def test_a_strip_that_ends_in_noise_claims_no_clean_picture_there():
    steps = sampled(8)[:4]
    strip = denoising_strip(steps, frames=5)
    assert np.array_equal(cut(strip, 4, 5, 0), frame(steps[-1].x_s[0]))
    assert is_white(cut(strip, 4, 5, 1))


def test_the_size_of_a_strip_follows_frames_rows_and_scale():
    steps = sampled(8)
    one, two = denoising_strip(steps, x0=False), denoising_strip(steps)
    assert one.size[0] == GAP + 9 * (64 + GAP)
    assert two.size[1] - one.size[1] == 64 + GAP
    assert denoising_strip(steps, frames=3, x0=False).size == (GAP + 3 * (64 + GAP), one.size[1])
    assert denoising_strip(steps, x0=False, scale=8).size[0] == GAP + 9 * (128 + GAP)


def test_one_step_makes_two_frames():
    steps = sampled(1)
    strip = denoising_strip(steps)
    assert np.array_equal(cut(strip, 0, 2, 0), frame(steps[0].x_t[0]))
    assert np.array_equal(cut(strip, 1, 2, 0), frame(steps[0].x_s[0]))
    assert np.array_equal(cut(strip, 0, 2, 1), frame(steps[0].x0_hat[0]))
    assert denoising_strip(steps, x0=False).size[0] == GAP + 2 * (64 + GAP)


def test_another_picture_of_the_batch_can_be_shown():
    steps = sampled(3)
    strip = denoising_strip(steps, picture=1)
    assert np.array_equal(cut(strip, 3, 4, 0), frame(steps[-1].x_s[1]))


def test_grey_pictures_make_a_strip_too():
    steps = sampled(3, shape=(1, 1, 16, 16))
    strip = denoising_strip(steps)
    assert np.array_equal(cut(strip, 0, 4, 0), frame(steps[0].x_t[0]))


def test_an_iterator_of_steps_is_as_good_as_a_list():
    steps = sampled(3)
    assert np.array_equal(pixels(denoising_strip(iter(steps))), pixels(denoising_strip(steps)))


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_captions_stand_under_their_frames_and_do_not_touch(scale):
    strip = denoising_strip(sampled(4), frames=5, scale=scale, x0=False)
    below = pixels(strip)[GAP + 16 * scale:]
    cell = (strip.size[0] - GAP) // 5 - GAP
    for k in range(5):
        left = GAP + k * (cell + GAP)
        assert (below[:, left:left + cell] < 128).any()
        assert is_white(pixels(strip)[:, left + cell:left + cell + GAP])
    assert is_white(pixels(strip)[:, :GAP])
    assert is_white(below[-1]), "the captions are not cut off"


def test_the_caption_tells_the_time():
    early, late = (denoising_strip(sampled(1, grid=[SCHEDULE.level(t), Level(0.0, 1.0, 0.0)]),
                                   x0=False) for t in (100, 50))
    below = GAP + 64
    assert not np.array_equal(pixels(early)[below:, :GAP + 64], pixels(late)[below:, :GAP + 64])
    assert np.array_equal(pixels(early)[below:, GAP + 64:], pixels(late)[below:, GAP + 64:])


@pytest.mark.parametrize(("steps", "options", "message"), [
    (0, {}, "needs the steps"),
    (2, {"frames": 1}, "frames=1: at least 2"),
    (2, {"picture": 2}, "picture=2: the steps hold pictures 0 to 1"),
    (2, {"picture": -1}, "picture=-1"),
])
def test_a_strip_names_what_is_wrong(steps, options, message):
    with pytest.raises(ValueError, match=message):
        denoising_strip(sampled(steps) if steps else [], **options)


# ---- the forward strip ----


def test_a_forward_strip_starts_with_the_picture_and_mixes_in_one_noise():
    x0 = np.tanh(normal((3, 16, 16), 0, "a picture"))[0]
    strip = forward_strip(x0, SCHEDULE, [0, 10, 100], seed=3)
    eps = normal(x0.shape, 3, "forward strip")[0]
    assert np.array_equal(cut(strip, 0, 3, 0), frame(x0))
    for k, t in ((1, 10), (2, 100)):
        level = SCHEDULE.level(t)
        assert np.array_equal(cut(strip, k, 3, 0),
                              frame(q_sample(x0, eps, level.signal, level.noise)))
    assert not np.array_equal(pixels(strip), pixels(forward_strip(x0, SCHEDULE, [0, 10, 100])))


def test_a_forward_strip_names_what_is_wrong():
    x0 = np.zeros((3, 16, 16), np.float32)
    with pytest.raises(ValueError, match=r"one picture \(C, H, W\)"):
        forward_strip(x0[None], SCHEDULE, [0])
    with pytest.raises(ValueError, match="at least one time"):
        forward_strip(x0, SCHEDULE, [])
    with pytest.raises(ValueError, match="outside this schedule's range"):
        forward_strip(x0, SCHEDULE, [101])


# ---- curves ----


def write_log(path, n=60, loss=lambda k: 1 / (k + 1)):
    lines = ["step,loss,grad_norm,lr,seconds"]
    lines += [f"{k + 1},{loss(k):.6f},1.0,{1e-3 * (n - k) / n:.3e},0.5" for k in range(n)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_training_curve_shows_the_log(tmp_path):
    falling = training_curve(write_log(tmp_path / "a.csv"), tmp_path / "curve.png")
    flat = training_curve(write_log(tmp_path / "b.csv", loss=lambda k: 0.5))
    assert (tmp_path / "curve.png").stat().st_size > 0
    assert falling.size == flat.size
    assert not is_white(pixels(falling))
    half = falling.size[1] // 2
    assert not np.array_equal(pixels(falling)[:half], pixels(flat)[:half])


def test_legs_are_drawn_one_after_the_other(tmp_path):
    """Each has its own colour, and the second begins where the first ends."""
    legs = [write_log(tmp_path / "1.csv", 40), write_log(tmp_path / "2.csv", 60)]
    drawn = np.asarray(training_curve(legs).convert("RGB")).astype(int)
    first, second = (np.abs(drawn - colour).sum(axis=2) < 12
                     for colour in ((0x00, 0x72, 0xB2), (0x00, 0x9E, 0x73)))
    inside = slice(len(drawn) // 3, 2 * len(drawn) // 3)              # below the legend
    columns = [np.flatnonzero(mask[inside].any(axis=0)) for mask in (first, second)]
    assert columns[0].max() <= columns[1].min()
    np.testing.assert_array_equal(*(pixels(training_curve(log)) for log in (legs[0], legs[:1])))


def test_a_training_curve_of_one_step_is_drawn(tmp_path):
    assert not is_white(pixels(training_curve(write_log(tmp_path / "log.csv", n=1))))


def test_a_log_reads_as_its_columns(tmp_path):
    log = read_log(write_log(tmp_path / "log.csv", n=3))
    np.testing.assert_allclose(log["step"], [1, 2, 3])
    np.testing.assert_allclose(log["loss"], [1, 1 / 2, 1 / 3], atol=1e-6)


@pytest.mark.parametrize(("text", "message"), [
    ("", "no column 'step'"),
    ("step,loss\n1,0.5\n", "no column 'lr'"),
    ("step,loss,lr\n", "no step is logged"),
    ("step,loss,lr\n1,0.5\n2,0.5,1e-3\n", "not a table of numbers with 3 columns"),
    ("step,loss,lr\n1,none,1e-3\n", "not a table of numbers with 3 columns"),
])
def test_a_damaged_log_is_named(tmp_path, text, message):
    (tmp_path / "log.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"log\.csv: .*{message}"):
        training_curve(tmp_path / "log.csv")
    with pytest.raises(FileNotFoundError, match=r"absent\.csv"):
        training_curve(tmp_path / "absent.csv")


@pytest.mark.parametrize("window", [1, 2, 5, 9, 100])
def test_the_running_mean_is_the_mean_of_the_neighbours_there_are(window):
    y = np.random.default_rng(0).normal(size=9)
    w = min(window, 9)
    want = [y[max(0, i - w // 2):i + (w - 1) // 2 + 1].mean() for i in range(9)]
    np.testing.assert_allclose(running_mean(y, window), want)


def test_schedule_curves_take_any_table(tmp_path):
    ends_at_zero = Schedule(np.linspace(1, 0, 11))
    image = schedule_curves({"linear": SCHEDULE, "to zero": ends_at_zero}, tmp_path / "c.svg")
    assert not is_white(pixels(image))
    assert (tmp_path / "c.svg").read_text(encoding="utf-8").startswith("<?xml")
    alone = schedule_curves({"linear": SCHEDULE})
    assert image.size == alone.size
    assert not np.array_equal(pixels(image), pixels(alone))
    with pytest.raises(ValueError, match="at least one schedule"):
        schedule_curves({})


def test_matplotlib_waits_until_a_curve_is_drawn():
    code = "import sys, tinydiff.viz; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
