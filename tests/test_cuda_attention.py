"""The CUDA attention kernels, run by the emulator: each version is as exact as the definition.

Versions 3 and 4 round what they multiply.  They are compared with exact attention on numbers
rounded so, and their error with that of NumPy lines which round at the same places.
"""
from functools import partial

import numpy as np
import pytest

from tinydiff.kernels import attention as kernels
from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.kernels.emulator import emulation, obstacle, sites, unnoticed
from tinydiff.kernels.rounding import rounded
from tinydiff.ops.attention import (
    attention_backward,
    attention_forward,
    causal_mask,
    padding_mask,
)

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))

NAMES = "o", "dq", "dk", "dv"
# The versions with barriers.
FILES = {"attention.cu": [2], "attention_backward.cu": [2], "attention_tensor.cu": [3, 4],
         "attention_tensor_backward.cu": [3, 4]}
# B, N, M, d, e, h.  Each pair of widths is a compilation of its own.
SHAPES = {
    "one query, one key": (64, 1, 1, 18, 7, 2),
    "odd": (3, 33, 17, 18, 7, 2),
    "many queries": (1, 781, 17, 18, 7, 1),
    "many keys": (1, 17, 781, 18, 7, 1),
    "cross, Stable Diffusion": (1, 130, 77, 40, 40, 2),
    "wide heads": (1, 70, 65, 160, 160, 1),
}
SLOW_SHAPES = {
    "self, small net": (1, 256, 256, 16, 16, 2),
    "self, Stable Diffusion": (1, 781, 781, 40, 40, 1),
    "cross, 80 wide": (1, 256, 77, 80, 80, 2),
    "self, 160 wide": (1, 256, 256, 160, 160, 1),
    "one head of an autoencoder": (1, 37, 64, 512, 512, 1),
}


def arrays(B, N, M, d, e, h, spread=1.0):
    """Return q, k, v and the gradient of o."""
    rng = np.random.default_rng(0)
    return [(spread * rng.normal(size=(B, length, h * width))).astype(np.float32)
            for length, width in ((N, d), (M, d), (M, e), (N, e))]


def emulated(version, q, k, v, do, h, *mask):
    o, cache = kernels.attention_forward(q, k, v, h, *mask, version=version)
    return o, *attention_backward(do, cache)


def definition(q, k, v, do, h, *mask):
    o, cache = attention_forward.reference(q, k, v, h, *mask)
    return o, *attention_backward.reference(do, cache)


def as_read(version, x):
    """Return `x` as a version multiplies it."""
    return rounded(x, kernels.PRECISION[version]).astype(np.float32)


def rounding(version, q, k, v, do, h, mask=None):
    """Attention in float32 whose products take rounded factors."""
    seen = partial(as_read, version)
    split = lambda x: seen(x.reshape(*x.shape[:2], h, -1).swapaxes(1, 2))
    join = lambda x: x.swapaxes(1, 2).reshape(x.shape[0], x.shape[2], -1)
    q, k, v, do = map(split, (q, k, v, do))
    scale = np.float32(q.shape[-1] ** -0.5)
    s = q @ k.swapaxes(2, 3) * scale + np.float32(0 if mask is None else mask)
    p = np.exp(s - s.max(axis=-1, keepdims=True))
    l = p.sum(axis=-1, keepdims=True)
    o = seen(p) @ v / l
    ds = p / l * (do @ v.swapaxes(2, 3) - (do * o).sum(axis=-1, keepdims=True))
    p, ds = seen(p / l), seen(ds)
    return tuple(map(join, (o, scale * (ds @ k), scale * (ds.swapaxes(2, 3) @ q),
                            p.swapaxes(2, 3) @ do)))


def assert_accurate(version, q, k, v, do, h, *mask):
    in_64 = definition(*(as_read(version, x).astype(np.float64) for x in (q, k, v, do)), h, *mask)
    in_32 = definition(q, k, v, do, h, *mask) if version < 3 else \
        rounding(version, q, k, v, do, h, *mask)
    got = emulated(version, q, k, v, do, h, *mask)
    for name, ours, r32, r64 in zip(NAMES, got, in_32, in_64, strict=True):
        try:
            assert_as_accurate_as(ours, r32, r64)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("version", kernels.VERSIONS)
@pytest.mark.parametrize("name", SHAPES)
def test_rounding_errors_are_like_the_definitions_own(name, version):
    assert_accurate(version, *arrays(*SHAPES[name]), SHAPES[name][-1])


@pytest.mark.slow
@pytest.mark.parametrize("version", kernels.VERSIONS)
@pytest.mark.parametrize("name", SLOW_SHAPES)
def test_rounding_errors_at_larger_sizes(name, version):
    h = SLOW_SHAPES[name][-1]
    *qkv, do = arrays(*SLOW_SHAPES[name])
    if version > 2 and SLOW_SHAPES[name][3] > kernels.WIDEST:
        assert kernels.attention_forward(*qkv, h, version=version) is NotImplemented
    else:
        assert_accurate(version, *qkv, do, h)


@pytest.mark.parametrize("version", [1, 2])
def test_scores_that_leave_float32s_range_of_exp_are_like_the_definitions(version):
    assert_accurate(version, *arrays(2, 40, 100, 18, 7, 2, spread=12.0), 2)


MASKS = {
    "causal": lambda rng, B, h, N, M: causal_mask(N),
    "causal in float64": lambda rng, B, h, N, M: causal_mask(N, np.float64),
    "padding": lambda rng, B, h, N, M: padding_mask(rng.random((B, M)) < 0.5),
    "one number for each score": lambda rng, B, h, N, M: rng.normal(size=(B, h, N, M)),
    "for each head": lambda rng, B, h, N, M: rng.normal(size=(h, 1, M)),
    "for each query": lambda rng, B, h, N, M: rng.normal(size=(B, 1, N, 1)),
    "a column of keys": lambda rng, B, h, N, M: rng.normal(size=M),
    "transposed": lambda rng, B, h, N, M: rng.normal(size=(M, N)).T,
}


