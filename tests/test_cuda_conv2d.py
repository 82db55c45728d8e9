"""Every version of the CUDA convolutions is the definition, and needs each of its barriers.

The .cu files run on the emulator here; the same launches run on a device in test-gpu.
"""
import numpy as np
import pytest
from in_turn import InTurn, less_exact

from tinydiff import ops
from tinydiff.backends.table import Saved
from tinydiff.kernels import conv2d as kernels
from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.kernels.conv2d import PRECISION, VERSIONS, _sizes, conv2d_backward, conv2d_forward
from tinydiff.kernels.conv2d_check import check
from tinydiff.kernels.emulator import emulation, obstacle, unnoticed
from tinydiff.kernels.rounding import rounded

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))

CASES = [                               # B, C, H, W, O, KH, KW, stride, padding
    (1, 1, 1, 1, 1, 1, 1, 1, 0),                            # a single number
    (1, 1, 1, 2, 1, 3, 3, 1, 1),                            # smaller than its kernel
    (2, 3, 7, 5, 4, 3, 3, 1, 1),
    (2, 9, 6, 7, 5, 5, 4, 1, 2),                            # more taps than are staged together
    (1, 2, 6, 6, 3, 3, 3, 1, 3),                            # windows that see only padding
    (3, 20, 9, 12, 7, 3, 3, 2, ((0, 1), (0, 1))),           # Stable Diffusion's downsampling
    (2, 2, 5, 5, 3, 1, 1, 2, 0),                            # phases of dx that no tap reaches
    (2, 5, 11, 6, 4, 2, 2, 2, ((2, 0), (0, 1))),
]
LARGER = [
    (9, 40, 4, 4, 24, 3, 3, 1, 1),                          # small pictures share a tile; slices
    (2, 80, 6, 9, 130, 1, 1, 1, 0),                         # more than 128 channels are made
    (1, 130, 5, 8, 3, 3, 3, 1, ((1, 0), (1, 2))),           # and in dx
]


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def inputs(B, C, H, W, O, KH, KW, stride, padding):
    x, weight, bias = normal(B, C, H, W), normal(O, C, KH, KW, seed=1), normal(O, seed=2)
    y, _ = ops.conv2d_forward.reference(x, weight, bias, stride, padding)
    return x, weight, bias, normal(*y.shape, seed=3)


def definition(x, weight, bias, dy, stride, padding, version, dtype):
    """The definition's y, dx, dweight, dbias; each product's factors rounded, biases not."""
    x, weight, rounded_dy = (rounded(a, PRECISION[version]).astype(dtype) for a in (x, weight, dy))
    y, cache = ops.conv2d_forward.reference(x, weight, bias.astype(dtype), stride, padding)
    dx, dweight, _ = ops.conv2d_backward.reference(rounded_dy, cache)
    return y, dx, dweight, dy.astype(dtype).sum(axis=(2, 3)).sum(axis=0)


def run(x, weight, bias, dy, stride, padding, version):
    y, cache = conv2d_forward(x, weight, bias, stride, padding, version=version)
    return y, *conv2d_backward(dy, cache.arrays)


def assert_right(case, version):
    arrays, (stride, padding) = inputs(*case), case[-2:]
    got = run(*arrays, stride, padding, version)
    by_blas, in_turn = (definition(*(a.view(kind) for a in arrays), stride, padding, version,
                                   np.float32) for kind in (np.ndarray, InTurn))
    double = definition(*arrays, stride, padding, version, np.float64)
    for ours, *theirs, right in zip(got, by_blas, in_turn, double, strict=True):
        assert_as_accurate_as(ours, less_exact(right, *theirs), right)
    return got


# ---- right ----

@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_version_is_the_definition_in_any_order_of_threads(case, version):
    runs = []
    for seed in range(4):
        with emulation(seed=seed):
            runs.append(assert_right(case, version))
    for other in runs[1:]:                                  # sums are in a fixed order
        assert all((a == b).all() for a, b in zip(runs[0], other, strict=True))


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_the_definition_over_several_tiles(version):
    with emulation(seed=version):
        assert_right((1, 3, 33, 17, 2, 3, 3, 1, 1), version)


@pytest.mark.parametrize("version", (3, 4, 5))
@pytest.mark.parametrize("case", LARGER, ids=str)
def test_tiles_of_128_channels_hold_more_and_fewer(case, version):
    with emulation(seed=version):
        assert_right(case, version)


@pytest.mark.parametrize("version", (3, 4, 5))
@pytest.mark.parametrize("case", [(1, 160, 4, 4, 160, 3, 3, 1, 1), (1, 2, 35, 35, 2, 3, 3, 1, 1)],
                         ids=["channels", "pixels"])
