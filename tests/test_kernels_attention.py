"""The attention kernels against the definition: as exact, everywhere written, nothing shared."""
import numpy as np
import pytest
from two_threads import on_one_and_two_threads

from tinydiff.kernels.accuracy import assert_as_accurate_as

numba = pytest.importorskip("numba")

from tinydiff.kernels.cpu import attention as kernel  # noqa: E402
from tinydiff.kernels.cpu import attention_backward as backward_kernel  # noqa: E402
from tinydiff.ops.attention import (  # noqa: E402
    attention_backward,
    attention_forward,
    causal_mask,
    padding_mask,
)

NAMES = "o", "dq", "dk", "dv"
# B, N, M, d, e, h.  Where a picture is a few numbers there are many: the largest error of a few
# numbers says little.
SHAPES = {
    "one of everything": (64, 1, 1, 1, 1, 1),
    "one query, one key": (64, 1, 1, 16, 16, 2),
    "one query": (64, 1, 70, 5, 7, 3),
    "one key": (3, 37, 1, 9, 8, 2),
    "odd": (16, 33, 17, 3, 5, 3),
    "widths that fill no tile": (1, 16, 16, 18, 18, 4),
    "self, small net": (3, 64, 64, 16, 16, 4),
    "cross, small net": (3, 64, 20, 16, 16, 4),
    "cross, Stable Diffusion": (1, 150, 77, 40, 40, 2),
    "wide heads": (1, 70, 65, 160, 160, 1),
    "one head of an autoencoder": (1, 40, 64, 512, 512, 1),
    "many keys": (1, 40, 4096, 16, 16, 1),
    "several blocks": (1, 290, 200, 40, 24, 1),
}


def arrays(B, N, M, d, e, h, spread=1.0):
    """Return q, k, v and the gradient of o."""
    rng = np.random.default_rng(0)
    return [(spread * rng.normal(size=(B, length, h * width))).astype(np.float32)
            for length, width in ((N, d), (M, d), (M, e), (N, e))]


def fast(q, k, v, do, h, *mask):
    o, cache = kernel.attention_forward(q, k, v, h, *mask)
    return o, *cache.backward(do, cache.arrays)


def reference(q, k, v, do, h, *mask):
    o, cache = attention_forward.reference(q, k, v, h, *mask)
    return o, *attention_backward.reference(do, cache)


def assert_accurate(q, k, v, do, h, *mask):
    in_64 = reference(*(x.astype(np.float64) for x in (q, k, v, do)), h, *mask)
    in_32 = reference(q, k, v, do, h, *mask)
    for name, got, r32, r64 in zip(NAMES, fast(q, k, v, do, h, *mask), in_32, in_64, strict=True):
        try:
            assert_as_accurate_as(got, r32, r64)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from None


@pytest.mark.parametrize("name", SHAPES)
def test_rounding_errors_are_like_the_definitions_own(name):
    assert_accurate(*arrays(*SHAPES[name]), SHAPES[name][-1])


def test_scores_that_leave_float32s_range_of_exp_are_like_the_definitions():
    assert_accurate(*arrays(30, 40, 100, 16, 16, 2, spread=12.0), 2)


def test_a_scale_may_be_given():
    assert_accurate(*arrays(1, 20, 30, 8, 8, 2), 2, None, 0.7)


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


@pytest.mark.parametrize("name", MASKS)
def test_masks_are_added_to_the_scores(name):
    B, N, M, h = 2, 77, 77, 3
    q, k, v, do = arrays(B, N, M, 12, 12, h)
    mask = MASKS[name](np.random.default_rng(1), B, h, N, M)
    assert_accurate(q, k, v, do, h, mask if name.endswith("64") else mask.astype(np.float32))


def test_a_query_that_may_read_nothing_gets_zeros_and_gives_no_gradient():
    q, k, v, do = arrays(1, 40, 70, 16, 16, 2)
    mask = np.zeros((40, 70), np.float32)
    mask[3], mask[35, :69] = -np.inf, -np.inf                         # nothing; one key
    o, dq, dk, dv = fast(q, k, v, do, 2, mask)
    assert not o[:, 3].any() and not dq[:, 3].any()
    np.testing.assert_array_equal(o[:, 35], v[:, 69])
    others = np.arange(40) != 3
    _, _, dk_others, dv_others = fast(q[:, others], k, v, do[:, others], 2, mask[others])
    np.testing.assert_allclose(dk, dk_others, atol=1e-5)
    np.testing.assert_allclose(dv, dv_others, atol=1e-5)


