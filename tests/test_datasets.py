"""Pictures, captions, IDX files, digits, and a user's own folder."""
import gzip
import json
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tinydiff.backends.random import generator as keyed
from tinydiff.datasets import (
    Pictures,
    caption,
    captions,
    data_folder,
    load_digits,
    load_emoji,
    load_fashion_mnist,
    load_folder,
    read_idx,
)
from tinydiff.datasets.captions import telling_tags
from tinydiff.pictures import from_bytes

RECORD = {"label": "red heart", "style": "noto", "tags": ["emotion", "heart", "love", "red"]}


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


# ---- Pictures ----

def test_pictures():
    images = np.zeros((2, 3, 4, 4), np.uint8)
    images[1] = 255
    pictures = Pictures(images, [{"label": "black"}, {"label": "white"}])
    assert len(pictures) == 2
    x = pictures.array([1, 0])
    assert x.dtype == np.float32 and x.shape == (2, 3, 4, 4)
    assert (x[0] == 1).all() and (x[1] == -1).all()
    assert pictures.array().shape == (2, 3, 4, 4)
    with pytest.raises(FrozenInstanceError):
        pictures.images = images
    with pytest.raises(ValueError, match="2 pictures but 1 records"):
        Pictures(images, [{}])


def test_array_is_exact_for_all_values():
    images = np.arange(256, dtype=np.uint8).reshape(1, 1, 16, 16)
    x = Pictures(images, [{}]).array()
    assert np.array_equal(x, from_bytes(images)) and x.dtype == from_bytes(images).dtype
    assert np.abs(x - (images / 127.5 - 1)).max() < 1e-7
    assert np.array_equal(np.rint((x + 1) * 127.5).astype(np.uint8), images)


def test_data_folder_works_from_elsewhere(tmp_path):
    """A plain checkout on the path, run from any folder."""
    root = str(Path(__file__).resolve().parents[1])
    code = ("import sys; sys.path.insert(0, sys.argv[1]); "
            "from tinydiff.datasets import data_folder; "
            "print((data_folder() / 'emoji.jsonl').is_file())")
    done = subprocess.run([sys.executable, "-c", code, root], cwd=tmp_path, text=True,
                          capture_output=True, check=True)
    assert done.stdout.strip() == "True"


def test_data_folder_prefers_the_installed_package(tmp_path, monkeypatch):
    (tmp_path / "__init__.py").touch()
    module = type(sys)("tinydiff.data")
    module.__path__ = [str(tmp_path)]
    monkeypatch.setitem(sys.modules, "tinydiff.data", module)
    assert data_folder() == tmp_path
    with pytest.raises(FileNotFoundError, match=r"digits\.npz: missing data file"):
        load_digits()


def test_notice_names_everyone():
    notice = (data_folder() / "NOTICE").read_text(encoding="utf-8")
    for name in ("Google", "Twitter", "jdecked", "Microsoft", "LobeHub", "emojibase", "Zalando",
                 "scikit-learn", "Apache License", "CC BY 4.0", "MIT License", "WITHOUT WARRANTY"):
        assert name in notice, name


# ---- captions ----

def test_plain_caption():
    assert caption(RECORD) == "red heart, noto style"


def test_caption_mix_proportions():
    rng = keyed(0, "test captions")
    drawn = [captions(RECORD, rng) for _ in range(4000)]
    plain = sum(text == "red heart, noto style" for text in drawn) / 4000
    tags = sum(text.count(", ") == 3 and text.endswith(", noto style") for text in drawn) / 4000
    assert abs(plain - 0.6) < 0.03 and abs(tags - 0.2) < 0.025
    assert abs(1 - plain - tags - 0.2) < 0.025
    assert all("red heart" in text and "noto" in text for text in drawn)
    assert sum(text == "a noto emoji of red heart" for text in drawn) > 100
    assert {f"red heart, {two}, noto style" for two in ("emotion, love", "love, emotion")
            } < set(drawn)


def test_captions_are_deterministic():
    first = [captions(RECORD, keyed(7, "test captions", step=k)) for k in range(50)]
    assert first == [captions(RECORD, keyed(7, "test captions", step=k)) for k in range(50)]
    assert first != [captions(RECORD, keyed(8, "test captions", step=k)) for k in range(50)]