def test_long_sums_are_made_of_shorter_ones(case, version, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCKS", 1)               # no slices: all stages in one block
    assert_right(case, version)


RACES = [(1, 2, 3, 5, 2, 3, 3, 1, 1), (1, 9, 4, 3, 2, 2, 1, 2, ((1, 0), (0, 1)))]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("case", RACES, ids=str)
def test_no_version_has_races_or_leaves_its_arrays(case, version):
    with emulation(race=True):
        assert_right(case, version)


def test_float32_is_exact_and_the_other_precisions_round():
    case = 2, 16, 5, 6, 3, 3, 3, 1, 1
    x, weight, bias, _ = inputs(*case)
    right, _ = ops.conv2d_forward.reference(*(a.astype(np.float64) for a in (x, weight, bias)))
    errors = {}
    for precision in ("float32", "tf32", "float16"):
        y, cache = conv2d_forward(x, weight, bias, precision=precision)
        assert isinstance(cache, Saved)
        errors[precision] = np.abs(y - right).max() / np.abs(right).max()
    assert errors["float32"] < 1e-6 < 1e-5 < errors["tf32"] < 1e-3
    assert 1e-5 < errors["float16"] < 1e-3


def test_the_check_tries_every_version_and_would_notice(capsys, monkeypatch):
    check(np.random.default_rng(0), (1, 2, 4, 5, 2, 3))
    assert capsys.readouterr().out.count("right") == 2 * len(VERSIONS)
    monkeypatch.setattr(kernels, "_sizes", lambda *args: (*_sizes(*args)[:-1], np.int32(0)))
    with pytest.raises(AssertionError, match="error"):      # the left padding is forgotten
        check(np.random.default_rng(0), (1, 2, 4, 5, 2, 3), (1,))


# ---- arguments ----

@pytest.mark.parametrize("version", VERSIONS)
def test_strided_arrays_and_no_bias(version):
    x = normal(2, 5, 6, 4).transpose(0, 3, 1, 2)
    weight = normal(3, 3, 4, 5, seed=1).transpose(3, 2, 0, 1)
    dy = normal(2, 6, 5, 5, seed=2).transpose(0, 2, 3, 1)
    arrays = x, weight, np.zeros(5, np.float32), dy
    y, cache = conv2d_forward(x, weight, version=version)
    got = y, *cache.backward(dy, cache.arrays)
    assert got[3] is None
    single = definition(*map(np.ascontiguousarray, arrays), 1, 1, version, np.float32)
    double = definition(*map(np.ascontiguousarray, arrays), 1, 1, version, np.float64)
    for ours, theirs, right in zip(got[:3], single, double, strict=False):
        assert_as_accurate_as(ours, theirs, right)


def test_only_what_is_needed_is_computed():
    x, weight, bias, dy = inputs(1, 2, 3, 3, 2, 3, 3, 1, 1)
    _, cache = conv2d_forward(x, weight, bias, version=1)
    assert cache.backward(dy, cache.arrays, needs_dx=False)[0] is None
    assert cache.backward(dy, cache.arrays, needs_dweight=False)[1:] == (None, None)


@pytest.mark.parametrize("change", ["float64", "channels", "kernel too large", "empty", "stride 3",
                                    "negative padding"])
def test_other_arguments_are_left_to_the_definition(change):
    x, weight, stride, padding = normal(2, 4, 6, 6), normal(5, 4, 3, 3, seed=1), 1, 1
    if change == "float64":
        x, weight = x.astype(np.float64), weight.astype(np.float64)
    elif change == "channels":
        x = x[:, :3]
    elif change == "kernel too large":
        x = x[:, :, :, :0]
    elif change == "empty":
        x = x[:0]
    elif change == "stride 3":
        stride = 3
    else:
        padding = ((-1, 0), (0, 0))
    assert conv2d_forward(x, weight, None, stride, padding) is NotImplemented


@pytest.mark.parametrize("wrong, message", [
    ({"precision": "int8"}, "precision='int8': there are float32, tf32, float16"),
    ({"version": 9}, "version=9: there are 1, 2, 3, 4, 5")])
def test_unknown_choices_are_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        conv2d_forward(normal(1, 1, 3, 3), normal(1, 1, 3, 3), **wrong)


# ---- barriers ----

def launches(file, version):
    """A launch of one version in a file, with sums of two stages; it raises where it is wrong."""
    case = (1, 17, 3, 5, 2, 3, 3, 1, 1) if file == "conv2d.cu" else (
        1, 2, 3, 5, 17, 3, 3, 1, 1) if file == "conv2d_dx.cu" else (3, 1, 7, 7, 2, 3, 3, 1, 1)
    x, weight, bias, dy = inputs(*case)
    padding = ((1, 1), (1, 1))
    y, dx, dweight, _ = definition(x, weight, bias, dy, 1, 1, version, np.float64)
    got, right = {
        "conv2d.cu": (lambda: kernels.forward(x, weight, bias, 1, padding, version), y),
        "conv2d_dx.cu": (lambda: kernels.backward_x(dy, x.shape, weight, 1, padding, version), dx),
        "conv2d_dweight.cu": (
            lambda: kernels.backward_weight(dy, x, weight.shape, 1, padding, version), dweight),
    }[file]
    return lambda: np.testing.assert_allclose(got(), right, atol=1e-4)


FILES = ("conv2d.cu", "conv2d_dx.cu", "conv2d_dweight.cu")


@pytest.mark.parametrize("file", FILES)
def test_no_barrier_can_be_left_out(file, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCKS", 1)               # no slices: all stages in one block
    assert unnoticed(file, [launches(file, version) for version in (2, 3)], seeds=()) == []


@pytest.mark.slow
@pytest.mark.parametrize("version", (3, 4, 5))
@pytest.mark.parametrize("file", FILES)
def test_no_barrier_can_be_left_out_of_any_version(file, version, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCKS", 1)
    assert unnoticed(file, [launches(file, 2), launches(file, version)]) == []
