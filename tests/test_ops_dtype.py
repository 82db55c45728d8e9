"""Every op keeps its input's dtype, forward and backward, and leaves its inputs alone."""
import numpy as np
import pytest

from tinydiff import ops
from tinydiff.backends.table import obstacle, use

MODES = ["reference"] if obstacle() else ["reference", "fast"]
U, KEEP = np.random.default_rng(1).random((2, 4)), np.ones((2, 5), bool)
ARGUMENTS = {          # name: (shapes of the arrays to differentiate, the call)
    "attention": ([(2, 3, 4), (2, 5, 4), (2, 5, 4)],
                  lambda q, k, v: ops.attention_forward(
                      q, k, v, 2, ops.padding_mask(np.array(KEEP, like=q), q.dtype), scale=0.5)),
    "clamp": ([(2, 4)], lambda x: ops.clamp_forward(x, -0.5, 0.5)),
    "concat": ([(2, 3), (2, 4)], ops.concat_forward),
    "conv2d": ([(2, 3, 6, 5), (4, 3, 3, 3), (4,)], ops.conv2d_forward),
    "conv2d strided": ([(2, 3, 6, 5), (4, 3, 3, 3), (4,)],
                       lambda x, w, b: ops.conv2d_forward(x, w, b, 2, ((0, 1), (0, 1)))),
    "conv2d pointwise": ([(2, 3, 6, 5), (4, 3, 1, 1), (4,)],
                         lambda x, w, b: ops.conv2d_forward(x, w, b, padding=0)),
    "dropout": ([(2, 4)], lambda x: ops.dropout_forward(x, 0.3, np.array(U, like=x))),
    "embedding": ([(5, 3)], lambda w: ops.embedding_forward(
        np.array([[0, 4], [4, 1]], like=w), w)),
    "gate": ([(2, 3, 4), (2, 4)], ops.gate_forward),
    "geglu": ([(2, 4)], ops.geglu_forward),
    "gelu": ([(2, 4)], ops.gelu_forward),
    "gelu_tanh": ([(2, 4)], ops.gelu_tanh_forward),
    "group_norm": ([(2, 4, 3, 3), (4,), (4,)],
                   lambda x, w, b: ops.group_norm_forward(x, w, b, 2)),
    "group_norm_silu": ([(2, 4, 3, 3), (4,), (4,), (2, 4), (2, 4)],
                        lambda x, w, b, scale, shift: ops.group_norm_silu_forward(
                            x, w, b, 2, scale=scale, shift=shift)),
    "layer_norm": ([(2, 3, 4), (4,), (4,)], ops.layer_norm_forward),
    "linear": ([(2, 3, 4), (5, 4), (5,)], ops.linear_forward),
    "mish": ([(2, 4)], ops.mish_forward),
    "modulate": ([(2, 3, 4), (2, 4), (2, 4)], ops.modulate_forward),
    "patchify": ([(2, 3, 4, 4)], lambda x: ops.patchify_forward(x, 2)),
    "quick_gelu": ([(2, 4)], ops.quick_gelu_forward),
    "relu": ([(2, 4)], ops.relu_forward),
    "reparameterise": ([(2, 4), (2, 4)],
                       lambda m, v: ops.reparameterise_forward(
                           m, v, np.array(U.astype(m.dtype), like=m))),
    "silu": ([(2, 4)], ops.silu_forward),
    "softmax": ([(2, 4)], ops.softmax_forward),
    "transpose": ([(2, 3, 4)], ops.transpose_forward),
    "unit": ([(2, 4)], ops.unit_forward),
    "unpatchify": ([(2, 6, 8)], lambda x: ops.unpatchify_forward(x, 2, rows=3)),
    "upsample_nearest": ([(2, 3, 4, 4)], ops.upsample_nearest_forward),
}


def test_no_op_is_forgotten():
    pairs = {name.removesuffix("_backward") for name in ops.__all__ if name.endswith("_backward")}
    assert pairs == {name.split()[0] for name in ARGUMENTS}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ARGUMENTS)
def test_the_dtype_is_kept_and_inputs_are_not_written_to(name, dtype, mode):
    rng = np.random.default_rng(0)
    shapes, forward = ARGUMENTS[name]
    arrays = [rng.normal(size=shape).astype(dtype) for shape in shapes]
    copies = [a.copy() for a in arrays]
    with use(mode):
        y, cache = forward(*arrays)
    y_copy = y.copy()
    dy = rng.normal(size=y.shape).astype(dtype)
    dy_copy = dy.copy()
    gradients = getattr(ops, f"{name.split()[0]}_backward")(dy, cache)
    gradients = gradients if isinstance(gradients, tuple) else (gradients,)

    assert y.dtype == dtype
    assert len(gradients) == len(arrays)
    for gradient, array in zip(gradients, arrays, strict=True):
        assert gradient.dtype == dtype and gradient.shape == array.shape
    for array, copy in zip([*arrays, y, dy], [*copies, y_copy, dy_copy], strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_dtype_of_the_rest(dtype):
    assert ops.causal_mask(3, dtype).dtype == dtype
    assert ops.padding_mask(np.array([[True, False]]), dtype).dtype == dtype
    assert ops.timestep_embedding(np.array([1, 2]), 4, dtype=dtype).dtype == dtype
    x, w, b = (np.ones(s, dtype) for s in ((1, 1, 3, 3), (1, 1, 3, 3), 1))
    assert ops.conv2d_definition(x, w, b).dtype == dtype