def test_nan_in_a_query_key_or_value_is_not_swallowed():
    for n, rows in enumerate(([5], slice(None), slice(None))):
        *qkv, do = arrays(1, 20, 30, 16, 16, 1)
        qkv[n][0, 5, 2] = np.nan
        o, *_ = fast(*qkv, do, 1)
        columns = 2 if n == 2 else slice(None)
        assert np.isnan(o[0, rows, columns]).all()
        assert np.isnan(o).sum() == o[0, rows, columns].size


@pytest.mark.parametrize("name", ["odd", "widths that fill no tile", "several blocks"])
def test_every_number_is_written_and_no_other(name, monkeypatch):
    given, h = arrays(*SHAPES[name]), SHAPES[name][-1]
    wanted = fast(*given, h)
    around = []

    def nan(shape, dtype):
        """Make an array amid a larger one of NaN, and of NaN itself."""
        size = int(np.prod(shape))
        around.append(np.full(size + 128, np.nan, dtype))
        return around[-1][64:64 + size].reshape(shape)

    for module in (kernel, backward_kernel):
        monkeypatch.setattr(module, "np", _Creating(nan))
    got = fast(*given, h)
    assert len(around) == 6                                           # o, m, l; dq, dk, dv
    for x, y in zip(got, wanted, strict=True):
        np.testing.assert_array_equal(x, y)
    for whole in around:
        assert np.isnan(whole[:64]).all() and np.isnan(whole[-64:]).all()
        assert not np.isnan(whole[64:-64]).any()


class _Creating:
    """NumPy, with another `empty` and `empty_like`."""

    def __init__(self, empty):
        self.empty, self.empty_like = empty, lambda x: empty(x.shape, x.dtype)

    def __getattr__(self, name):
        return getattr(np, name)


@pytest.mark.parametrize("name", SHAPES)
def test_one_thread_or_two_give_the_same_bits(name):
    given = arrays(*SHAPES[name])
    results = on_one_and_two_threads(lambda: fast(*given, SHAPES[name][-1]))
    for one, two in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("name", ["odd", "one key", "self, small net"])
def test_a_sample_alone_gives_the_bits_it_gives_in_a_batch(name):
    given, h = arrays(*SHAPES[name]), SHAPES[name][-1]
    together = fast(*given, h)
    for n in range(len(given[0])):
        for alone, all_of_them in zip(fast(*(x[n:n + 1] for x in given), h), together, strict=True):
            np.testing.assert_array_equal(alone[0], all_of_them[n])


def test_arrays_of_any_strides_give_the_same_bits():
    given = arrays(2, 20, 33, 16, 16, 2)
    strided = [np.repeat(x, 2, axis=1)[:, ::2].transpose(2, 0, 1).copy().transpose(1, 2, 0)
               for x in given]
    assert not any(x.flags.c_contiguous for x in strided)
    for x, y in zip(fast(*given, 2), fast(*strided, 2), strict=True):
        np.testing.assert_array_equal(x, y)


def test_what_the_kernel_does_not_know_is_left_to_the_definition():
    q, k, v, _ = arrays(2, 6, 5, 4, 4, 2)
    of = lambda *args: kernel.attention_forward(*args) is NotImplemented
    assert not of(q, k, v, 2)
    assert of(q.astype(np.float64), k, v, 2)
    assert of(np.ma.array(q), k, v, 2)
    assert of(q, k, v, 3)                                             # 3 does not divide 8
    assert of(q, k[:, :, :4], v, 2)
    assert of(q, k[:1], v, 2)
    assert of(q, k, v[:, :4], 2)
    assert of(q, k[:, :0], v[:, :0], 2)
    assert of(q, k, v, 2, np.zeros((6, 5), bool))
    assert of(q, k, v, 2, np.zeros((5, 6), np.float32))


def test_the_cache_is_as_small_as_the_inputs():
    B, N, M, d, e, h = 1, 300, 200, 40, 40, 2
    q, k, v, _ = arrays(B, N, M, d, e, h)
    _, cache = kernel.attention_forward(q, k, v, h)
    kept = [x for x in cache.arrays if isinstance(x, np.ndarray)]
    assert all(any(x is y for x in kept) for y in (q, k, v))          # themselves, no copies
    assert sum(x.size for x in kept) < q.size + k.size + v.size + 2 * B * h * N + 16
