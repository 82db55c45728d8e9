"""Every kernel file compiles for devices of two generations and keeps its numbers in registers.

NVRTC, CuPy's compiler, needs neither a device nor a driver.
"""
import pytest

from tinydiff.kernels.emulator import CompileError
from tinydiff.kernels.nvrtc import ARCHITECTURES, compile_only, declared, obstacle
from tinydiff.kernels.source import FOLDER, definitions

needs_nvrtc = pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))

DECLARED = declared()
EACH = [pytest.param(file, macros, id=" ".join((file, *definitions(macros))),
                     marks=[pytest.mark.slow] * (i > 0))        # the first stands for the others
        for file, sets in DECLARED.items() for i, macros in enumerate(sets)]


def test_every_kernel_file_is_launched_by_some_module():
    assert DECLARED.keys() == {path.name for path in FOLDER.glob("*.cu")}


@needs_nvrtc
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("file, macros", EACH)
def test_a_kernel_file_compiles_and_spills_nothing(file, macros, arch):
    usages = compile_only(file, arch, **macros)
    assert usages
    for usage in usages:
        assert usage.spills == 0, usage
        assert usage.registers <= 255


@needs_nvrtc
def test_what_a_kernel_takes_is_read_from_the_compilers_log():
    text = """
extern "C" __global__ void half_of_it(float* y) {
    __shared__ float tile[96];
    tile[threadIdx.x] = y[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[95 - threadIdx.x];
}
extern "C" __global__ void __launch_bounds__(1024) too_much(float* y, int n) {
    float kept[200];
    for (int i = 0; i < 200; i++) kept[i] = y[i * n];
    __syncthreads();
    for (int i = 0; i < 200; i++) y[i] = kept[199 - i] * kept[i];
}
"""
    usage = {usage.kernel: usage for usage in compile_only(text)}
    assert usage["half_of_it"].shared == 384
    assert usage["half_of_it"].spills == 0
    assert usage["too_much"].spills > 0
    assert usage["too_much"].registers <= 64            # 1024 threads share 65536


@needs_nvrtc
def test_what_is_not_cuda_is_refused_with_its_line():
    with pytest.raises(CompileError, match=r'kernel.cu\(2\): error: identifier "x" is undefined'):
        compile_only("extern \"C\" __global__ void f() {\n    x = 1;\n}\n")
