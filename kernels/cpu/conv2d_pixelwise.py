"""1x1 convolutions: the same linear layer for each pixel, so matrix products alone.

For each picture, with its P pixels in a row::

    y = W x + b        (O, P) = (O, C) (C, P)
    dx = Wᵀ dy         (C, P) = (C, O) (O, P)
    dW = sum over pictures of dy xᵀ
"""
import numpy as np

from tinydiff.kernels.cpu.gemm import NO_BIAS, add_products, multiply


def forward(x, weight, bias):
    """Return y (B, O, H, W) from x (B, C, H, W), contiguous float32 arrays."""
    (B, C, H, W), O = x.shape, weight.shape[0]
    y = np.empty((B, O, H, W), np.float32)
    multiply(weight.reshape(-1), C, 1, x.reshape(-1), H * W, 1, bias, y.reshape(-1), O, H * W, C,
             count=B, b_next=C * H * W, by_row=True)
    return y


def backward_x(dy, x_shape, weight):
    """Return dx."""
    (B, O, H, W), C = dy.shape, weight.shape[1]
    dx = np.empty(x_shape, np.float32)
    multiply(weight.reshape(-1), 1, C, dy.reshape(-1), H * W, 1, NO_BIAS, dx.reshape(-1), C, H * W,
             O, count=B, b_next=O * H * W)
    return dx


def backward_weight(dy, x):
    """Return dweight (O, C, 1, 1) and dbias (O,)."""
    (B, C, H, W), O = x.shape, dy.shape[1]
    dweight, dbias = add_products(dy.reshape(-1), H * W, 1, x.reshape(-1), 1, H * W, O, C, H * W,
                                  count=B, a_next=O * H * W, b_next=C * H * W)
    return dweight.reshape(O, C, 1, 1), dbias