def test_captions_without_tags_or_style():
    rng = keyed(0, "test captions")
    bare = {"label": "ankle boot", "tags": [], "style": ""}
    assert {captions(bare, rng) for _ in range(50)} == {"ankle boot"}
    assert {captions({"label": "my cat"}, rng) for _ in range(50)} == {"my cat"}
    no_tags = {captions(RECORD | {"tags": []}, rng) for _ in range(300)}
    assert "red heart, noto style" in no_tags and len(no_tags) == 5
    one_tag = {captions(RECORD | {"style": "", "tags": ["love"]}, rng) for _ in range(50)}
    assert one_tag == {"red heart", "red heart, love"}


def test_telling_tags_add_a_word():
    assert telling_tags(RECORD) == ["emotion", "love"]
    assert telling_tags({"label": "man cook: dark skin tone", "tags": ["cook", "chef"]}) == ["chef"]


def test_every_emoji_has_captions():
    rng = keyed(0, "test captions")
    for record in load_emoji(16, tones=True, split="all").records:
        text = captions(record, rng)
        assert record["label"] in text and record["style"] in text and "  " not in text


# ---- IDX, Fashion-MNIST, digits ----

def idx(array):
    return (bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            + array.tobytes())


@pytest.mark.parametrize("shape", [(7,), (2, 3, 4), (300, 1, 2), (0, 28, 28)])
@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_idx_round_trip(tmp_path, shape, pack):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path / "file"
    path.write_bytes(pack(idx(array)))
    got = read_idx(path)
    assert got.shape == shape and got.dtype == np.uint8 and np.array_equal(got, array)


GOOD = idx(np.arange(24, dtype=np.uint8).reshape(2, 3, 4))


@pytest.mark.parametrize("data, says", [
    (b"", "not an IDX file"),
    (b"PK\3\4" + GOOD, "not an IDX file"),
    (b"\0\0\x08\0", "not an IDX file"),
    (GOOD[:-1], "39 bytes, expected 40"),
    (GOOD + b"x", "41 bytes, expected 40"),
    (GOOD[:9], "truncated"),
    (b"\0\0\x0d" + GOOD[3:], "element type 0x0d"),
    (GOOD[:4] + b"\xff\xff\xff\xff" + GOOD[8:], "expected"),
    (gzip.compress(GOOD)[:-9], "damaged gzip"),
    (gzip.compress(GOOD)[:-8] + b"\0" * 8, "damaged gzip"),
    (gzip.compress(GOOD)[:12] + b"\xff" * 30, "damaged gzip"),
], ids=range(11))
def test_damaged_idx(tmp_path, data, says):
    path = tmp_path / "file.gz"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=says) as error:
        read_idx(path)
    assert one_line(error).startswith(str(path))


def test_fashion_mnist_test_split():
    pictures = load_fashion_mnist()
    assert pictures.images.shape == (10000, 1, 28, 28) and pictures.images.dtype == np.uint8
    assert np.bincount([r["class"] for r in pictures.records]).tolist() == [1000] * 10
    assert caption(pictures.records[0]) == "ankle boot"            # known first test picture
    trousers = pictures.images[[r["label"] == "trouser" for r in pictures.records], 0]
    assert trousers.mean(axis=0)[24, 13:15].mean() < trousers.mean(axis=0)[24, 10]   # two legs
    padded = load_fashion_mnist(size=32).images
    assert np.array_equal(padded[:, :, 2:30, 2:30], pictures.images)
    assert padded.shape[2:] == (32, 32) and not padded[:, :, :2].any()


def test_fashion_mnist_user_folder(tmp_path):
    images = np.arange(3 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(3, 28, 28)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images))
    with pytest.raises(FileNotFoundError, match="dataset-fashion-mnist") as error:
        load_fashion_mnist("train", folder=tmp_path)
    assert "train-labels-idx1-ubyte.gz is not in" in one_line(error)
    labels = tmp_path / "train-labels-idx1-ubyte.gz"
    labels.write_bytes(gzip.compress(idx(np.array([9, 0, 3], np.uint8))))
    pictures = load_fashion_mnist("train", folder=tmp_path)
    assert np.array_equal(pictures.images[:, 0], images)
    assert [r["label"] for r in pictures.records] == ["ankle boot", "t-shirt", "dress"]
    for wrong in ([9, 0], [9, 0, 10]):
        labels.write_bytes(gzip.compress(idx(np.array(wrong, np.uint8))))
        with pytest.raises(ValueError, match="expected 3 labels"):
            load_fashion_mnist("train", folder=tmp_path)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images[:, :20]))
    with pytest.raises(ValueError, match=r"expected \(N, 28, 28\)"):
        load_fashion_mnist("train", folder=tmp_path)


