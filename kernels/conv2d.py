"""Convolution kernels: how each version is launched; see conv2d_check.py to check and time them.

=======  =======================================================================  =============
version  idea                                                                     precision
=======  =======================================================================  =============
1        one thread per output                                                    float32
2        the input's tile, with its halo, in shared memory                        float32
3        128 x 128 sums in the registers of a block: the implicit GEMM            float32
4        the same sums made by tensor cores                                       tf32
5        the same from two float16 numbers in each word                           float16
=======  =======================================================================  =============

Each exists for the forward pass (conv2d.cu), for the gradient in x (conv2d_dx.cu) and for the
gradient in the weight (conv2d_dweight.cu).  What each saves is counted in kernels/README.md.

`conv2d_forward` and `conv2d_backward` are the twins of the pair in tinydiff/ops/conv.py.
"""
import numpy as np

from tinydiff.backends.table import Saved
from tinydiff.kernels.launch import ceil_div, compile_kernel, empty

VERSIONS = {1: "v1_naive", 2: "v2_tiled", 3: "v3_registers", 4: "v4_tf32", 5: "v5_half"}
PRECISION = {1: "float32", 2: "float32", 3: "float32", 4: "tf32", 5: "float16"}     # of the factors
FASTEST = {precision: version for version, precision in PRECISION.items()}
MACROS = {"conv2d.cu": [{}], "conv2d_dx.cu": [{}], "conv2d_dweight.cu": [{}]}

TILE = 16                               # versions 1 and 2: threads per block side
THREADS, BM, BN = 256, 128, 128         # versions 3 to 5, as in conv2d_tiles.cuh
DEPTH, TAPS, ROW = 72, 9, BM + 8        # ... and in conv2d_windows.cuh
BLOCKS = 264                            # two for each of an H100's 132 multiprocessors


def conv2d_forward(x, weight, bias=None, stride=1, padding=1, *, precision="float32", version=None):
    """Convolve; see `tinydiff.ops.conv2d_forward`.

    Parameters
    ----------
    x, weight, bias, stride, padding
        As there; float32.
    precision : {"float32", "tf32", "float16"}, default "float32"
        What the factors are rounded to; sums are float32 always.
    version : int, optional
        One of `VERSIONS`; by default the fastest of that precision.

    Returns
    -------
    y : (B, O, Ho, Wo) ndarray
    cache : Saved

    Raises
    ------
    ValueError
        If there is no such precision or version.
    """
    if precision not in FASTEST:
        raise ValueError(f"precision={precision!r}: there are {', '.join(FASTEST)}")
    version = version or FASTEST[precision]
    if version not in VERSIONS:
        raise ValueError(f"version={version}: there are {', '.join(map(str, VERSIONS))}")
    padding = ((padding,) * 2,) * 2 if isinstance(padding, int) else padding
    if not _supported(x, weight, bias, stride, padding):
        return NotImplemented                             # the definition runs, or names the fault
    y = forward(x, weight, bias, stride, padding, version)
    return y, Saved(conv2d_backward, (x, weight, bias is not None, stride, padding, version))


def conv2d_backward(dy, arrays, needs_dx=True, needs_dweight=True):
    """Return dx, dweight, dbias; see `tinydiff.ops.conv2d_backward`."""
    x, weight, has_bias, stride, padding, version = arrays
    assert dy.shape[2:] == output_size(x.shape, weight.shape, stride, padding)
    dx = dweight = dbias = None
    if needs_dx:
        dx = backward_x(dy, x.shape, weight, stride, padding, version)
    if needs_dweight:
        dweight = backward_weight(dy, x, weight.shape, stride, padding, version)
        dbias = dy.sum(axis=(2, 3)).sum(axis=0) if has_bias else None
    return dx, dweight, dbias


# ---- one direction, one version ----

