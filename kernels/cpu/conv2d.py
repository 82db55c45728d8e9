"""Which kernels convolve: twins of the pair in tinydiff/ops/conv.py, for float32 on the processor.

1x1 kernels are matrix products.  3x3 kernels of stride 1 take Winograd's shortcut, where there are
pixels enough to repay the transform of the weights; all others, and all in the mode "precise", add
up directly, the gradient in the weights of many channels tap by tap.  So in that mode a picture
comes out the same, to the last bit, whatever it shares a batch with; in the mode "fast", to
rounding.
"""
import numpy as np

from tinydiff.backends.table import Saved, mode
from tinydiff.kernels.cpu import (
    conv2d_direct,
    conv2d_dweight,
    conv2d_pixelwise,
    conv2d_taps,
    conv2d_winograd,
    conv2d_winograd_dweight,
)
from tinydiff.kernels.cpu.simd import NR
from tinydiff.kernels.cpu.winograd import TILE

FEWEST = 8                              # channels in and out from which on transforms pay
TILES = 8                               # tiles of 4x4 pixels up to which transforms do not pay
SMALL = 128                             # pixels of a picture that leave most of NR tiles unused
MANY = 1 << 18                          # kernels whose transforms such a picture would not repay
PAIRS = 1 << 14                         # channels in times out, for which taps go one by one
WEIGHTS = 1 << 18                       # numbers of dU up to which every slice has its own


def conv2d_forward(x, weight, bias=None, stride=1, padding=1):
    """Convolve; see `tinydiff.ops.conv2d_forward`."""
    padding = ((padding,) * 2,) * 2 if isinstance(padding, int) else padding
    if not _supported(x, weight, stride, padding):
        return NotImplemented                             # the definition runs, or names the fault
    x, weight = np.ascontiguousarray(x), np.ascontiguousarray(weight)
    bias_or_zeros = np.zeros(weight.shape[0], np.float32) if bias is None else bias
    shortcut = _shortcut(x, weight, stride, padding)
    if _pixelwise(weight, stride, padding):
        y = conv2d_pixelwise.forward(x, weight, bias_or_zeros)
    elif shortcut:
        (top, _), (left, _) = padding
        Ho, Wo = conv2d_direct.output_size(x.shape, weight.shape, stride, padding)
        y = np.empty((x.shape[0], weight.shape[0], Ho, Wo), np.float32)
        conv2d_winograd.convolve(x, weight, bias_or_zeros, y, top, left)
    else:
        y = conv2d_direct.forward(x, weight, bias_or_zeros, stride, padding)
    return y, Saved(conv2d_backward, (x, weight, bias is not None, stride, padding, shortcut))


def conv2d_backward(dy, arrays, needs_dx=True, needs_dweight=True):
    """Return dx, dweight, dbias; see `tinydiff.ops.conv2d_backward`."""
    x, weight, has_bias, stride, padding, shortcut = arrays
    (top, _), (left, _) = padding
    dy = np.ascontiguousarray(dy)
    dx = dweight = dbias = None
    if _pixelwise(weight, stride, padding):
        if needs_dx:
            dx = conv2d_pixelwise.backward_x(dy, x.shape, weight)
        if needs_dweight:
            dweight, dbias = conv2d_pixelwise.backward_weight(dy, x)
        return dx, dweight, dbias if has_bias else None
    if needs_dx and shortcut:
        dx = np.empty(x.shape, np.float32)
        no_bias = np.zeros(x.shape[1], np.float32)
        conv2d_winograd.convolve(dy, weight, no_bias, dx, 2 - top, 2 - left, flip=True)
    elif needs_dx:
        dx = conv2d_direct.backward_x(dy, x.shape, weight, stride, padding)
    if needs_dweight and shortcut and _worth(x, dy):
        dweight, dbias = conv2d_winograd_dweight.backward_weight(dy, x, top, left)
    elif needs_dweight:
        way = conv2d_taps if weight.shape[0] * weight.shape[1] >= PAIRS else conv2d_dweight
        dweight, dbias = way.backward_weight(dy, x, weight.shape, stride, padding)
    return dx, dweight, dbias if has_bias else None


def _supported(x, weight, stride, padding):
    """Say whether these kernels know such arguments, and whether they fit each other."""
    if not (type(x) is type(weight) is np.ndarray and x.dtype == weight.dtype == np.float32):
        return False
    (top, bottom), (left, right) = padding
    if stride < 1 or min(top, bottom, left, right) < 0 or x.shape[1] != weight.shape[1]:
        return False
    Ho, Wo = conv2d_direct.output_size(x.shape, weight.shape, stride, padding)
    return min(x.size, weight.size, Ho, Wo) > 0


def _pixelwise(weight, stride, padding):
    """Say whether each output is made of one pixel, its own."""
    return weight.shape[2:] == (1, 1) and stride == 1 and padding == ((0, 0), (0, 0))


def _shortcut(x, weight, stride, padding):
    """Say whether to convolve by Winograd's shortcut."""
    O, C, KH, KW = weight.shape
    B, _, H, W = x.shape
    return (mode() != "precise" and (KH, KW, stride) == (3, 3, 1) and min(O, C) >= FEWEST
            and max(max(pair) for pair in padding) <= 2
            and B * -(-H // TILE) * -(-W // TILE) > TILES
            and (H * W >= SMALL or O * C < MANY))


def _worth(x, dy):
    """Say whether dweight by the shortcut has enough tiles, and few enough numbers in dU."""
    B, C, _, _ = x.shape
    _, O, Ho, Wo = dy.shape
    return O * C <= WEIGHTS and B * Ho * Wo >= 16 * NR and C >= NR // 2