def test_fashion_mnist_missing_train_split(tmp_path, monkeypatch):
    monkeypatch.setattr("tinydiff.datasets.fashion_mnist.SYSTEM_FOLDER", tmp_path)
    with pytest.raises(FileNotFoundError, match="zalandoresearch/fashion-mnist") as error:
        load_fashion_mnist("train")
    one_line(error)
    with pytest.raises(ValueError, match="known are train, test"):
        load_fashion_mnist("validation")
    with pytest.raises(ValueError, match="28, 32"):
        load_fashion_mnist(size=64)


def test_digits():
    digits = load_digits()
    assert digits.images.shape == (1797, 1, 8, 8) and digits.images.dtype == np.uint8
    assert digits.images.max() == 255 and digits.images.min() == 0
    assert len(np.unique(digits.images)) == 17
    classes = np.array([r["class"] for r in digits.records])
    assert np.bincount(classes).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert digits.records[0]["label"] == "zero"
    means = np.stack([digits.images[classes == k].mean(axis=0).ravel() for k in range(10)])
    flat = digits.images.reshape(1797, 1, 64).astype(float)
    nearest = ((flat - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == classes).mean() > 0.85                        # labels fit the pictures


def test_damaged_digits(tmp_path, monkeypatch):
    path = tmp_path / "digits.npz"
    monkeypatch.setattr("tinydiff.datasets.digits.data_file", lambda name: path)
    whole = (data_folder() / "digits.npz").read_bytes()
    for data in (b"", whole[:9000], b"no zip"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="not a readable npz"):
            load_digits()
    np.savez(path, images=np.array([{"an": "object"}]), labels=np.zeros(1))
    with pytest.raises(ValueError, match="not a readable npz"):
        load_digits()


# ---- a folder of one's own ----

def paint(path, colour=(200, 30, 40), size=(48, 32), mode="RGB", **options):
    Image.new("RGB", size, colour).convert(mode).save(path, **options)
    return path


def write_lines(folder, *entries):
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, entries)), encoding="utf-8")


def test_folder_with_captions_jsonl(tmp_path):
    paint(tmp_path / "b.png")
    paint(tmp_path / "a.jpg", (10, 200, 30))
    paint(tmp_path / "ignored.png")
    write_lines(tmp_path, {"file_name": "b.png", "text": "a red  thing"},
                {"file_name": "a.jpg", "caption": "etwas Grünes"})
    pictures = load_folder(tmp_path, 16)
    assert pictures.images.shape == (2, 3, 16, 16) and pictures.images.dtype == np.uint8
    assert [r["label"] for r in pictures.records] == ["a red thing", "etwas Grünes"]
    assert pictures.records[1]["file_name"] == "a.jpg"
    assert (pictures.images[0].transpose(1, 2, 0) == (200, 30, 40)).all()
    assert captions(pictures.records[0], keyed(0, "test captions")) == "a red thing"


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_a_line_of_json_ends_at_a_newline_only(tmp_path, mark):
    """splitlines() would also cut at the marks that JSON allows inside a text."""
    paint(tmp_path / "a.png")
    paint(tmp_path / "b.png")
    line = '{"file_name": "%s.png", "text": "%s"}\n'
    text = line % ("a", f"one{mark}text") + line % ("b", "two")
    (tmp_path / "captions.jsonl").write_text(text, encoding="utf-8")
    assert [r["label"] for r in load_folder(tmp_path, 8).records] == ["one text", "two"]


def test_folder_with_text_files(tmp_path):
    paint(tmp_path / "two.PNG")
    paint(tmp_path / "one.webp", lossless=True)
    (tmp_path / "two.txt").write_text("\ufeffsecond\n", encoding="utf-8")
    (tmp_path / "one.txt").write_text("first", encoding="utf-8")
    assert [r["label"] for r in load_folder(tmp_path, 8).records] == ["first", "second"]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (64, 64), (100, 300)])
