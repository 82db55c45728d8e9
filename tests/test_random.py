"""Claims: a draw depends on (seed, purpose, step, picture) and on nothing else; no two of those
share a stream; the words are Philox's, in the layout that the module states.
"""
import hashlib
from itertools import product

import numpy as np
import pytest

from tinydiff.backends import blas_info
from tinydiff.backends.random import generator, normal, normal_there

MASK = 2**64 - 1


def philox_4x64(counter, key):
    """Ten rounds of the paper's Philox-4x64, in Python's integers."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        left, right = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [right >> 64 ^ c[1] ^ k0, right & MASK, left >> 64 ^ c[3] ^ k1, left & MASK]
        k0, k1 = k0 + 0x9E3779B97F4A7C15 & MASK, k1 + 0xBB67AE8584CAA73B & MASK
    return c


@pytest.mark.parametrize("seed, step, picture", [(0, 0, 0), (7, 3, 2), (MASK, MASK, MASK)])
def test_the_words_are_philox_at_the_stated_counter_and_key(seed, step, picture):
    purpose = int.from_bytes(hashlib.sha256(b"x_T").digest()[:8], "little")
    words = generator(seed, "x_T", step, picture).bit_generator.random_raw(12).tolist()
    expected = [word for block in (1, 2, 3)            # NumPy counts up before each block
                for word in philox_4x64([block, 0, picture, step], [seed, purpose])]
    assert words == expected


def test_a_picture_is_bitwise_the_same_alone_and_in_any_batch():
    batch = normal((3, 8, 8), 5, "x_T", step=2, pictures=range(7))
    for k in range(7):
        np.testing.assert_array_equal(normal((3, 8, 8), 5, "x_T", 2, [k])[0], batch[k])
    np.testing.assert_array_equal(normal((3, 8, 8), 5, "x_T", 2, (6, 1, 6)), batch[[6, 1, 6]])


def test_two_runs_draw_the_same():
    a, b = generator(1, "caption", 9), generator(1, "caption", 9)
    np.testing.assert_array_equal(a.random(100), b.random(100))
    np.testing.assert_array_equal(a.integers(0, 1000, 100), b.integers(0, 1000, 100))


def test_no_two_streams_share_a_word():
    names = list(product((0, 1, 2**63), ("x_T", "z", "caption"), (0, 1, 255), (0, 1, 256)))
    words = [generator(*name).bit_generator.random_raw(200) for name in names]
    assert len(np.unique(np.concatenate(words))) == len(names) * 200


@pytest.mark.parametrize("other", [
    {"seed": 1}, {"purpose": "z"}, {"step": 1}, {"pictures": [1]}])
def test_streams_are_independent(other):
    n = 100_000
    names = {"seed": 0, "purpose": "x_T", "step": 0, "pictures": [0]}
    a, b = normal((n,), **names)[0], normal((n,), **{**names, **other})[0]
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / np.sqrt(n)


def test_normal_is_standard_normal():
    n = 200_000
    z = normal((n,), 3, "z")[0].astype(np.float64)
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_dtype_sees_the_same_draw(dtype):
    single = normal((4, 4), 0, "x_T", pictures=[0, 1])
    cast = normal((4, 4), 0, "x_T", pictures=[0, 1], dtype=dtype)
    assert single.dtype == np.float32 and cast.dtype == dtype
    np.testing.assert_array_equal(single, cast)


def test_the_result_follows_like_and_the_shape():
    like = np.zeros(1)
    assert type(normal((2, 3), 0, "z", like=like)) is np.ndarray
    assert normal((), 0, "z", pictures=range(5)).shape == (5,)
    assert normal((2, 3), 0, "z", pictures=[]).shape == (0, 2, 3)


@pytest.mark.parametrize("name", ["seed", "step", "picture"])
@pytest.mark.parametrize("value", [-1, 2**64, 1.5, "0", None])
def test_a_number_that_is_no_word_is_refused_by_name(name, value):
    names = {"seed": 0, "purpose": "z", "step": 0, "picture": 0, name: value}
    with pytest.raises(ValueError, match=f"{name}=") as error:
        generator(**names)
    assert "\n" not in str(error.value)


def test_numpy_integers_are_numbers_too():
    assert generator(np.int64(4), "z", np.uint8(2)).random() == generator(4, "z", 2).random()


def test_blas_info_names_what_multiplies():
    info = blas_info()
    assert info.name and info.kernel
    assert info.threads is None or info.threads >= 1


def test_a_blas_that_nobody_knows_is_unknown(monkeypatch):
    monkeypatch.setattr("tinydiff.backends.threadpool_info", list)
    assert blas_info() == ("unknown", "unknown", None)


def test_noise_drawn_where_the_model_is_repeats_and_is_standard_normal():
    like = np.zeros(1, np.float32)
    draw = lambda *names: normal_there((4, 3, 32, 32), *names, like)
    a = draw(0, "train eps", 5)
    np.testing.assert_array_equal(a, draw(0, "train eps", 5))
    assert a.dtype == np.float32 and abs(a.mean()) < 0.03 and abs(a.std() - 1) < 0.03
    for other in (draw(1, "train eps", 5), draw(0, "else", 5), draw(0, "train eps", 6)):
        assert abs((a * other).mean()) < 0.04
    with pytest.raises(ValueError, match="seed=-1"):
        draw(-1, "train eps", 0)