@pytest.mark.parametrize("version", kernels.VERSIONS)
@pytest.mark.parametrize("name", MASKS)
def test_masks_are_added_to_the_scores(name, version):
    B, N, M, h = 2, 37, 37, 2
    mask = MASKS[name](np.random.default_rng(1), B, h, N, M)
    assert_accurate(version, *arrays(B, N, M, 18, 7, h), h,
                    mask if name.endswith("64") else mask.astype(np.float32))


@pytest.mark.parametrize("version", kernels.VERSIONS)
def test_a_query_that_may_read_nothing_gets_zeros_and_gives_no_gradient(version):
    q, k, v, do = arrays(1, 40, 70, 18, 7, 2)
    mask = np.zeros((40, 70), np.float32)
    mask[3], mask[35, :69] = -np.inf, -np.inf                         # nothing; one key
    o, dq, dk, dv = emulated(version, q, k, v, do, 2, mask)
    assert not o[:, 3].any() and not dq[:, 3].any()
    np.testing.assert_array_equal(o[:, 35], as_read(version, v[:, 69]))
    others = np.arange(40) != 3
    _, _, dk_others, dv_others = emulated(version, q[:, others], k, v, do[:, others], 2,
                                          mask[others])
    np.testing.assert_allclose(dk, dk_others, atol=1e-5)
    np.testing.assert_allclose(dv, dv_others, atol=1e-5)


@pytest.mark.parametrize("version", kernels.VERSIONS)
def test_nan_in_a_query_key_or_value_is_not_swallowed(version):
    for n, rows in enumerate(([5], slice(None), slice(None))):
        *qkv, do = arrays(1, 20, 30, 18, 7, 1)
        qkv[n][0, 5, 2] = np.nan
        o, *_ = emulated(version, *qkv, do, 1)
        columns = 2 if n == 2 else slice(None)
        assert np.isnan(o[0, rows, columns]).all()
        assert np.isnan(o).sum() == o[0, rows, columns].size


@pytest.mark.parametrize("version", [3, 4])
def test_inputs_are_rounded_as_announced(version):
    *given, h = *arrays(1, 33, 17, 18, 7, 2), 2
    as_they_are_read = [as_read(version, x) for x in given[:3]]
    assert not np.array_equal(given[0], as_they_are_read[0])
    o, _ = kernels.attention_forward(*given[:3], h, version=version)
    same, _ = kernels.attention_forward(*as_they_are_read, h, version=version)
    np.testing.assert_array_equal(o, same)


def test_the_version_follows_the_precision():
    *given, _ = arrays(1, 5, 6, 18, 7, 2)
    for precision, version in kernels.BEST.items():
        o, _ = kernels.attention_forward(*given, 2, precision=precision)
        same, _ = kernels.attention_forward(*given, 2, version=version)
        np.testing.assert_array_equal(o, same)


@pytest.mark.parametrize("version", kernels.VERSIONS)
def test_the_order_of_the_threads_changes_no_bit(version):
    given = arrays(2, 33, 37, 18, 7, 2)
    wanted = emulated(version, *given, 2, causal_mask(37)[:33])
    for seed in (1, 2, 3, 4):
        with emulation(seed=seed):
            got = emulated(version, *given, 2, causal_mask(37)[:33])
        for x, y in zip(got, wanted, strict=True):
            np.testing.assert_array_equal(x, y)


def small_check(version):
    """Attend in more than one step of queries and of keys: then each barrier matters."""
    assert_accurate(version, *arrays(1, 40, 70, 18, 7, 1), 1, np.zeros(70, np.float32))


@pytest.mark.parametrize("version", kernels.VERSIONS)
def test_there_are_no_races_and_no_access_out_of_bounds(version):
    with emulation(race=True):
        small_check(version)


@pytest.mark.parametrize("file", FILES)
def test_race_mode_notices_any_barrier_that_is_missing(file):
    assert sites(file)
    assert not unnoticed(file, [partial(small_check, FILES[file][-1])], seeds=())


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES)
def test_a_missing_barrier_is_noticed_by_each_version(file):
    for version in FILES[file]:
        assert not unnoticed(file, [partial(small_check, version)])


def test_arrays_of_any_strides_give_the_same_bits():
    given = arrays(2, 20, 33, 18, 7, 2)
    strided = [np.repeat(x, 2, axis=1)[:, ::2].transpose(2, 0, 1).copy().transpose(1, 2, 0)
               for x in given]
    assert not any(x.flags.c_contiguous for x in strided)
    for x, y in zip(emulated(2, *given, 2), emulated(2, *strided, 2), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_the_kernels_do_not_know_is_left_to_the_definition():
    q, k, v, _ = arrays(2, 6, 5, 18, 7, 2)
    of = lambda *args: kernels.attention_forward(*args) is NotImplemented
    assert not of(q, k, v, 2)
    assert of(q.astype(np.float64), k, v, 2)
    assert of(np.ma.array(q), k, v, 2)
    assert of(q, k, v, 3)                                             # 3 does not divide 7 * 2
    assert of(q, k[:, :, :4], v, 2)
    assert of(q, k[:1], v, 2)
    assert of(q, k, v[:, :4], 2)
    assert of(q, k, v, 2, np.zeros((3, 5), np.float32))
    assert of(q, k, v, 2, np.zeros((6, 5), bool))
