"""The CUDA kernels of group and layer norm, run by the emulator: as exact as the definition."""
import numpy as np
import pytest

import tinydiff
from tinydiff.kernels import group_norm as kernels
from tinydiff.kernels import layer_norm
from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.kernels.emulator import emulation, obstacle, sites, unnoticed
from tinydiff.ops.norm import (
    group_norm_backward,
    group_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
)
from tinydiff.ops.norm_silu import group_norm_silu_backward, group_norm_silu_forward

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))


@pytest.fixture(autouse=True)
def readable_definitions():
    """Compare with NumPy: a definition made of two operations would run their compiled kernels."""
    with tinydiff.use("reference"):
        yield


# The shape of x, and how many groups.  Where a picture is a few numbers there are many.
SHAPES = {
    "one number in a group": ((16, 8, 1, 1), 8),
    "odd": ((8, 12, 5, 7), 4),
    "one channel in a group": ((4, 6, 9, 11), 6),
    "one group": ((5, 7, 33, 17), 1),
    "a line of pixels": ((3, 6, 781), 2),
    "no pixels": ((40, 24), 4),
}
MODES = "norm", "silu", "modulated"


def arrays(shape, mode):
    """Return x, weight, bias, scale, shift and the gradient of y."""
    rng = np.random.default_rng(0)
    B, C = shape[:2]
    numbers = [rng.normal(size=size).astype(np.float32) for size in
               (shape, C, C, (B, C), (B, C), shape)]
    return numbers if mode == "modulated" else [*numbers[:3], None, None, numbers[5]]


def emulated(version, mode, groups, x, weight, bias, scale, shift, dy):
    if mode == "norm":
        y, cache = kernels.group_norm_forward(x, weight, bias, groups, version=version)
        return y, *group_norm_backward(dy, cache)
    y, cache = kernels.group_norm_silu_forward(x, weight, bias, groups, 1e-5, scale, shift,
                                               version=version)
    return y, *group_norm_silu_backward(dy, cache)


def definition(mode, groups, x, weight, bias, scale, shift, dy):
    if mode == "norm":
        y, cache = group_norm_forward.reference(x, weight, bias, groups)
        return y, *group_norm_backward.reference(dy, cache)
    y, cache = group_norm_silu_forward.reference(x, weight, bias, groups, 1e-5, scale, shift)
    return y, *group_norm_silu_backward.reference(dy, cache)


def in_64(given):
    return [None if x is None else x.astype(np.float64) for x in given]


def assert_accurate(version, mode, shape, groups, given=None):
    given = given or arrays(shape, mode)
    got = emulated(version, mode, groups, *given)
    for name, ours, r32, r64 in zip(("y", "dx", "dweight", "dbias", "dscale", "dshift"), got,
                                    definition(mode, groups, *given),
                                    definition(mode, groups, *in_64(given)), strict=False):
        if r64 is None:
            assert ours is None
            continue
        try:
            assert_as_accurate_as(ours, r32, r64)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("version", kernels.VERSIONS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", [name for name in SHAPES if name != "one number in a group"])
def test_rounding_errors_are_like_the_definitions_own(name, mode, version):
    assert_accurate(version, mode, *SHAPES[name])


@pytest.mark.parametrize("version", kernels.VERSIONS)
def test_a_group_of_one_number_is_its_bias_and_has_no_gradient(version):
    shape, groups = SHAPES["one number in a group"]
    x, weight, bias, *_, dy = arrays(shape, "norm")
    y, dx, dweight, dbias = emulated(version, "norm", groups, x, weight, bias, None, None, dy)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None, None], shape))
    assert not dx.any() and not dweight.any()
    np.testing.assert_allclose(dbias, dy.sum(axis=(0, 2, 3)), rtol=1e-5)


@pytest.mark.parametrize("version", kernels.VERSIONS)
def test_a_mean_far_above_the_deviation_costs_no_more_digits_than_the_definitions(version):
    given = arrays((8, 12, 9, 11), "norm")
    given[0] += 1000.0
    assert_accurate(version, "norm", given[0].shape, 4, given)


@pytest.mark.parametrize("version", kernels.VERSIONS)
def test_large_inputs_of_silu_do_not_overflow(version):
    x, weight, bias, *_, dy = arrays((1, 2, 3, 5), "silu")
    y, *gradients = emulated(version, "silu", 1, x, 1e4 * weight, bias, None, None, dy)
    assert np.isfinite(y).all() and all(np.isfinite(g).all() for g in gradients if g is not None)


