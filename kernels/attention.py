"""Attention on the GPU: how each version is launched, forward and backward.

=======  ====================================  ==========================================
version  idea                                  what it saves
=======  ====================================  ==========================================
1 naive  a thread for each number              nothing: N M scores go to memory and back
2 tiled  softmax while the scores come in      the N M scores: they never leave a block.
                                               64 queries share each key that is read
3 tf32   tensor cores, one TF32 number a word  arithmetic: 8 times the multiplications per
                                               cycle; P stays in registers as well
4 half   tensor cores, two float16 numbers     twice that; half the shared memory
=======  ====================================  ==========================================

Versions 1 and 2 are float32 throughout.  Arrays are float32, in and out, whatever the tensor cores
multiply.  The kernels take heads side by side as (B, N, heads * D) holds them: nothing is
transposed.  D and E, the widths of a head, are fixed when a kernel is compiled, and with them how
many queries and keys fit into shared memory (`TILES`).
"""
from typing import NamedTuple

import numpy as np

from tinydiff.backends.table import Saved
from tinydiff.kernels.launch import ceil_div, compile_kernel, empty

VERSIONS = {1: "attention_v1_scores", 2: "attention_v2_tiled", 3: "attention_v3_tf32",
            4: "attention_v4_half"}
FILES = {2: ("attention.cu", "attention_backward.cu"),
         3: ("attention_tensor.cu", "attention_tensor_backward.cu"),
         4: ("attention_tensor.cu", "attention_tensor_backward.cu")}
PRECISION = {1: "float32", 2: "float32", 3: "tf32", 4: "float16"}
BEST = {"float32": 2, "tf32": 3, "float16": 4}      # the version for each precision

# Rows that a block keeps, and rows that it takes at a time: the first pair that fits is taken.
TILES = {
    "forward": [(64, 64), (64, 32), (32, 32), (16, 16)],
    "backward": [(64, 32), (32, 32), (16, 16)],
    "tensor": [(128, 64), (64, 64), (64, 32), (32, 32), (16, 16)],
    "tensor backward": [(128, 32), (64, 32), (64, 16), (32, 16), (16, 16)],
}
WIDEST = 160                            # head of versions 3 and 4: a thread has so many registers
SHARED = 99 << 10, 163 << 10            # bytes for one block: any GPU since 2020; A100 and H100
SIDE = 16                               # threads of a block of version 2, along each axis


class Problem(NamedTuple):
    """The sizes of an attention, and its mask."""

    B: int
    heads: int
    N: int
    M: int
    D: int
    E: int
    scale: float
    mask: np.ndarray | None             # float32, contiguous
    mask_strides: tuple                 # along (B, heads, N, M); 0 where the mask is repeated

    def scalars(self):
        """Return the arguments that all tiled kernels end with."""
        return (*map(np.int32, (self.heads, self.N, self.M, *self.mask_strides)),
                np.float32(self.scale))


def attention_forward(q, k, v, num_heads, mask=None, scale=None, *, precision="float32",
                      version=None):
    """Let each query read a weighted mean of values, see `tinydiff.ops.attention_forward`.

    Parameters
    ----------
    q, k, v, num_heads, mask, scale
        As there; the arrays float32, all NumPy or all CuPy.
    precision : {"float32", "tf32", "float16"}
        Of the factors in the products; sums are float32 always.
    version : int, optional
        Of `VERSIONS`, instead of the best one for `precision`.  (That is version 2 for heads
        wider than 160, as an autoencoder has one.)

    Returns
    -------
    o : (B, N, Dv) ndarray
    cache : Saved
        It holds N numbers for each head, where version 1 keeps N * M.
    NotImplemented
        In place of both, for arrays that the kernels do not know.
    """
    problem = _problem(q, k, v, num_heads, mask, scale)
    if problem is None:
        return NotImplemented
    too_wide = max(problem.D, problem.E) > WIDEST
    version = version or (2 if too_wide else BEST[precision])
    if (too_wide and version > 2) or not _tiles(problem, version):
        return NotImplemented
    q, k, v = (x.astype(np.float32, order="C", copy=False) for x in (q, k, v))
    run = _forward_naive if version == 1 else _forward_tiled
    o, statistics = run(q, k, v, problem, version)
    return o, Saved(attention_backward, (q, k, v, o, statistics, problem, version))


def attention_backward(dy, arrays):
    """Pull the gradient `dy` back through `attention_forward`: see `tinydiff.ops`."""
    *_, version = arrays
    dy = dy.astype(np.float32, order="C", copy=False)
    return (_backward_naive if version == 1 else _backward_tiled)(dy, *arrays)


