"""One call launches a kernel where its arrays are: on the emulator or on a device."""
import numpy as np
import pytest

from tinydiff.kernels import launch
from tinydiff.kernels.emulator import obstacle


class Device:
    """In place of a kernel that CuPy compiled: keeps what it is called with."""

    max_dynamic_shared_size_bytes = 48 << 10
    shared_size_bytes = 100             # what it declares itself

    def __call__(self, grid, block, args, shared_mem):
        self.called = grid, block, args, shared_mem


@pytest.fixture
def device(monkeypatch):
    kernel = Device()
    monkeypatch.setattr(launch, "_on_device", lambda file, name, **macros: kernel)
    return kernel


def test_arrays_of_a_device_go_to_the_device_and_none_is_a_null_pointer(device):
    array = object()                    # anything but a NumPy array
    launch.compile_kernel("matmul.cu", "f", TILE=4)((2,), (32,), (array, None, np.int32(3)))
    grid, block, args, shared = device.called
    assert (grid, block, shared) == ((2,), (32,), 0)
    assert args == (array, 0, 3)
    assert [arg.dtype for arg in args[1:]] == [np.uint64, np.int32]


def test_a_kernel_on_a_device_asks_for_more_than_48_kib_of_shared_memory(device):
    kernel = launch.compile_kernel("matmul.cu", "g")
    kernel((1,), (32,), (object(),), shared_mem=1000)
    assert device.max_dynamic_shared_size_bytes == 48 << 10
    kernel((1,), (32,), (object(),), shared_mem=(48 << 10) - 50)      # with its own it is too much
    assert device.max_dynamic_shared_size_bytes == (48 << 10) - 50
    kernel((1,), (32,), (object(),), shared_mem=100_000)
    assert device.max_dynamic_shared_size_bytes == 100_000


@pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))
def test_numpy_arrays_go_to_the_emulator(device):
    a, c = np.eye(8, dtype=np.float32), launch.empty((8, 8), like=np.zeros(1, np.float32))
    assert np.isnan(c).all()
    kernel = launch.compile_kernel("matmul.cu", "matmul_v1_naive", TILE=8)
    kernel((1, 1), (8, 8), (a, a, c, *map(np.int32, (8, 8, 8))))
    np.testing.assert_array_equal(c, a)
    assert not hasattr(device, "called")
