"""The shipped emoji pack: what is in it, what is not, and what training never sees."""
import importlib.util
import json
from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from tinydiff.datasets import STYLES, data_folder, load_emoji
from tinydiff.datasets.emoji import area_average

REASONS = {"colour x shape", "role x gender x tone", "style x concept"}


@pytest.fixture(scope="module")
def pack():
    return load_emoji(32, split="all", tones=True)


@pytest.fixture(scope="module")
def builder():
    path = data_folder() / "build_emoji.py"
    spec = importlib.util.spec_from_file_location("build_emoji", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def of(pack, **wanted):
    """Indices of the records with these fields."""
    return [i for i, r in enumerate(pack.records) if all(r[k] == v for k, v in wanted.items())]


def test_counts(pack):
    assert Counter(r["style"] for r in pack.records) == {
        "noto": 1415 + 1865, "twemoji": 1415, "fluent 3d": 1384}
    assert len(of(pack, style="noto", tone=None)) == 1415
    assert len(load_emoji(16, ("noto",), split="all")) == 1415
    assert len(load_emoji(16, ("noto",))) == 1328
    styles = defaultdict(set)
    for r in pack.records:
        styles[r["key"]].add(r["style"])
    assert sum(len(s) == 3 for s in styles.values()) == 1384


def test_size_on_disk():
    files = [*data_folder().glob("emoji_64.*.webp"), data_folder() / "emoji.jsonl"]
    assert len(files) == 5
    assert sum(f.stat().st_size for f in files) < 7.5e6


def test_nothing_unwanted(pack):
    for r in pack.records:
        assert "family" not in r["label"].split(":")[0]
        assert "middle finger" not in r["label"]
        assert r["group"] not in ("flags", "component")
        assert r["group"] != "symbols" or r["subgroup"] == "geometric"
        assert r["label"] and isinstance(r["tags"], list) and r["style"] in STYLES


def test_only_noto_has_tones(pack):
    """Fluent's medium and medium-light are swapped, so none of its toned pictures is here."""
    assert {r["style"] for r in pack.records if r["tone"]} == {"noto"}
    assert not any("skin tone" in r["label"] for r in pack.records if r["tone"] is None)
    assert all("skin tone" in r["label"] for r in pack.records if r["tone"])
    singles = {r["tone"] for r in pack.records if r["tone"] and "," not in r["tone"]}
    assert singles == {"light", "medium-light", "medium", "medium-dark", "dark"}


def test_tones_darken(pack):
    """The order of the tone names is the order of the pictures: no two are swapped."""
    names = ("light", "medium-light", "medium", "medium-dark", "dark")
    means = [pack.array([i for i in of(pack, tone=name) if "hand" in pack.records[i]["label"]])
             .mean() for name in names]
    assert all(a > b for a, b in pairwise(means)), means


def test_no_picture_twice_in_a_style(pack):
    seen = Counter((r["style"], image.tobytes())
                   for r, image in zip(pack.records, load_emoji(64, split="all", tones=True).images,
                                       strict=True))
    # The rounding of the sheets may make two alike that differed by less than it.
    assert sum(n - 1 for n in seen.values()) <= 3
    assert max(Counter((r["style"], r["key"]) for r in pack.records).values()) == 1


def test_captions_belong_to_pictures(pack):
    """Colours that the words promise, in every style: a shifted sheet would fail."""
    def colour(label, style):
        [i] = of(pack, label=label, style=style)
        pixels = pack.images[i].reshape(3, -1).T.astype(float)
        inked = pixels[pixels.min(axis=1) < 200]
        return inked.mean(axis=0)

    for style in STYLES:
        for shape in ("heart", "circle", "square"):
            r, g, b = colour(f"red {shape}", style)
            assert r > 1.5 * g and r > 1.5 * b, (style, shape)
            r, g, b = colour(f"green {shape}", style)
            assert g > 1.1 * r and g > 1.1 * b, (style, shape)
            r, g, b = colour(f"blue {shape}", style)
            assert b > 1.2 * r and b > 1.1 * g, (style, shape)
        assert len(of(pack, label="red heart", style=style, held_out=None)) == 1
        tail = colour("white square button", style)          # near the end of each sheet
        assert np.ptp(tail) < 40


def test_white_corners_and_no_dark_fringes(pack):
    corners = pack.images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]].min(axis=(1, 2))
    assert (corners >= 250).mean() > 0.9
    # A yellow disc on white: seen from outside, no ring may be darker than both.
    big = load_emoji(64, ("fluent 3d", "twemoji"), split="all")
    for label in ("yellow circle", "white circle"):
        for i in of(big, label=label):
            row = big.images[i, :, 32].astype(int).min(axis=0)              # (64,), darkest channel
            edge = np.argmax(row < 250)
            inside = row[edge + 4:edge + 12].min()
            assert row[edge:edge + 4].min() >= inside - 45, (label, big.records[i]["style"])