@pytest.mark.parametrize("version", kernels.VERSIONS)
def test_gradients_of_weights_are_left_out_on_request(version):
    x, weight, bias, scale, shift, dy = arrays((2, 6, 3, 5), "modulated")
    _, cache = kernels.group_norm_silu_forward(x, weight, bias, 2, 1e-5, scale, shift,
                                               version=version)
    dx, dweight, dbias, dscale, dshift = group_norm_silu_backward(dy, cache, needs_dweight=False)
    assert dweight is None and dbias is None
    for got, want in zip((dx, dscale, dshift),
                         np.array(group_norm_silu_backward(dy, cache), object)[[0, 3, 4]],
                         strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("version", kernels.VERSIONS)
def test_the_order_of_the_threads_changes_no_bit(version):
    given = arrays((2, 6, 9, 11), "modulated")
    wanted = emulated(version, "modulated", 2, *given)
    for seed in (1, 2, 3, 4):
        with emulation(seed=seed):
            got = emulated(version, "modulated", 2, *given)
        for x, y in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(x, y)


def small_check():
    """Run two warps for each of many groups: one rounding of rstd is shared by a whole group."""
    assert_accurate(2, "modulated", (16, 12, 5, 7), 2)


@pytest.mark.parametrize("version", kernels.VERSIONS)
def test_there_are_no_races_and_no_access_out_of_bounds(version):
    with emulation(race=True):
        assert_accurate(version, "modulated", (16, 12, 5, 7), 2)


def test_a_missing_barrier_is_noticed():
    assert len(sites("group_norm.cu")) == 2
    assert not unnoticed("group_norm.cu", [small_check])


def test_what_the_kernels_do_not_know_is_left_to_the_definition():
    x, weight, bias, scale, shift, _ = arrays((2, 6, 3, 5), "modulated")
    of = lambda *args: kernels.group_norm_silu_forward(*args) is NotImplemented
    assert not of(x, weight, bias, 2)
    assert of(x.astype(np.float64), weight, bias, 2)
    assert of(np.ma.array(x), weight, bias, 2)
    assert of(x, weight, bias, 4)                                     # 4 does not divide 6
    assert of(x, weight[:5], bias, 2)
    assert of(x, weight, bias, 2, 1e-5, scale[:1], shift)
    assert of(x[:0], weight, bias, 2)


# ---- layer norm ----

ROWS = {"one number": (64, 1, 1), "odd": (7, 33, 17), "more than a warp": (41, 70),
        "many rows": (781, 9), "one row": (320,)}


def layer_norm_given(shape, above=0.0):
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (rng.normal(size=size).astype(np.float32) for size in
                           (shape, shape[-1:], shape[-1:], shape))
    return x + np.float32(above), weight, bias, dy


def layer_norm_of(forward, x, weight, bias, dy, **version):
    y, cache = forward(x, weight, bias, **version)
    return y, *(layer_norm_backward if version else layer_norm_backward.reference)(dy, cache)


def assert_layer_norm(version, shape, above=0.0):
    given = layer_norm_given(shape, above)
    got = layer_norm_of(layer_norm.layer_norm_forward, *given, version=version)
    in_32 = layer_norm_of(layer_norm_forward.reference, *given)
    for name, ours, r32, r64 in zip(("y", "dx", "dweight", "dbias"), got, in_32,
                                    layer_norm_of(layer_norm_forward.reference, *in_64(given)),
                                    strict=True):
        try:
            assert_as_accurate_as(ours, r32, r64)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("version", layer_norm.VERSIONS)
@pytest.mark.parametrize("name", ROWS)
def test_layer_norm_is_as_exact_as_the_definition(name, version):
    assert_layer_norm(version, ROWS[name])


@pytest.mark.parametrize("version", layer_norm.VERSIONS)
def test_layer_norm_of_a_mean_far_above_the_deviation(version):
    assert_layer_norm(version, (64, 70), above=1000.0)


@pytest.mark.parametrize("version", layer_norm.VERSIONS)
def test_layer_norm_has_no_races_and_no_order(version):
    given = layer_norm_given((41, 70))
    run = lambda: layer_norm_of(layer_norm.layer_norm_forward, *given, version=version)
    wanted = run()
    for way in ({"race": True}, *({"seed": seed} for seed in (1, 2, 3, 4))):
        with emulation(**way):
            got = run()
        for x, y in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(x, y)


def test_a_barrier_missing_in_layer_norm_is_noticed():
    assert len(sites("layer_norm.cu")) == 1
    assert not unnoticed("layer_norm.cu", [lambda: assert_layer_norm(2, (41, 70))])


def test_layer_norms_own_check_passes():
    layer_norm.check(np.random.default_rng(0))


def test_gradients_of_layer_norms_weights_are_left_out_on_request():
    x, weight, bias, dy = layer_norm_given((5, 9))
    _, cache = layer_norm.layer_norm_forward(x, weight, bias)
    assert layer_norm_backward(dy, cache, needs_dweight=False)[1:] == (None, None)


def test_what_layer_norms_kernels_do_not_know_is_left_to_the_definition():
    x, weight, bias, _ = layer_norm_given((5, 9))
    of = lambda *args: layer_norm.layer_norm_forward(*args) is NotImplemented
    assert not of(x, weight, bias)
    assert of(x.astype(np.float64), weight, bias)
    assert of(x, weight[:5], bias)
    assert of(x[:0], weight, bias)