def forward(x, weight, bias, stride, padding, version):
    """Return y; the arguments are `conv2d_forward`'s, `padding` in full."""
    B, (O, C, KH, KW) = x.shape[0], weight.shape
    Ho, Wo = output_size(x.shape, weight.shape, stride, padding)
    x, weight = _contiguous(x), _contiguous(weight)
    bias = None if bias is None else _contiguous(bias)
    sizes = _sizes(x.shape, weight.shape, stride, padding)
    kernel = compile_kernel("conv2d.cu", f"conv2d_{VERSIONS[version]}")
    if version <= 2:
        y = empty((B, O, Ho, Wo), like=x)
        block = (TILE, TILE, 1)                           # one thread per output
        grid = (ceil_div(Wo, TILE), ceil_div(Ho, TILE), B * O)       # one block per tile per plane
        side = stride * (TILE - 1)
        patch = 4 * (side + KH) * (side + KW) if version == 2 else 0
        kernel(grid, block, (x, weight, bias, y, *sizes), shared_mem=patch)
        return y

    tile, tiles = _tile(B, Ho, Wo)
    slices = _slices(tiles * ceil_div(O, BM), _stages(C, (KH, KW), version))
    y = empty((slices, B, O, Ho, Wo), like=x)
    block = (THREADS, 1, 1)                               # 8 x 8 sums each
    grid = (tiles, ceil_div(O, BM), slices)               # one block per tile, BM channels, slice
    kernel(grid, block, (x, weight, bias if slices == 1 else None, y, *sizes,
                         *map(np.int32, (*tile, slices))),
           shared_mem=_shared(tile, (KH, KW), stride))
    if slices == 1:
        return y[0]
    return y.sum(axis=0) if bias is None else y.sum(axis=0) + bias[:, None, None]


