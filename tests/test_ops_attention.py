"""Attention: right gradients, no leak through a mask, no opinion about order."""
import numpy as np
import pytest
from gradients import assert_grad

from tinydiff.ops import (
    attention_backward,
    attention_forward,
    causal_mask,
    padding_mask,
    softmax_backward,
    softmax_forward,
)


def draw(B, N, M, D, Dv, seed=0):
    rng = np.random.default_rng(seed)
    return *(rng.normal(size=s) for s in ((B, N, D), (B, M, D), (B, M, Dv))), rng


def definition(q, k, v, num_heads, mask=None, scale=None):
    """One query at a time."""
    (B, N, D), M, Dv = q.shape, k.shape[1], v.shape[2]
    d, dv = D // num_heads, Dv // num_heads
    mask = np.broadcast_to(0.0 if mask is None else mask, (B, num_heads, N, M))
    scale = 1 / np.sqrt(d) if scale is None else scale
    o = np.zeros((B, N, Dv))
    for b, i, n in np.ndindex(B, num_heads, N):
        scores = scale * k[b, :, i * d:(i + 1) * d] @ q[b, n, i * d:(i + 1) * d] + mask[b, i, n]
        p = np.exp(scores) / np.exp(scores).sum()
        o[b, n, i * dv:(i + 1) * dv] = p @ v[b, :, i * dv:(i + 1) * dv]
    return o


KEEP = np.array([[True, True, False, True], [True, False, False, False]])
CASES = {
    "self": (dict(B=2, N=3, M=3, D=4, Dv=4), 2, None, None),
    "one token": (dict(B=2, N=1, M=1, D=3, Dv=3), 1, None, None),
    "cross": (dict(B=2, N=5, M=3, D=6, Dv=9), 3, None, None),
    "causal": (dict(B=1, N=4, M=4, D=4, Dv=4), 2, causal_mask(4, np.float64), 0.3),
    "padding": (dict(B=2, N=3, M=4, D=4, Dv=2), 1, padding_mask(KEEP, np.float64), None),
}


@pytest.mark.parametrize("case", CASES)
def test_attention_is_its_definition(case):
    sizes, h, mask, scale = CASES[case]
    q, k, v, _ = draw(**sizes)
    o, _ = attention_forward(q, k, v, h, mask, scale)
    np.testing.assert_allclose(o, definition(q, k, v, h, mask, scale), atol=1e-13)


@pytest.mark.parametrize("case", CASES)
def test_attention_gradients(case):
    sizes, h, mask, scale = CASES[case]
    q, k, v, rng = draw(**sizes)
    o, cache = attention_forward(q, k, v, h, mask, scale)
    dy = rng.normal(size=o.shape)
    dq, dk, dv = attention_backward(dy, cache)
    f = lambda: attention_forward(q, k, v, h, mask, scale)[0]
    assert_grad(f, dict(q=q, k=k, v=v), dy, q=dq, k=dk, v=dv)


def test_permuting_the_keys_changes_nothing_and_the_queries_only_the_order():
    q, k, v, rng = draw(2, 5, 7, 6, 6)
    o, _ = attention_forward(q, k, v, 3)
    keys, queries = rng.permutation(7), rng.permutation(5)
    o_keys, _ = attention_forward(q, k[:, keys], v[:, keys], 3)
    o_queries, _ = attention_forward(q[:, queries], k, v, 3)
    np.testing.assert_allclose(o_keys, o, atol=1e-13)
    np.testing.assert_allclose(o_queries, o[:, queries], atol=1e-13)


