"""Fused normalisations: as accurate as the definition, whatever the shape and the threads."""
import numpy as np
import pytest
from two_threads import on_one_and_two_threads

from tinydiff import ops
from tinydiff.backends.table import Saved, use
from tinydiff.kernels.accuracy import assert_as_accurate_as

numba = pytest.importorskip("numba")
fast_group = pytest.importorskip("tinydiff.kernels.cpu.group_norm")
fast_layer = pytest.importorskip("tinydiff.kernels.cpu.layer_norm")

# Ordinary, one pixel, one channel, odd sizes, one picture, other axes, more than one PIECE.
SHAPES = [((2, 16, 8, 8), 8), ((3, 4, 1, 1), 2), ((2, 1, 5, 3), 1), ((2, 6, 7, 9), 3),
          ((1, 10, 33, 17), 5), ((2, 6, 13), 2), ((2, 8), 2), ((3, 4, 2, 3, 2), 2),
          ((1, 2, 70, 71), 1)]
ROWS = [(2, 7, 16), (5, 2), (1, 33), (3, 2, 2, 40), (70, 24), (1, 300), (17,)]
NAMES = ["group_norm", "group_norm_silu", "group_norm_silu moved", "layer_norm"]
CASES = [(name, shape, groups) for name in NAMES for shape, groups in (
    [(shape, None) for shape in ROWS] if name == "layer_norm" else SHAPES)]


def draw(name, shape, groups, mean=0.0, seed=0):
    """Make the arguments of an operation, and a cotangent, in float32."""
    rng = np.random.default_rng(seed)
    C = shape[-1] if name == "layer_norm" else shape[1]
    x = mean + 2 * rng.normal(size=shape)
    args = [x, rng.normal(size=C), rng.normal(size=C)]
    if name.endswith("moved"):
        args += [rng.normal(size=shape[:2]), rng.normal(size=shape[:2])]
    return [a.astype(np.float32) for a in args], rng.normal(size=shape).astype(np.float32)


def call(name, groups, args, definition=False):
    """Run the forward pass; `args` are x, weight, bias and perhaps scale and shift."""
    op = name.split()[0]
    options = dict(eps=1e-3)
    if groups:
        options["num_groups"] = groups
    if len(args) == 5:
        options |= dict(scale=args[3], shift=args[4])
    module = ops if definition else fast_layer if op == "layer_norm" else fast_group
    return getattr(module, f"{op}_forward")(*args[:3], **options)


def run(name, groups, args, dy):
    """Return y and the gradients that the kernels compute."""
    y, cache = call(name, groups, args)
    assert isinstance(cache, Saved)
    return [y, *(g for g in cache.backward(dy, cache.arrays) if g is not None)]


def define(name, groups, args, dy):
    """Return y and the gradients that the definition computes, in the dtype of `args`."""
    with use("reference"):
        y, cache = call(name, groups, args, definition=True)
        gradients = getattr(ops, f"{name.split()[0]}_backward")(dy, cache)
    return [y, *(g for g in gradients if g is not None)]


def assert_accurate(name, groups, *draws):
    """Compare the largest errors over all draws: one sum's error may be small by chance."""
    results = []
    for args, dy in draws:
        exact = [a.astype(float) for a in args], dy.astype(float)
        results.append([run(name, groups, args, dy), define(name, groups, args, dy),
                        define(name, groups, *exact)])
    kernel, reference, exact = ([np.stack(same) for same in zip(*outputs, strict=True)]
                                for outputs in zip(*results, strict=True))
    for triple in zip(kernel, reference, exact, strict=True):
        assert_as_accurate_as(*triple)


@pytest.mark.parametrize(("name", "shape", "groups"), CASES)
def test_as_accurate_as_the_definition(name, shape, groups):
    assert_accurate(name, groups, *(draw(name, shape, groups, seed=seed) for seed in range(10)))


def test_layer_norm_of_one_entry_is_the_bias():
    (x, weight, bias), dy = draw("layer_norm", (5, 1), None)
    y, dx, _, dbias = run("layer_norm", None, [x, weight, bias], dy)
    np.testing.assert_array_equal(y, np.broadcast_to(bias, y.shape))
    np.testing.assert_allclose(dx, 0.0, atol=1e-5)
    np.testing.assert_allclose(dbias, dy.sum(axis=0), rtol=1e-5)


@pytest.mark.parametrize("mean", [30.0, -1000.0])
@pytest.mark.parametrize(("name", "shape", "groups"), [
    *((name, (2, 8, 40, 33), 4) for name in NAMES[:3]), ("layer_norm", (60, 200), None)])
def test_a_mean_far_from_zero_costs_no_more_digits_than_in_the_definition(name, shape, groups,
                                                                          mean):
    assert_accurate(name, groups, draw(name, shape, groups, mean))


