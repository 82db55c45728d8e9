"""SiLU, the cheap GELUs and GEGLU: as accurate as the definition, whatever shape and threads."""
import numpy as np
import pytest
from two_threads import on_one_and_two_threads

from tinydiff import ops
from tinydiff.backends.table import Saved, use
from tinydiff.kernels.accuracy import assert_as_accurate_as

numba = pytest.importorskip("numba")
fast = pytest.importorskip("tinydiff.kernels.cpu.activations")

GATED = ["silu", "quick_gelu", "gelu_tanh"]            # by a sigmoid
NAMES = [*GATED, "geglu"]
SHAPES = {**{name: [(2, 3, 40, 41), (1, 4096), (5, 2, 4098), (3, 9000)] for name in GATED},
          "geglu": [(2, 3, 8, 8), (1, 2), (5, 2, 34), (70, 130), (3, 9000)]}


def draw(name, shape, spread=2.0):
    rng = np.random.default_rng(0)
    dy_shape = (*shape[:-1], shape[-1] // 2) if name == "geglu" else shape
    return ((spread * rng.normal(size=shape)).astype(np.float32),
            rng.normal(size=dy_shape).astype(np.float32))


def run(name, x, dy):
    y, cache = getattr(fast, f"{name}_forward")(x)
    assert isinstance(cache, Saved)
    return y, cache.backward(dy, cache.arrays)


def define(name, x, dy):
    with use("reference"):
        y, cache = getattr(ops, f"{name}_forward")(x)
        return y, getattr(ops, f"{name}_backward")(dy, cache)


@pytest.mark.parametrize(("name", "shape"), [(n, shape) for n in NAMES for shape in SHAPES[n]])
@pytest.mark.parametrize("spread", [0.1, 2.0, 50.0])
def test_as_accurate_as_the_definition(name, shape, spread):
    x, dy = draw(name, shape, spread)
    results = run(name, x, dy), define(name, x, dy), define(name, x.astype(float),
                                                            dy.astype(float))
    for ours, theirs, exact in zip(*results, strict=True):
        assert_as_accurate_as(ours, theirs, exact)


@pytest.mark.parametrize("name", NAMES)
def test_any_strides(name):
    x, dy = draw(name, (6, 1030, 4))
    strided, dy_strided = np.repeat(x, 2, axis=-1)[..., ::2], np.asfortranarray(dy)
    assert not strided.flags.c_contiguous and not dy_strided.flags.c_contiguous
    for got, want in zip(run(name, strided, dy_strided), run(name, x, dy), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("name", NAMES)
def test_the_bits_do_not_depend_on_the_number_of_threads(name):
    x, dy = draw(name, (7, 20, 222))
    for one, two in zip(*on_one_and_two_threads(lambda: run(name, x, dy)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_alone_gets_the_bits_it_gets_in_a_batch(name):
    x, dy = draw(name, (5, 13, 346))
    together = run(name, x, dy)
    for b in range(5):
        for one, many in zip(run(name, x[b:b + 1], dy[b:b + 1]), together, strict=True):
            np.testing.assert_array_equal(one, many[b:b + 1])


@pytest.mark.parametrize("name", NAMES)
def test_calm_at_the_extremes(name):
    x = np.ones((1, 4096), np.float32)
    x[0, -4:] = -1e30, -200, 200, 1e30
    y, dx = run(name, x, np.ones((1, 2048 if name == "geglu" else 4096), np.float32))
    np.testing.assert_array_equal(y[0, -4:], np.float32([0, 0, 200, 1e30]))
    np.testing.assert_array_equal(dx[0, -4:], np.float32([0, 0, 1, 1]))


@pytest.mark.parametrize("name", NAMES)
def test_what_the_kernels_do_not_know_is_left_to_the_definition(name):
    x, _ = draw(name, (3, 4096))
    forward = getattr(fast, f"{name}_forward")
    assert forward(x) is not NotImplemented
    assert forward(x.astype(float)) is NotImplemented
    assert forward(x.view(np.ma.MaskedArray)) is NotImplemented
    assert fast.geglu_forward(x[:, :3]) is NotImplemented
    assert fast.geglu_forward(x[:0]) is NotImplemented
    if name in GATED:
        assert forward(np.ones((), np.float32)) is NotImplemented


@pytest.mark.parametrize("name", GATED)
def test_small_pictures_are_left_to_numpy_however_many(name):
    forward = getattr(fast, f"{name}_forward")
    assert forward(np.ones((100, 64), np.float32)) is NotImplemented
    assert forward(np.ones((1, 64, 64), np.float32)) is not NotImplemented


@pytest.mark.parametrize("name", NAMES)
def test_a_cotangent_of_another_size_is_refused(name):
    x, dy = draw(name, (2, 4096))
    _, cache = getattr(fast, f"{name}_forward")(x)
    with pytest.raises(ValueError, match="cannot reshape"):
        cache.backward(dy[:1], cache.arrays)