def test_smaller_sizes_are_block_means(pack):
    big = load_emoji(64, ("twemoji",))
    exact = big.images.reshape(-1, 3, 32, 2, 32, 2).mean(axis=(3, 5))
    small = load_emoji(32, ("twemoji",))
    assert small.records == big.records
    assert np.array_equal(small.images, np.floor(exact + 0.5))
    exact = big.images.reshape(-1, 3, 16, 4, 16, 4).mean(axis=(3, 5))
    assert np.array_equal(load_emoji(16, ("twemoji",)).images, np.floor(exact + 0.5))
    assert np.array_equal(area_average(big.images, 1), big.images)


def test_splits_share_nothing(pack):
    train, held = (load_emoji(32, tones=True, split=s) for s in ("train", "held_out"))
    assert len(train) + len(held) == len(pack)
    assert all(r["held_out"] is None for r in train.records)
    assert {r["held_out"] for r in held.records} == REASONS
    names = {(r["style"], r["key"]) for r in train.records}
    assert not names & {(r["style"], r["key"]) for r in held.records}
    shown = {(r["style"], image.tobytes())
             for r, image in zip(train.records, train.images, strict=True)}
    assert not shown & {(r["style"], image.tobytes())
                        for r, image in zip(held.records, held.images, strict=True)}


def test_colour_x_shape(pack):
    held = {(r["style"], r["label"]) for r in pack.records if r["held_out"] == "colour x shape"}
    three = ("orange heart", "purple square", "green circle")
    assert held == {(s, label) for s in STYLES for label in three}
    trained = {r["label"] for r in pack.records if r["held_out"] is None}
    for colour in ("orange", "purple", "green"):             # each half of a composition is trained
        for shape in ("heart", "square", "circle"):
            label = f"{colour} {shape}"
            assert (label in trained) != (label in three)


def test_role_x_gender_x_tone_is_a_latin_square(pack, builder):
    cells = defaultdict(lambda: defaultdict(set))            # role: {(gender, tone): reasons}
    single = {None, "light", "medium-light", "medium", "medium-dark", "dark"}
    for i in of(pack, style="noto"):
        r = pack.records[i]
        role, gender = builder.role_and_gender(r["label"])
        if role and r["tone"] in single:
            cells[role][gender, r["tone"]].add(r["held_out"])
    whole = {role: c for role, c in cells.items() if len(c) == 12}
    assert len(whole) == 73
    held = [(role, *cell) for role, c in whole.items() for cell, reasons in c.items()
            if reasons == {"role x gender x tone"}]
    assert len(held) == pytest.approx(0.1 * 73 * 12, abs=5)
    for role, c in whole.items():
        # Neither a mirrored picture nor another label shows a held-out composition in training.
        assert all(len(reasons) == 1 for reasons in c.values()), role
        taken = [cell for cell, reasons in c.items() if reasons != {None}]
        assert 1 <= len(taken) <= 2
        assert len({tone for _, tone in taken}) == len(taken)     # the other gender shows the tone
    for tone in single:
        assert 5 <= sum(t == tone for _, _, t in held) <= 25
    for gender in ("man", "woman"):
        assert 30 <= sum(g == gender for _, g, _ in held) <= 60
    assert sum(r["held_out"] == "role x gender x tone" for r in pack.records) == 95
    assert all(r["style"] == "noto" for r in pack.records
               if r["held_out"] == "role x gender x tone")


def test_style_x_concept(pack):
    cells = [r for r in pack.records if r["held_out"] == "style x concept"]
    assert Counter(r["style"] for r in cells) == {style: 69 for style in STYLES}
    trained = {(r["style"], r["key"]) for r in pack.records if r["held_out"] is None}
    toned = {r["base"] for r in pack.records if r["tone"]}
    for r in cells:
        others = [s for s in STYLES if s != r["style"]]
        assert all((s, r["key"]) in trained for s in others), r["label"]
        assert r["key"] not in toned and r["group"] != "people-body"


@pytest.mark.parametrize("style", STYLES)
def test_no_near_copy_of_a_held_out_concept(pack, style):
    """The nearest training picture of the same style is far: nothing gives the answer away."""
    x = pack.images.reshape(len(pack), -1).astype(np.float32) / 255
    held = x[of(pack, style=style, held_out="style x concept")
             + of(pack, style=style, held_out="colour x shape")]
    train = x[of(pack, style=style, held_out=None)]
    square = (held**2).sum(axis=1)[:, None] + (train**2).sum(axis=1) - 2 * held @ train.T
    assert np.sqrt(np.maximum(square, 0) / x.shape[1]).min() > 0.08