def _forward_naive(q, k, v, p, _version):
    """Launch the three lines of the formula; return o and the probabilities."""
    scores = empty((p.B, p.heads, p.N, p.M), like=q)
    o = empty((p.B, p.N, p.heads * p.E), like=q)
    rows = p.B * p.heads * p.N
    heads, N, M, *mask_strides, scale = p.scalars()
    D, E, one = np.int32(p.D), np.int32(p.E), np.float32(1)

    block, grid = _one_thread_each(p, p.N, p.M)                  # per score
    kernel = compile_kernel("attention.cu", "attention_v1_scores")
    kernel(grid, block, (q, k, p.mask, scores, heads, N, M, D, *mask_strides, scale))

    kernel = compile_kernel("attention.cu", "attention_v1_softmax")
    kernel((ceil_div(rows, 64),), (64,), (scores, np.int32(rows), M))    # per row of scores

    block, grid = _one_thread_each(p, p.N, p.E)                  # per number of o
    kernel = compile_kernel("attention.cu", "attention_v1_rows")
    kernel(grid, block, (scores, v, o, heads, N, M, E, one))
    return o, scores


def _backward_naive(do, q, k, v, o, probabilities, p, _version):
    """Launch one kernel for ds and one for each gradient, a thread for each number."""
    ds = empty(probabilities.shape, like=q)
    dq, dk, dv = (empty(x.shape, like=x) for x in (q, k, v))
    heads, N, M, *_, scale = p.scalars()
    D, E, one = np.int32(p.D), np.int32(p.E), np.float32(1)

    block, grid = _one_thread_each(p, p.N, p.M)
    kernel = compile_kernel("attention_backward.cu", "attention_v1_dscores")
    kernel(grid, block, (probabilities, v, o, do, ds, heads, N, M, E))

    block, grid = _one_thread_each(p, p.N, p.D)
    kernel = compile_kernel("attention.cu", "attention_v1_rows")
    kernel(grid, block, (ds, k, dq, heads, N, M, D, scale))

    kernel = compile_kernel("attention_backward.cu", "attention_v1_columns")
    block, grid = _one_thread_each(p, p.M, p.D)
    kernel(grid, block, (ds, q, dk, heads, N, M, D, scale))
    block, grid = _one_thread_each(p, p.M, p.E)
    kernel(grid, block, (probabilities, do, dv, heads, N, M, E, one))
    return dq, dk, dv


def _one_thread_each(p, rows, columns):
    """Return block and grid of one thread per number of (rows, columns), for each head."""
    return (16, 16), (ceil_div(columns, 16), ceil_div(rows, 16), p.B * p.heads)


def _forward_tiled(q, k, v, p, version):
    """Launch version 2, 3 or 4; return o and lse."""
    o = empty((p.B, p.N, p.heads * p.E), like=q)
    lse = empty((p.B, p.heads, p.N), like=q)
    Br, Bc, shared = _tiles(p, version)[0]

    block = (SIDE, SIDE) if version == 2 else (2 * Br,)          # 16 queries for each warp
    grid = (ceil_div(p.N, Br), p.heads, p.B)                     # one block per Br queries
    kernel = compile_kernel(FILES[version][0], VERSIONS[version], D=p.D, E=p.E, Br=Br, Bc=Bc)
    kernel(grid, block, (q, k, v, p.mask, o, lse, *p.scalars()), shared_mem=shared)
    return o, lse


def _backward_tiled(do, q, k, v, o, lse, p, version):
    """Launch delta, then one kernel that keeps queries and one that keeps keys."""
    delta = empty(lse.shape, like=q)
    dq, dk, dv = (empty(x.shape, like=x) for x in (q, k, v))
    _, (Own, Step, shared_q), (_, _, shared_k) = _tiles(p, version)

    file = FILES[version][1]
    macros = {"D": p.D, "E": p.E, "Own": Own, "Step": Step}
    kernel = compile_kernel(file, f"attention_v{version}_delta", **macros)
    kernel((ceil_div(p.N, 64), p.B * p.heads), (64,),            # one thread per query and head
           (o, do, delta, np.int32(p.heads), np.int32(p.N)))

    block = (SIDE, SIDE) if version == 2 else (2 * Own,)
    given = q, k, v, p.mask, do, lse, delta
    kernel = compile_kernel(file, f"attention_v{version}_dq", **macros)
    kernel((ceil_div(p.N, Own), p.heads, p.B), block,            # one block per Own queries
           (*given, dq, *p.scalars()), shared_mem=shared_q)
    kernel = compile_kernel(file, f"attention_v{version}_dk_dv", **macros)
    kernel((ceil_div(p.M, Own), p.heads, p.B), block,            # one block per Own keys
           (*given, dk, dv, *p.scalars()), shared_mem=shared_k)
    return dq, dk, dv


