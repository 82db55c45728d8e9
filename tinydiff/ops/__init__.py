"""Pure pairs of functions: ``f_forward -> (y, cache)``, ``f_backward(dy, cache) -> gradients``."""
from tinydiff.ops.activations import (
    mish_backward,
    mish_forward,
    quick_gelu_backward,
    quick_gelu_forward,
    relu_backward,
    relu_forward,
    silu_backward,
    silu_forward,
)
from tinydiff.ops.attention import (
    AttentionCache,
    attention_backward,
    attention_forward,
    causal_mask,
    padding_mask,
)
from tinydiff.ops.concat import concat_backward, concat_forward
from tinydiff.ops.conv import conv2d_backward, conv2d_definition, conv2d_forward
from tinydiff.ops.dropout import dropout_backward, dropout_forward
from tinydiff.ops.embedding import check_ids, embedding_backward, embedding_forward
from tinydiff.ops.gaussian import (
    clamp_backward,
    clamp_forward,
    reparameterise_backward,
    reparameterise_forward,
)
from tinydiff.ops.gelu import (
    geglu_backward,
    geglu_forward,
    gelu_backward,
    gelu_forward,
    gelu_tanh_backward,
    gelu_tanh_forward,
)
from tinydiff.ops.linear import linear_backward, linear_forward
from tinydiff.ops.modulate import (
    gate_backward,
    gate_forward,
    modulate_backward,
    modulate_forward,
)
from tinydiff.ops.norm import (
    group_norm_backward,
    group_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
)
from tinydiff.ops.norm_silu import group_norm_silu_backward, group_norm_silu_forward
from tinydiff.ops.patches import (
    patchify_backward,
    patchify_forward,
    unpatchify_backward,
    unpatchify_forward,
)
from tinydiff.ops.resize import upsample_nearest_backward, upsample_nearest_forward
from tinydiff.ops.softmax import softmax_backward, softmax_forward
from tinydiff.ops.timestep import timestep_embedding
from tinydiff.ops.transpose import transpose_backward, transpose_forward
from tinydiff.ops.unit import unit_backward, unit_forward

__all__ = [
    "AttentionCache", "attention_backward", "attention_forward", "causal_mask", "check_ids",
    "clamp_backward", "clamp_forward", "concat_backward", "concat_forward", "conv2d_backward",
    "conv2d_definition", "conv2d_forward", "dropout_backward", "dropout_forward",
    "embedding_backward", "embedding_forward", "gate_backward", "gate_forward", "geglu_backward",
    "geglu_forward", "gelu_backward", "gelu_forward", "gelu_tanh_backward", "gelu_tanh_forward",
    "group_norm_backward", "group_norm_forward", "group_norm_silu_backward",
    "group_norm_silu_forward", "layer_norm_backward", "layer_norm_forward", "linear_backward",
    "linear_forward", "mish_backward", "mish_forward", "modulate_backward", "modulate_forward",
    "padding_mask", "patchify_backward", "patchify_forward", "quick_gelu_backward",
    "quick_gelu_forward", "relu_backward", "relu_forward", "reparameterise_backward",
    "reparameterise_forward", "silu_backward", "silu_forward", "softmax_backward",
    "softmax_forward", "timestep_embedding", "transpose_backward", "transpose_forward",
    "unit_backward", "unit_forward", "unpatchify_backward", "unpatchify_forward",
    "upsample_nearest_backward", "upsample_nearest_forward",
]