@pytest.mark.parametrize("name", NAMES[:3])
def test_sums_over_many_pixels_lose_no_digits(name):
    args, dy = draw(name, (1, 2, 500, 501), 1)
    assert_accurate(name, 1, (args, np.abs(dy)))


def test_an_outlier_in_front_costs_no_digits():
    args, dy = draw("group_norm", (1, 4, 64, 64), 2)
    args[0][0, :, 0, 0] = 1e4
    assert_accurate("group_norm", 2, (args, dy))


@pytest.mark.parametrize("name", NAMES)
def test_any_strides(name):
    groups = None if name == "layer_norm" else 2
    args, dy = draw(name, (6, 4, 5, 4), groups)
    want = run(name, groups, args, dy)
    strided = [np.repeat(a, 2, axis=-1)[..., ::2] for a in args]
    dy = np.asfortranarray(dy)
    assert not strided[0].flags.c_contiguous and not dy.flags.c_contiguous
    for got, same in zip(run(name, groups, strided, dy), want, strict=True):
        np.testing.assert_array_equal(got, same)


@pytest.mark.parametrize(("name", "shape", "groups"), [
    *((name, (9, 8, 11, 7), 4) for name in NAMES[:3]), ("layer_norm", (70, 24), None)])
def test_the_bits_do_not_depend_on_the_number_of_threads(name, shape, groups):
    args, dy = draw(name, shape, groups)
    for one, two in zip(*on_one_and_two_threads(lambda: run(name, groups, args, dy)), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(5, 6, 7, 3), (5, 6, 1, 1)])
def test_a_picture_alone_gets_the_bits_it_gets_in_a_batch(name, shape):
    groups = None if name == "layer_norm" else 2
    args, dy = draw(name, shape, groups)
    together = run(name, groups, args, dy)
    for b in range(shape[0]):
        own = [a[b:b + 1] if a.ndim > 1 else a for a in args]
        alone = run(name, groups, own, dy[b:b + 1])
        for i in [0, 1] + [4, 5] * name.endswith("moved"):            # 2, 3: dweight, dbias
            np.testing.assert_array_equal(alone[i], together[i][b:b + 1])


@pytest.mark.parametrize("name", NAMES)
def test_frozen_weights_get_no_gradient(name):
    groups = None if name == "layer_norm" else 2
    args, dy = draw(name, (2, 4, 3, 4), groups)
    _, cache = call(name, groups, args)
    dx, dweight, dbias, *_ = cache.backward(dy, cache.arrays, needs_dweight=False)
    assert dweight is None and dbias is None
    np.testing.assert_array_equal(dx, run(name, groups, args, dy)[1])


@pytest.mark.parametrize("name", NAMES)
def test_a_constant_picture_gives_no_nan(name):
    groups = None if name == "layer_norm" else 2
    args, dy = draw(name, (2, 4, 3, 3), groups)
    args[0][:] = 7.3
    assert all(np.isfinite(a).all() for a in run(name, groups, args, dy))


@pytest.mark.parametrize("name", NAMES)
def test_nan_reaches_its_own_group_only(name):
    groups = None if name == "layer_norm" else 2
    args, _ = draw(name, (2, 4, 3, 5), groups)
    args[0][1, 3, 2, 4] = np.nan
    y, _ = call(name, groups, args)
    spoilt = np.zeros(y.shape, bool)
    spoilt[(1, 3, 2) if name == "layer_norm" else (1, slice(2, 4))] = True
    np.testing.assert_array_equal(np.isnan(y), spoilt)


@pytest.mark.parametrize("name", NAMES)
def test_what_the_kernels_do_not_know_is_left_to_the_definition(name):
    groups = None if name == "layer_norm" else 2
    args, _ = draw(name, (2, 4, 3, 4), groups)
    refused = [[a.astype(float) for a in args],                       # another dtype
               [args[0], args[1].astype(float), *args[2:]],
               [args[0].view(np.ma.MaskedArray), *args[1:]],          # another kind of array
               [args[0][:0], *args[1:]],                              # nothing at all
               [args[0], args[1][:3], *args[2:]],                     # shapes that do not fit
               [args[0], args[1], args[2][:1], *args[3:]]]
    for case in refused:
        assert call(name, groups, case) is NotImplemented
    if name.startswith("group"):
        assert call(name, 3, args) is NotImplemented                  # 3 does not divide 4
    if name.endswith("moved"):
        assert call(name, 2, [*args[:3], args[3][:1], args[4]]) is NotImplemented


@pytest.mark.parametrize("name", NAMES)
def test_a_cotangent_of_another_size_is_refused(name):
    groups = None if name == "layer_norm" else 2
    args, dy = draw(name, (2, 4, 3, 4), groups)
    _, cache = call(name, groups, args)
    with pytest.raises(ValueError, match="cannot reshape"):
        cache.backward(dy[:1], cache.arrays)
