"""Colours against published CIELAB values, shapes against areas counted by hand."""
import numpy as np
import pytest

from tinydiff.datasets import load_emoji
from tinydiff.metrics import colour_distance, drawn, mean_lab, overlap, to_lab
from tinydiff.pictures import from_bytes

PUBLISHED = {                           # of sRGB under D65, to two digits
    (255, 0, 0): (53.24, 80.09, 67.20), (0, 255, 0): (87.73, -86.18, 83.18),
    (0, 0, 255): (32.30, 79.19, -107.86), (255, 255, 0): (97.14, -21.55, 94.48),
    (0, 255, 255): (91.11, -48.09, -14.13), (255, 0, 255): (60.32, 98.23, -60.82),
    (255, 255, 255): (100, 0, 0), (128, 128, 128): (53.59, 0, 0), (0, 0, 0): (0, 0, 0),
}


@pytest.mark.parametrize("rgb, lab", PUBLISHED.items())
def test_colours_have_their_published_values(rgb, lab):
    x = from_bytes(np.array(rgb, np.uint8).reshape(3, 1, 1))
    np.testing.assert_allclose(to_lab(x)[:, 0, 0], lab, atol=0.03)


def test_a_batch_is_converted_as_its_pictures_are():
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (2, 3, 4, 5))
    np.testing.assert_array_equal(to_lab(x)[1], to_lab(x[1]))
    np.testing.assert_array_equal(to_lab(x), to_lab(np.clip(x, -1, 1)))


def test_the_mean_colour_is_that_of_what_is_drawn():
    x = np.ones((1, 3, 8, 8))
    x[0, :, 2:4, 2:6] = np.array([1.0, -1.0, -1.0])[:, None, None]    # a red bar on white
    assert drawn(x).sum() == 8
    np.testing.assert_allclose(mean_lab(x)[0], PUBLISHED[255, 0, 0], atol=0.03)
    np.testing.assert_allclose(mean_lab(np.ones((3, 8, 8))), [100, 0, 0])      # nothing drawn
    faint = np.full((3, 2, 2), 0.95)
    assert not drawn(faint).any()                                     # as good as white


def test_overlap_counts_pixels():
    a, b = np.zeros((2, 6, 6), bool)
    a[:3], b[2:5] = True, True
    assert overlap(a, b) == 6 / 30
    assert overlap(a, a) == 1 and overlap(a, ~a) == 0
    assert overlap(np.zeros_like(a), np.zeros_like(a)) == 1
    np.testing.assert_array_equal(overlap(np.stack([a, b]), a), [1, 6 / 30])


def test_the_hearts_of_the_pack_name_the_colours_of_its_circles_and_squares():
    pictures = load_emoji(64, "noto", split="all")
    place = {r["label"]: i for i, r in enumerate(pictures.records)}
    colours = ("red", "orange", "yellow", "green", "blue", "purple", "brown")

    def of(label):
        return pictures.array(place[label])
    for shape in ("circle", "square"):
        for c in colours:
            near = colour_distance(mean_lab(of(f"{c} heart")), mean_lab(of(f"{c} {shape}")))
            far = min(colour_distance(mean_lab(of(f"{other} heart")), mean_lab(of(f"{c} {shape}")))
                      for other in colours if other != c)
            assert near < 5 and far > 20, (c, shape, near, far)
            assert overlap(drawn(of(f"{c} {shape}")), drawn(of(f"red {shape}"))) > 0.9
    assert overlap(drawn(of("red circle")), drawn(of("red square"))) < 0.85
