"""A fully connected layer on a device: the vendor's matrix product, called without CuPy between.

Production uses cuBLAS for plain products; matmul.py shows what is inside one.  CuPy calls it too,
but refuses to while a CUDA graph is recorded, and takes longer over a small product than the
product itself does.  So it is called here as it is: a library's function, with addresses.

cuBLAS counts columns first: a row-major (rows, columns) array is to it the transposed matrix, of
`columns` rows.  The transpose of ``c = a b`` is ``b^T a^T``, so what is handed on is b, then a.
"""
import ctypes
from functools import cache
from pathlib import Path
from threading import Lock

import numpy as np

from tinydiff.backends.table import Saved
from tinydiff.kernels.launch import address, empty

FLOAT32 = 0                             # CUDA_R_32F: of all three matrices
COMPUTE = {"float32": 68, "tf32": 77, "float16": 74}        # cublasComputeType_t, sums in float32
ANY_ALGORITHM = -1                      # CUBLAS_GEMM_DEFAULT
WORKSPACE = 32 << 20                    # bytes; NVIDIA's recommendation for Hopper
ONE, ZERO = ctypes.c_float(1), ctypes.c_float(0)


def linear_forward(x, weight, bias=None, *, precision="float32"):
    """Map the last axis of `x`; see `tinydiff.ops.linear_forward`.

    Parameters
    ----------
    x, weight, bias
        As there; float32.
    precision : {"float32", "tf32", "float16"}, default "float32"
        What the factors are rounded to; sums are float32 always.

    Returns
    -------
    y : (..., O) ndarray
    cache : Saved
    """
    O, I = weight.shape
    if x.shape[-1] != I or x.dtype != np.float32 or weight.dtype != np.float32 or not x.size:
        return NotImplemented                             # the definition runs, or names the fault
    if gemm() is None:
        return NotImplemented                             # the definition runs, by way of CuPy
    rows = x.reshape(-1, I)                                           # (N, I)
    y = product(rows, weight, precision, b_transposed=True)           # (N, O)
    if bias is not None:
        y += bias
    arrays = x.shape, rows, weight, bias is not None, precision
    return y.reshape(*x.shape[:-1], O), Saved(linear_backward, arrays)


def linear_backward(dy, arrays, needs_dx=True, needs_dweight=True):
    """Return dx, dweight, dbias; see `tinydiff.ops.linear_backward`."""
    x_shape, rows, weight, has_bias, precision = arrays
    dy_rows = dy.reshape(-1, weight.shape[0])                         # (N, O)
    dx = dweight = dbias = None
    if needs_dx:
        dx = product(dy_rows, weight, precision).reshape(x_shape)
    if needs_dweight:
        dweight = product(dy_rows, rows, precision, a_transposed=True)
        dbias = dy_rows.sum(axis=0) if has_bias else None
    return dx, dweight, dbias


def product(a, b, precision="float32", a_transposed=False, b_transposed=False):
    """Multiply two float32 matrices, either of them transposed on the way.

    Parameters
    ----------
    a : (M, K) ndarray, or (K, M) if `a_transposed`
        CuPy.
    b : (K, N) ndarray, or (N, K) if `b_transposed`
    precision : {"float32", "tf32", "float16"}
    a_transposed, b_transposed : bool

    Returns
    -------
    c : (M, N) ndarray
    """
    a, b = (m if m.flags.c_contiguous else m.copy() for m in (a, b))
    M, K = a.shape[::-1] if a_transposed else a.shape
    N = b.shape[0] if b_transposed else b.shape[1]
    c = empty((M, N), like=a)
    gemm()(b_transposed, a_transposed, N, M, K, address(b), b.shape[1], address(a), a.shape[1],
           address(c), N, COMPUTE[precision])
    return c


@cache
def gemm():
    """Return cuBLAS's product, with a handle and a workspace of our own.

    Returns
    -------
    run : callable
        ``run(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, compute)`` launches
        ``c = a b`` on the current stream; matrices are addresses, columns first, `ld` numbers from
        one column to the next.  None where the library cannot be found.
    """
    import cupy

    cupy.cuda.device.get_cublas_handle()                  # CuPy loads the library
    path = loaded("cublas")
    if path is None:
        return None
    library, one_at_a_time = ctypes.CDLL(path), Lock()    # training prepares batches in a thread
    pointer, call = ctypes.c_void_p, library.cublasGemmEx
    handle, workspace = pointer(), pointer(cupy.cuda.runtime.malloc(WORKSPACE))     # for good
    told(library.cublasCreate_v2(ctypes.byref(handle)))
    one, zero, current = ctypes.byref(ONE), ctypes.byref(ZERO), cupy.cuda.get_current_stream

    def run(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, compute):
        with one_at_a_time:
            # A new stream takes the workspace away.
            told(library.cublasSetStream_v2(handle, pointer(current().ptr)))
            told(library.cublasSetWorkspace_v2(handle, workspace, ctypes.c_size_t(WORKSPACE)))
            told(call(handle, int(transpose_a), int(transpose_b), m, n, k,
                      one, pointer(a), FLOAT32, lda, pointer(b), FLOAT32, ldb,
                      zero, pointer(c), FLOAT32, ldc, compute, ANY_ALGORITHM))
    return run


def told(status):
    """Raise RuntimeError if cuBLAS returned anything but success."""
    if status:
        raise RuntimeError(f"cuBLAS returned status {status} (cublasStatus_t)")


def loaded(name):
    """Return the path of a library that is in this process already; None if it is not to be found.

    Linux lists what a process has loaded; elsewhere nothing is found.
    """
    maps = Path("/proc/self/maps")
    lines = maps.read_text(encoding="utf-8").splitlines() if maps.is_file() else []
    paths = (line.split(maxsplit=5)[-1] for line in lines)
    return next((path for path in paths if f"/lib{name}.so" in path), None)
