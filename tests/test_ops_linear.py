"""Affine map, lookup, upsampling, concatenation ...: each backward pass is the transpose."""
import numpy as np
import pytest
from gradients import assert_adjoint, assert_grad

from tinydiff.ops import (
    concat_backward,
    concat_forward,
    conv2d_definition,
    dropout_backward,
    dropout_forward,
    embedding_backward,
    embedding_forward,
    linear_backward,
    linear_forward,
    patchify_backward,
    patchify_forward,
    transpose_backward,
    transpose_forward,
    unpatchify_backward,
    unpatchify_forward,
    upsample_nearest_backward,
    upsample_nearest_forward,
)


@pytest.mark.parametrize("shape", [(3,), (4, 3), (2, 5, 3), (1, 1, 1, 3)])
def test_linear_gradients(shape):
    rng = np.random.default_rng(0)
    x, weight, bias = rng.normal(size=shape), rng.normal(size=(4, 3)), rng.normal(size=4)
    y, cache = linear_forward(x, weight, bias)
    np.testing.assert_allclose(y, np.einsum("...i,oi->...o", x, weight) + bias, atol=1e-14)
    dy = rng.normal(size=y.shape)
    dx, dweight, dbias = linear_backward(dy, cache)
    f = lambda: linear_forward(x, weight, bias)[0]
    assert_grad(f, dict(x=x, weight=weight, bias=bias), dy, x=dx, weight=dweight, bias=dbias)


def test_linear_does_only_the_work_that_is_needed():
    rng = np.random.default_rng(0)
    x, weight, bias, dy = (rng.normal(size=s) for s in ((5, 3), (4, 3), (4,), (5, 4)))
    _, cache = linear_forward(x, weight, bias)
    dx, dweight, dbias = linear_backward(dy, cache)
    assert linear_backward(dy, cache, needs_dweight=False)[1:] == (None, None)
    np.testing.assert_array_equal(linear_backward(dy, cache, needs_dweight=False)[0], dx)
    assert linear_backward(dy, cache, needs_dx=False)[0] is None
    np.testing.assert_array_equal(linear_backward(dy, cache, needs_dx=False)[1], dweight)
    _, cache = linear_forward(x, weight)
    assert linear_backward(dy, cache)[2] is None
    np.testing.assert_array_equal(dbias, dy.sum(axis=0))


def test_linear_names_a_wrong_width():
    with pytest.raises(ValueError, match="x has 5 features in its last axis, the weight takes 3"):
        linear_forward(np.ones((2, 5)), np.ones((4, 3)))


@pytest.mark.parametrize("ids", [[1], [2, 0, 2], [[0, 3], [3, 3]]])
def test_embedding_gradients_add_up_where_a_row_is_used_twice(ids):
    rng = np.random.default_rng(0)
    ids, weight = np.array(ids), rng.normal(size=(5, 3))
    y, cache = embedding_forward(ids, weight)
    np.testing.assert_array_equal(y[..., 1], weight[:, 1][ids])
    dy = rng.normal(size=y.shape)
    dweight = embedding_backward(dy, cache)
    assert_grad(lambda: embedding_forward(ids, weight)[0], dict(weight=weight), dy, weight=dweight)
    assert_adjoint(lambda w: embedding_forward(ids, w)[0], lambda dy: embedding_backward(dy, cache),
                   weight, dy)


@pytest.mark.parametrize("ids", [[0, 5], [-1, 2]])
def test_embedding_names_ids_outside_its_table(ids):
    with pytest.raises(ValueError, match=f"ids run from {min(ids)} to {max(ids)}, .* rows 0 to 4"):
        embedding_forward(np.array(ids), np.ones((5, 3)))


def test_the_exchange_of_axes_moves_the_numbers_and_is_undone():
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, 3, 4)), rng.normal(size=(2, 4, 3))
    y, cache = transpose_forward(x)
    assert y.flags.c_contiguous and y.flags.owndata
    for b, n, m in np.ndindex(y.shape):
        assert y[b, n, m] == x[b, m, n]
    dx = transpose_backward(dy, cache)
    assert dx.flags.c_contiguous
    assert_grad(lambda: transpose_forward(x)[0], dict(x=x), dy, x=dx)


@pytest.mark.parametrize(("shape", "scale"), [
    ((2, 3, 4, 5), 2), ((1, 1, 1, 1), 3), ((2, 1, 3, 2), 1)])
def test_upsampling_repeats_pixels_and_is_its_transpose(shape, scale):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    y, cache = upsample_nearest_forward(x, scale)
    np.testing.assert_array_equal(y, np.kron(x, np.ones((1, 1, scale, scale))))
    dy = rng.normal(size=y.shape)
    assert_adjoint(lambda x: upsample_nearest_forward(x, scale)[0],
                   lambda dy: upsample_nearest_backward(dy, cache), x, dy)
    dx = upsample_nearest_backward(dy, cache)
    assert_grad(lambda: upsample_nearest_forward(x, scale)[0], dict(x=x), dy, x=dx)