def _problem(q, k, v, heads, mask, scale):
    """Return the `Problem`, or None if the kernels do not know these arrays."""
    arrays = (q, k, v) if mask is None else (q, k, v, mask)
    if len({type(x) for x in arrays}) > 1 or any(x.dtype != np.float32 for x in (q, k, v)):
        return None
    if not (q.ndim == k.ndim == v.ndim == 3 and q.size and v.size and len(q) == len(k)
            and q.shape[2] == k.shape[2] and k.shape[:2] == v.shape[:2]
            and q.shape[2] % heads == 0 and v.shape[2] % heads == 0):
        return None
    B, N, D = q.shape
    M, E = v.shape[1:]
    scale = float(scale) if scale is not None else (D // heads) ** -0.5
    mask, strides = _flat_mask(mask, (B, heads, N, M))
    if strides is None:
        return None
    return Problem(B, heads, N, M, D // heads, E // heads, scale, mask, strides)


def _flat_mask(mask, shape):
    """Return the mask in float32 and how far apart its numbers are along the axes of `shape`.

    None in place of the strides if the mask does not fit.
    """
    if mask is None:
        return None, (0, 0, 0, 0)
    if mask.dtype.kind != "f" or mask.ndim > 4:
        return None, None
    mask = mask[(None,) * (4 - mask.ndim)].astype(np.float32, order="C", copy=False)
    if any(have not in (1, want) for have, want in zip(mask.shape, shape, strict=True)):
        return None, None
    strides = (0 if length == 1 else int(np.prod(mask.shape[axis + 1:], dtype=int))
               for axis, length in enumerate(mask.shape))
    return mask, tuple(strides)


def _tiles(p, version):
    """Choose ``(rows that a block keeps, rows of a step, bytes)`` for forward, dq, dk and dv.

    None if the heads are too wide for shared memory.
    """
    if version == 1:
        return (), (), ()
    kind, need = ("", _bytes) if version == 2 else ("tensor", _bytes_tensor)
    chosen = []
    for name, which in (("forward", [0]), ("backward", [1, 2])):
        pairs = TILES[f"{kind} {name}".removesuffix(" forward") if kind else name]
        if kind and name == "backward" and p.D + p.E > 256:      # dk and dv fill the registers
            pairs = [pair for pair in pairs if pair[1] <= 16]
        fits = (pair for limit in SHARED for pair in pairs
                if all(need(p, *pair, version)[i] <= limit for i in which))
        pair = next(fits, None)
        if pair is None:
            return None
        chosen += [(*pair, need(p, *pair, version)[i]) for i in which]
    return chosen


def _bytes(p, rows, step, _version):
    """Return the shared memory of version 2: forward, dq, dk and dv (attention_tiles.cuh)."""
    d, e, s = (ceil_div(width, SIDE) * SIDE + 4 for width in (p.D, p.E, step))
    both = (rows + step) * (d + e)
    return (4 * (rows * d + step * (d + e) + rows * s), 4 * (both + rows * s),
            4 * (both + 2 * rows * s))


def _bytes_tensor(p, rows, step, version):
    """Return the same for versions 3 and 4 (attention_fragments.cuh)."""
    W = {3: 1, 4: 2}[version]                                    # numbers in a word

    def stride(words):
        words = ceil_div(words, 8) * 8
        return words if words % 16 else words + 8

    d, e = stride(ceil_div(p.D, W)), stride(ceil_div(p.E, W))
    d_columns, e_columns = stride(p.D), stride(p.E)
    both = (rows + step) * (d + e)
    return (4 * ((rows + step) * d + step // W * e_columns), 4 * (both + step // W * d_columns),
            4 * (both + step // W * (d_columns + e_columns)))


def _macros():
    """Return ``{file: sets of macros}``: what the launches compile for known models' widths.

    Version 3 is left out: it stands in the files of version 4, and its blocks are not larger.
    """
    files = {file: [] for version in FILES for file in FILES[version]}
    for width in (40, 80, 160, 512):
        for version in (2, 4) if width <= WIDEST else (2,):
            p = Problem(1, 1, 1, 1, width, width, 1.0, None, ())
            (Br, Bc, _), (Own, Step, _), _ = _tiles(p, version)
            tiles = {"Br": Br, "Bc": Bc}, {"Own": Own, "Step": Step}
            for file, own in zip(FILES[version], tiles, strict=True):
                files[file].append({"D": width, "E": width, **own})
    return files


MACROS = _macros()