def test_folder_any_mode_and_size(tmp_path, mode, size):
    name = "x.tif" if mode == "CMYK" else "x.png"
    if mode == "I;16":
        Image.fromarray(np.full(size[::-1], 65535, np.uint16)).save(tmp_path / name)
    else:
        paint(tmp_path / name, (255, 255, 255), size, mode)
    write_lines(tmp_path, {"file_name": name, "text": "white"})
    image = load_folder(tmp_path, 24).images
    assert image.shape == (1, 3, 24, 24) and image.min() >= 254


@pytest.mark.parametrize("size", [40, 16])
def test_folder_transparency_becomes_white_without_fringe(tmp_path, size):
    """As if composited first and resized then: what hides under alpha = 0 never shows."""
    rgba = np.zeros((40, 40, 4), np.uint8)
    rgba[..., :3] = np.random.default_rng(0).integers(60, 200, (40, 40, 3))
    rgba[..., 3] = np.linspace(0, 255, 40)
    rgba[:9] = 0
    Image.fromarray(rgba).save(tmp_path / "x.png")
    write_lines(tmp_path, {"file_name": "x.png", "text": "fading"})
    alpha = rgba[..., 3:] / 255
    exact = np.rint(rgba[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
    exact = Image.fromarray(exact).resize((size, size), Image.Resampling.BICUBIC)
    [image] = load_folder(tmp_path, size).images
    assert np.abs(image.transpose(1, 2, 0).astype(int) - np.asarray(exact)).max() < 8   # clipping


def test_folder_turns_and_crops(tmp_path):
    """EXIF orientation 6 (turn right), then the middle square."""
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = (0, 0, 255)                             # the middle square is blue ...
    wide[:10, 20:40] = (255, 0, 0)                           # ... its upper half red
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(wide).save(tmp_path / "x.png", exif=exif)
    write_lines(tmp_path, {"file_name": "x.png", "text": "two colours"})
    [image] = load_folder(tmp_path, 20).images
    assert (image[0, :, 11:] == 255).all() and (image[2, :, :9] == 255).all()
    assert not image[1].any()


def test_folder_resizes_without_aliasing(tmp_path):
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    Image.fromarray(stripes).save(tmp_path / "x.png")
    write_lines(tmp_path, {"file_name": "x.png", "text": "stripes"})
    inner = load_folder(tmp_path, 24).images[..., 2:-2, 2:-2].astype(int)
    assert np.abs(inner - 127).max() < 12


def test_folder_errors_are_one_line(tmp_path):
    def fails(kind, says):
        with pytest.raises(kind, match=says) as error:
            load_folder(tmp_path, 8)
        one_line(error)

    with pytest.raises(FileNotFoundError, match="no such folder"):
        load_folder(tmp_path / "nowhere", 8)
    with pytest.raises(ValueError, match="size=0"):
        load_folder(tmp_path, 0)
    fails(ValueError, "no captioned picture")
    whole = paint(tmp_path / "x.png", size=(200, 200)).read_bytes()
    fails(ValueError, r"x\.png: no caption: neither x\.txt")
    (tmp_path / "x.txt").write_text(" \n")
    fails(ValueError, r"x\.txt: no caption")
    (tmp_path / "x.txt").write_bytes(b"\xff\xfe\xfa")
    fails(ValueError, r"x\.txt: not UTF-8")
    (tmp_path / "x.txt").write_text("a thing")
    for broken in (b"", b"not a picture", whole[:60], whole[:len(whole) // 2]):
        (tmp_path / "x.png").write_bytes(broken)
        fails(ValueError, r"x\.png: not a readable picture")
    write_lines(tmp_path, {"file_name": "y.png", "text": "gone"})
    fails(FileNotFoundError, r"y\.png: no such picture")
    write_lines(tmp_path, {"file_name": "x.png", "text": "a"}, {"file_name": "x.png"})
    fails(ValueError, r"line 2 \(x\.png\): no caption")
    write_lines(tmp_path, {"text": "a"})
    fails(ValueError, 'line 1: no "file_name"')
    write_lines(tmp_path, ["x.png", "a"])
    fails(ValueError, 'line 1: no "file_name"')
    (tmp_path / "captions.jsonl").write_text('{"file_name": "x.png"')
    fails(ValueError, "line 1: not JSON")
