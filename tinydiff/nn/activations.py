"""Layers without parameters around one function of one array, and the activations among them."""
from tinydiff import ops
from tinydiff.nn.module import Module
from tinydiff.nn.tape import NO_TAPE


class Pointwise(Module):
    """A layer without parameters around one pair of functions of one array.

    Parameters
    ----------
    op_forward, op_backward : callable
        ``op_forward(x) -> (y, cache)`` and ``op_backward(dy, cache) -> dx``.
    """

    def __init__(self, op_forward, op_backward):
        self.op_forward = op_forward
        self.op_backward = op_backward

    def forward(self, x, tape=NO_TAPE):
        """Apply the function."""
        y, cache = self.op_forward(x)
        tape.save(self, cache)
        return y

    def backward(self, dy, tape):
        """Return dx, the shape of x."""
        return self.op_backward(dy, tape.load(self))


ACTIVATIONS = {                       # the names that published configs use
    "silu": (ops.silu_forward, ops.silu_backward),
    "swish": (ops.silu_forward, ops.silu_backward),
    "gelu": (ops.gelu_forward, ops.gelu_backward),
    "quick_gelu": (ops.quick_gelu_forward, ops.quick_gelu_backward),
    "gelu_new": (ops.gelu_tanh_forward, ops.gelu_tanh_backward),
    "gelu_pytorch_tanh": (ops.gelu_tanh_forward, ops.gelu_tanh_backward),
    "mish": (ops.mish_forward, ops.mish_backward),
    "relu": (ops.relu_forward, ops.relu_backward),
}


def activation(name):
    """Return a fresh activation layer, by its published name.

    Raises
    ------
    ValueError
        If the name is not one of `ACTIVATIONS`.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return Pointwise(*ACTIVATIONS[name])