def test_records_do_not_leak_between_calls():
    first = load_emoji(16, ("noto",))
    first.records[0]["label"] = "changed"
    assert load_emoji(16, ("noto",)).records[0]["label"] == "grinning face"


@pytest.mark.parametrize("arguments, says", [
    ({"size": 48}, "64, 32, 16"),
    ({"styles": ("notto",)}, "notto"),
    ({"styles": ()}, "known are"),
    ({"split": "test"}, "held_out"),
])
def test_wrong_arguments(arguments, says):
    with pytest.raises(ValueError, match=says) as error:
        load_emoji(**arguments)
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path, monkeypatch):
    from tinydiff.datasets import emoji
    real = {name: (data_folder() / name) for name in ("emoji_64.noto.webp", "emoji.jsonl")}
    damaged = tmp_path / "damaged"
    monkeypatch.setattr(emoji, "data_file", lambda name: damaged)
    damaged.write_bytes(real["emoji_64.noto.webp"].read_bytes()[:100_000])
    with pytest.raises(ValueError, match="damaged"):
        emoji.read_sheet("emoji_64.noto.webp", 1415, 32)
    damaged.write_bytes(real["emoji_64.noto.webp"].read_bytes())
    assert len(emoji.read_sheet("emoji_64.noto.webp", 1415, 32)) == 1415
    with pytest.raises(ValueError, match="do not hold 1400 pictures"):
        emoji.read_sheet("emoji_64.noto.webp", 1400, 32)
    damaged.write_text('{"key": "1f600"\n')
    with pytest.raises(ValueError, match="line 1"):
        emoji.read_records.__wrapped__()


@pytest.mark.parametrize("mark", ["\u2028", "\x85"])
def test_a_record_ends_at_a_newline_only(tmp_path, monkeypatch, mark):
    from tinydiff.datasets import emoji
    entry = {"key": "1f600", "label": f"one{mark}face", "tags": [], "group": "g", "subgroup": "s",
             "styles": ["noto"]}
    lines = [json.dumps(entry | change, ensure_ascii=False) for change in ({}, {"key": "1f601"})]
    monkeypatch.setattr(emoji, "data_file", lambda name: tmp_path / name)
    (tmp_path / "emoji.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    records = emoji.read_records.__wrapped__()
    assert [(r["key"], r["label"]) for r in records] == [
        ("1f600", entry["label"]), ("1f601", entry["label"])]


# ---- the builder ----

@pytest.mark.parametrize("label, role", [
    ("man cook", ("cook", "man")),
    ("woman cook: dark skin tone", ("cook", "woman")),
    ("deaf woman: light skin tone", ("deaf", "woman")),
    ("man: medium skin tone, red hair", ("red hair", "man")),
    ("woman walking: light skin tone, facing right", ("walking", "woman")),
    ("man walking: facing right", ("walking", "man")),
    ("man", (None, None)),
    ("woman and man holding hands", (None, None)),
    ("person cook", (None, None)),
    ("mermaid", (None, None)),
])
def test_role_and_gender(builder, label, role):
    assert builder.role_and_gender(label) == role


def test_rounding_bound(builder):
    values = np.arange(256, dtype=np.uint8)
    for step in (5, 9):
        off = np.abs(builder.rounded(values, step).astype(int) - values.astype(int))
        assert off.max() == step // 2
        assert builder.rounded(values, step)[255] == 255


def test_over_white_has_no_fringe(builder, tmp_path):
    """As if composited pixel by pixel at full size, then averaged: what hides under alpha = 0
    never shows.
    """
    rgba = np.random.default_rng(0).integers(0, 256, (256, 256, 4)).astype(np.uint8)
    rgba[:100, :, 3] = 0
    rgba[100:131, :, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "tile.png")
    alpha = rgba[..., 3:] / 255
    exact = rgba[..., :3] * alpha + 255 * (1 - alpha)
    exact = exact.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(builder.over_white(tmp_path / "tile.png") - exact).max() < 2
    Image.fromarray(rgba[:, :250]).save(tmp_path / "oblong.png")
    assert builder.over_white(tmp_path / "oblong.png").shape == (64, 64, 3)


def test_builder_says_what_is_missing(builder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["build_emoji.py", str(tmp_path), "--out", str(tmp_path)])
    assert builder.main() == 2
    assert "no such file" in capsys.readouterr().err


def test_jsonl_is_one_object_a_line():
    lines = (data_folder() / "emoji.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n")
    entries = [json.loads(line) for line in lines]
    assert len({e["key"] for e in entries}) == len(entries) == 3280
    assert all(len(line) < 700 for line in lines)
