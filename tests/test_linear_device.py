"""kernels/linear.py without a device: cuBLAS played by NumPy, which reads memory columns first."""
import ctypes
import sys

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.kernels import linear


def columns(at, rows, columns, ld):
    """Return the (rows, columns) matrix at an address, each column `ld` numbers after the last."""
    numbers = (ctypes.c_float * (ld * columns)).from_address(at)
    return np.frombuffer(numbers, np.float32).reshape(columns, ld)[:, :rows].T


def vendor(transpose_a, transpose_b, m, n, k, a, lda, b, ldb, c, ldc, compute):
    """Do what cublasGemmEx says of itself: c (m, n) = op(a) (m, k) op(b) (k, n)."""
    assert compute == linear.COMPUTE["tf32"]
    a = columns(a, k, m, lda).T if transpose_a else columns(a, m, k, lda)
    b = columns(b, n, k, ldb).T if transpose_b else columns(b, k, n, ldb)
    columns(c, m, n, ldc)[...] = a @ b


@pytest.fixture(autouse=True)
def played(monkeypatch):
    monkeypatch.setattr(linear, "gemm", lambda: vendor)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 5), (5,)])
def test_forward_and_backward_are_the_definitions(shape, bias):
    rng = np.random.default_rng(0)
    x, weight, b = (rng.standard_normal(s, dtype=np.float32) for s in (shape, (7, 5), 7))
    dy = rng.standard_normal((*shape[:-1], 7), dtype=np.float32)
    b = b if bias else None
    want, cache = ops.linear_forward.reference(x, weight, b)
    y, saved = linear.linear_forward(x, weight, b, precision="tf32")
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)
    got = saved.backward(dy, saved.arrays)
    for a, b in zip(got, ops.linear_backward.reference(dy, cache), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert saved.backward(dy, saved.arrays, needs_dx=False, needs_dweight=False) == (None,) * 3


def test_views_that_do_not_lie_row_by_row_are_multiplied_too():
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(s, dtype=np.float32) for s in ((4, 6), (6, 3)))
    np.testing.assert_allclose(linear.product(a.T.copy().T, b[:, ::-1], "tf32"), a @ b[:, ::-1],
                               rtol=1e-5, atol=1e-6)


def test_what_it_does_not_know_goes_to_the_definition():
    x, weight = np.ones((2, 3)), np.ones((4, 3))
    assert linear.linear_forward(x, weight) is NotImplemented                     # float64
    assert linear.linear_forward(x.astype("f4"), np.ones((4, 2), "f4")) is NotImplemented


def test_a_fault_of_the_library_is_said():
    with pytest.raises(RuntimeError, match="status 7"):
        linear.told(7)
    linear.told(0)


def test_without_the_library_the_definition_runs(monkeypatch):
    assert linear.loaded("nothing_of_that_name") is None
    monkeypatch.setattr(linear, "gemm", lambda: None)
    x = np.ones((2, 3), np.float32)
    assert linear.linear_forward(x, np.ones((4, 3), np.float32)) is NotImplemented


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists what a process has loaded")
def test_a_library_that_is_loaded_is_found():
    assert "/libc.so" in linear.loaded("c")
