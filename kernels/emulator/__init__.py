"""Runs the .cu files of this package on a processor, thread by thread, and finds their mistakes.

    from tinydiff.kernels.emulator import emulate
    kernel = emulate("conv2d.cu", "conv2d_v2_tiled", K=3, TILE=16)
    kernel(grid, block, (x, w, b, y, np.int32(C), ...), seed=1)

See the section on the emulator in kernels/README.md.
"""
from tinydiff.kernels.emulator.compiler import facts, obstacle
from tinydiff.kernels.emulator.errors import CompileError, EmulationError
from tinydiff.kernels.emulator.launching import emulate
from tinydiff.kernels.emulator.settings import emulation
from tinydiff.kernels.emulator.sites import sites, unnoticed

__all__ = ["CompileError", "EmulationError", "emulate", "emulation", "facts", "obstacle", "sites",
           "unnoticed"]