def backward_x(dy, x_shape, weight, stride, padding, version):
    """Return dx, of shape `x_shape`."""
    (B, C, H, W), (O, _, KH, KW) = x_shape, weight.shape
    dy, weight = _contiguous(dy), _contiguous(weight)
    sizes = _sizes(x_shape, weight.shape, stride, padding)
    kernel = compile_kernel("conv2d_dx.cu", f"conv2d_dx_{VERSIONS[version]}")
    if version <= 2:
        dx = empty(x_shape, like=dy)
        block = (TILE, TILE, 1)                           # one thread per entry of dx
        grid = (ceil_div(W, TILE), ceil_div(H, TILE), B * C)         # one block per tile per plane
        rows, columns = ((TILE + K - 2) // stride + 2 for K in (KH, KW))
        kernel(grid, block, (dy, weight, dx, *sizes),
               shared_mem=4 * rows * columns if version == 2 else 0)
        return dx

    tile, tiles = _tile(B, ceil_div(H, stride), ceil_div(W, stride))
    phases = [(ceil_div(KH - a, stride), ceil_div(KW - b, stride))        # the taps of each
              for a, b in np.ndindex(stride, stride)]
    slices = _slices(tiles * ceil_div(C, BM) * len(phases), _stages(O, phases[0], version))
    dx = empty((slices, *x_shape), like=dy)
    block = (THREADS, 1, 1)                               # 8 x 8 sums each
    grid = (tiles, ceil_div(C, BM), len(phases) * slices)     # one per tile, BM channels, ...
    kernel(grid, block, (dy, weight, dx, *sizes, *map(np.int32, (*tile, slices))),
           shared_mem=max(_shared(tile, taps, 1) for taps in phases))
    return dx[0] if slices == 1 else dx.sum(axis=0)


def backward_weight(dy, x, weight_shape, stride, padding, version):
    """Return dweight, of shape `weight_shape`."""
    O, M = weight_shape[0], int(np.prod(weight_shape[1:]))
    dy, x = _contiguous(dy), _contiguous(x)
    sizes = _sizes(x.shape, weight_shape, stride, padding)
    kernel = compile_kernel("conv2d_dweight.cu", f"conv2d_dweight_{VERSIONS[version]}")
    if version <= 2:
        dweight = empty(weight_shape, like=dy)
        block = (TILE, TILE, 1)                           # one thread per weight
        grid = (ceil_div(M, TILE), ceil_div(O, TILE), 1)  # one block per TILE x TILE weights
        kernel(grid, block, (dy, x, dweight, *sizes))
        return dweight

    blocks = ceil_div(M, BN), ceil_div(O, BM)
    pixels = x.shape[0] * dy.shape[2] * dy.shape[3]
    slices = _slices(blocks[0] * blocks[1], ceil_div(pixels, DEPTH * _numbers(version)))
    dweight = empty((slices, *weight_shape), like=dy)
    block = (THREADS, 1, 1)                               # 8 x 8 sums each
    grid = (*blocks, slices)                              # one block per BM x BN weights per slice
    kernel(grid, block, (dy, x, dweight, *sizes, np.int32(slices)), shared_mem=2 * 4 * DEPTH * ROW)
    return dweight[0] if slices == 1 else dweight.sum(axis=0)


# ---- what a launch needs ----

def output_size(x_shape, weight_shape, stride, padding):
    """Return Ho, Wo."""
    return tuple((size + sum(pair) - K) // stride + 1
                 for size, K, pair in zip(x_shape[2:], weight_shape[2:], padding, strict=True))


def _sizes(x_shape, weight_shape, stride, padding):
    """Return the scalars that every kernel takes: B C H W O Ho Wo KH KW stride top left."""
    (top, _), (left, _) = padding
    O, _, KH, KW = weight_shape
    return tuple(map(np.int32, (*x_shape, O, *output_size(x_shape, weight_shape, stride, padding),
                                KH, KW, stride, top, left)))


def _tile(B, rows, columns):
    """Return (tile_h, tile_w), and how many tiles there are; small pictures share one."""
    side = max(1 << max(size - 1, 3).bit_length() for size in (rows, columns))   # at least 4
    tile_h, tile_w = next(tile for tile in ((8, 16), (8, 8), (4, 4)) if tile[0] <= side)
    pictures = BN // (tile_h * tile_w)
    return (tile_h, tile_w), (ceil_div(rows, tile_h) * ceil_div(columns, tile_w)
                              * ceil_div(B, pictures))


def _numbers(version):
    """Return how many numbers a word of shared memory holds."""
    return 2 if version == 5 else 1


def _words(taps):
    """Return how many words of k a block stages at a time, for a kernel of `taps` = (KH, KW)."""
    return DEPTH // min(taps[0] * taps[1] or TAPS, TAPS) // 8 * 8


def _stages(K, taps, version):
    """Return how many stages the sum over K channels takes: no more slices than that."""
    return ceil_div(K, _words(taps) * _numbers(version))


def _shared(tile, taps, step):
    """Return the bytes of shared memory for weights and patch, laid out by conv2d_windows.cuh."""
    patch_h, patch_w = (step * (size - 1) + K for size, K in zip(tile, taps, strict=True))
    positions = BN // (tile[0] * tile[1]) * patch_h * patch_w
    return 4 * (DEPTH * ROW + _words(taps) * (ceil_div(positions, 32) * 32 + 8))


def _slices(blocks, stages):
    """Return into how many parts to cut a sum, so that a device has blocks enough."""
    return max(1, min(BLOCKS // blocks, stages))


def _contiguous(array):
    """Return `array`, or a copy that lies in memory row by row."""
    return array if array.flags.c_contiguous else array.copy()


def _supported(x, weight, bias, stride, padding):
    """Say whether these kernels know such arguments, and whether they fit each other."""
    arrays = [array for array in (x, weight, bias) if array is not None]
    if any(type(array) is not type(x) or array.dtype != np.float32 for array in arrays):
        return False
    if stride not in (1, 2) or min(map(min, padding)) < 0 or x.shape[1] != weight.shape[1]:
        return False
    Ho, Wo = output_size(x.shape, weight.shape, stride, padding)
    return (min(x.size, weight.size, Ho, Wo) > 0
            and max(x.size, weight.size, x.shape[0] * weight.shape[0] * Ho * Wo) < 1 << 31)