@pytest.mark.parametrize("size", [(3, 5), (4, 4), (7, 9), (1, 2)])
def test_upsampling_to_a_size_repeats_by_whole_division_and_is_its_transpose(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 3, 2, 3))
    y, cache = upsample_nearest_forward(x, size=size)
    for p, q in np.ndindex(size):
        np.testing.assert_array_equal(y[:, :, p, q], x[:, :, p * 2 // size[0], q * 3 // size[1]])
    dy = rng.normal(size=y.shape)
    dx = upsample_nearest_backward(dy, cache)
    assert_grad(lambda: upsample_nearest_forward(x, size=size)[0], dict(x=x), dy, x=dx)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenation_gradients(axis):
    rng = np.random.default_rng(0)
    shapes = [[2, 3, 4], [2, 3, 4]]
    shapes[1][axis] = 5
    a, b = (rng.normal(size=shape) for shape in shapes)
    y, cache = concat_forward(a, b, axis)
    dy = rng.normal(size=y.shape)
    da, db = concat_backward(dy, cache)
    assert_grad(lambda: concat_forward(a, b, axis)[0], dict(a=a, b=b), dy, a=da, b=db)
    np.testing.assert_array_equal(concat_forward(da, db, axis)[0], dy)


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9])
def test_dropout_is_linear_and_its_own_transpose(rate):
    rng = np.random.default_rng(0)
    x, uniform = rng.normal(size=(4, 5)), rng.random((4, 5))
    y, cache = dropout_forward(x, rate, uniform)
    dy = rng.normal(size=y.shape)
    assert_adjoint(lambda x: dropout_forward(x, rate, uniform)[0],
                   lambda dy: dropout_backward(dy, cache), x, dy)
    np.testing.assert_allclose(y, np.where(uniform < rate, 0.0, x / (1 - rate)), rtol=1e-15)
    dx = dropout_backward(dy, cache)
    assert_grad(lambda: dropout_forward(x, rate, uniform)[0], dict(x=x), dy, x=dx)


def test_dropout_keeps_the_mean():
    uniform = np.random.default_rng(0).random(100_000)
    y, _ = dropout_forward(np.ones(100_000), 0.3, uniform)
    assert abs(y.mean() - 1) < 4 * np.sqrt(0.3 / 0.7 / 100_000)


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_dropout_names_a_rate_out_of_range(rate):
    with pytest.raises(ValueError, match=f"dropout rate {rate} is not in"):
        dropout_forward(np.ones(3), rate, np.zeros(3))


@pytest.mark.parametrize(("shape", "P"), [((2, 3, 4, 6), 2), ((1, 1, 3, 3), 3), ((2, 2, 5, 4), 1)])
def test_patches_are_the_columns_of_a_convolution_whose_stride_is_its_side(shape, P):
    rng = np.random.default_rng(0)
    x, weight = rng.normal(size=shape), rng.normal(size=(4, shape[1], P, P))
    y, cache = patchify_forward(x, P)
    assert y.shape == (shape[0], shape[2] * shape[3] // P**2, shape[1] * P * P)
    want = conv2d_definition(x, weight, stride=P, padding=0)          # (B, 4, H / P, W / P)
    np.testing.assert_allclose(y @ weight.reshape(4, -1).T,
                               want.reshape(*want.shape[:2], -1).swapaxes(1, 2), atol=1e-13)
    assert_adjoint(lambda x: patchify_forward(x, P)[0], lambda dy: patchify_backward(dy, cache),
                   x, rng.normal(size=y.shape))
    np.testing.assert_array_equal(patchify_backward(y, cache), x)


def test_patches_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="patch_size=4 does not divide pictures of 8 x 6"):
        patchify_forward(np.zeros((1, 1, 8, 6)), 4)


@pytest.mark.parametrize(("shape", "P", "rows"), [
    ((2, 6, 12), 2, 3), ((1, 1, 9), 3, 1), ((2, 4, 3), 1, 2)])
def test_tokens_are_put_where_they_stand_and_back(shape, P, rows):
    rng = np.random.default_rng(0)
    x = rng.normal(size=shape)
    y, cache = unpatchify_forward(x, P, rows)
    C, columns = shape[2] // P**2, shape[1] // rows
    assert y.shape == (shape[0], C, rows * P, columns * P)
    for b, c, i, j in np.ndindex(y.shape):                            # the definition
        token = i // P * columns + j // P
        assert y[b, c, i, j] == x[b, token, (i % P * P + j % P) * C + c]
    assert_adjoint(lambda x: unpatchify_forward(x, P, rows)[0],
                   lambda dy: unpatchify_backward(dy, cache), x, rng.normal(size=y.shape))
    np.testing.assert_array_equal(unpatchify_backward(y, cache), x)