def test_the_future_does_not_leak_through_a_causal_mask():
    q, k, v, rng = draw(1, 6, 6, 4, 4)
    o, cache = attention_forward(q, k, v, 2, causal_mask(6, np.float64))
    k[:, 4:], v[:, 4:] = 9.0, 9.0
    o_changed, _ = attention_forward(q, k, v, 2, causal_mask(6, np.float64))
    np.testing.assert_array_equal(o[:, :4], o_changed[:, :4])
    assert not np.allclose(o[:, 4:], o_changed[:, 4:])
    dy = rng.normal(size=o.shape)
    dy[:, 3:] = 0.0
    _, dk, dv = attention_backward(dy, cache)
    assert np.abs(dk[:, 3:]).max() == np.abs(dv[:, 3:]).max() == 0.0


def test_padding_is_not_read():
    q, k, v, _ = draw(2, 3, 4, 4, 4)
    o, cache = attention_forward(q, k, v, 2, padding_mask(KEEP, np.float64))
    assert np.abs(cache.probabilities[1, :, :, 1:]).max() == 0.0
    alone, _ = attention_forward(q[1:], k[1:, :1], v[1:, :1], 2)
    np.testing.assert_allclose(o[1:], alone, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_query_that_may_read_nothing_gets_zeros(dtype):
    q, k, v, rng = draw(2, 3, 4, 4, 4)
    q, k, v = q.astype(dtype), k.astype(dtype), v.astype(dtype)
    mask = padding_mask(np.array([[True] * 4, [False] * 4]), dtype)
    o, cache = attention_forward(q, k, v, 2, mask)
    assert np.abs(o[1]).max() == 0.0 and np.isfinite(o).all()
    for gradient in attention_backward(rng.normal(size=o.shape).astype(dtype), cache):
        assert np.isfinite(gradient).all() and np.abs(gradient[1]).max() == 0.0


def test_pictures_do_not_see_each_other():
    q, k, v, _ = draw(3, 4, 5, 4, 4)
    o, _ = attention_forward(q, k, v, 2)
    k[1], v[1] = 5.0, -5.0
    o_changed, _ = attention_forward(q, k, v, 2)
    np.testing.assert_array_equal(o[[0, 2]], o_changed[[0, 2]])


def test_heads_must_divide_the_width():
    q, k, v, _ = draw(1, 2, 2, 6, 6)
    with pytest.raises(ValueError, match="num_heads=4 does not divide D=6 and Dv=6"):
        attention_forward(q, k, v, 4)


@pytest.mark.parametrize(("shape", "axis"), [((4,), -1), ((3, 5), 0), ((2, 3, 4), 1), ((2, 1), -1)])
def test_softmax_gradients(shape, axis):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    _, cache = softmax_forward(x, axis)
    dy = rng.normal(size=shape)
    dx = softmax_backward(dy, cache)
    if x.shape[axis] == 1:                         # a certainty: no score can change it
        assert np.abs(dx).max() == 0.0
    else:
        assert_grad(lambda: softmax_forward(x, axis)[0], dict(x=x), dy, x=dx)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_rows_sum_to_one_whatever_is_added(dtype):
    x = np.random.default_rng(0).normal(size=(5, 7)).astype(dtype)
    y, _ = softmax_forward(x)
    tolerance = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(y.sum(axis=-1), 1.0, rtol=tolerance)
    np.testing.assert_allclose(softmax_forward(x + 64)[0], y, rtol=200 * tolerance)
    np.testing.assert_allclose(y, np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_is_calm_at_the_extremes(dtype):
    x = np.array([[1e4, -1e4, 0], [-1e4, -1e4, -np.inf], [-np.inf, -np.inf, -np.inf]], dtype)
    y, cache = softmax_forward(x)
    np.testing.assert_array_equal(y, np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 0, 0]], dtype))
    assert np.isfinite(softmax_backward(np.ones_like(y), cache)).all()


def test_softmax_may_write_over_its_input():
    x = np.random.default_rng(0).normal(size=(5, 7))
    want, _ = softmax_forward(x.copy(), axis=0)
    y, _ = softmax_forward(x, axis=0, out=x)
    assert y is x
    np.testing.assert_array_equal(y, want)
