"""Parameters, modules, the tape, and thin layers over `tinydiff.ops`."""
from tinydiff.nn.activations import ACTIVATIONS, Pointwise, activation
from tinydiff.nn.layers import (
    Attention,
    Concat,
    Conv2d,
    Dropout,
    Embedding,
    GroupNorm,
    GroupNormAct,
    LayerNorm,
    Linear,
    UpsampleNearest,
)
from tinydiff.nn.module import Module, Parameter
from tinydiff.nn.tape import NO_TAPE, Tape

__all__ = [
    "ACTIVATIONS",
    "NO_TAPE",
    "Attention",
    "Concat",
    "Conv2d",
    "Dropout",
    "Embedding",
    "GroupNorm",
    "GroupNormAct",
    "LayerNorm",
    "Linear",
    "Module",
    "Parameter",
    "Pointwise",
    "Tape",
    "UpsampleNearest",
    "activation",
]
