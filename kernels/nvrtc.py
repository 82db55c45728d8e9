"""Does every kernel compile for a device, and what does it need there?  No device, no driver.

    python -m tinydiff.kernels.nvrtc             # registers and spills of every kernel

NVRTC is the compiler that CuPy calls.  It comes as a package of its own: `pip install
'tinydiff[nvrtc]'` (67 MB to load, on Linux and Windows).
"""
import re
from importlib import import_module
from importlib.util import find_spec
from typing import NamedTuple

from tinydiff.kernels.emulator.errors import CompileError
from tinydiff.kernels.source import FOLDER, definitions, source

ARCHITECTURES = "sm_80", "sm_90"        # A100 and H100
INSTALL = "the compile-only check needs NVRTC: pip install 'tinydiff[nvrtc]'"

ENTRY = re.compile(r"Compiling entry function '(?P<kernel>\w+)'.*?"
                   r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
                   r"(?P<loads>\d+) bytes spill loads.*?"
                   r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)", re.S)
SHARED = re.compile(r"(\d+) bytes smem")


class Usage(NamedTuple):
    """What a kernel takes on a device.

    Attributes
    ----------
    kernel : str
    registers : int
        For each thread; there are 65536 for all threads that a multiprocessor holds.
    spills : int
        Bytes that found no register, and go to memory and back.
    stack : int
        Bytes of local arrays that are no registers, spilled ones included.
    shared : int
        Bytes of static shared memory for each block.
    """

    kernel: str
    registers: int
    spills: int
    stack: int
    shared: int


def obstacle():
    """Return why nothing can be compiled for a device here, or None if it can."""
    if not find_spec("cuda") or not find_spec("cuda.bindings"):
        return INSTALL
    from cuda.bindings import nvrtc
    try:
        nvrtc.nvrtcVersion()
    except RuntimeError:                # the bindings are there, the library is not
        return INSTALL
    return None


def facts():
    """Say which NVRTC compiles here, or what to install.

    Returns
    -------
    facts : dict of str to str
    """
    if obstacle():
        return {"NVRTC": obstacle()}
    from cuda.bindings import nvrtc
    _, major, minor = nvrtc.nvrtcVersion()
    return {"NVRTC": f"{major}.{minor}, compiles for a device without one"}


def compile_only(file, arch="sm_90", **macros):
    """Compile a kernel file for a device, and report what each kernel in it takes.

    Parameters
    ----------
    file : str
    arch : str, default "sm_90"
    **macros
        As in `tinydiff.kernels.launch.compile_kernel`.

    Returns
    -------
    usages : list of `Usage`

    Raises
    ------
    CompileError
        With what the compiler said.
    RuntimeError
        If NVRTC is missing.
    """
    if obstacle():
        raise RuntimeError(obstacle())
    from cuda.bindings import nvrtc
    options = [f"--gpu-architecture={arch}", "-std=c++17", "--ptxas-options=-v",
               *definitions(macros)]
    _, program = nvrtc.nvrtcCreateProgram(source(file).encode(), file.encode(), 0, [], [])
    result, = nvrtc.nvrtcCompileProgram(program, len(options), [o.encode() for o in options])
    _, size = nvrtc.nvrtcGetProgramLogSize(program)
    log = b" " * size
    nvrtc.nvrtcGetProgramLog(program, log)
    nvrtc.nvrtcDestroyProgram(program)
    text = log.decode().rstrip("\0 ")
    if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
        raise CompileError(text)
    return [_usage(match) for match in ENTRY.finditer(text)]


def _usage(match):
    """Read what ptxas says about one kernel."""
    registers, stores, loads, stack = map(int, match.group("registers", "stores", "loads", "stack"))
    shared = SHARED.search(match["rest"])
    return Usage(match["kernel"], registers, stores + loads, stack, int(shared[1]) if shared else 0)


def declared():
    """Return ``{file: list of macros}``: what the launches in this folder compile.

    Every module that launches kernels says so in ``MACROS``.
    """
    files = {}
    for path in sorted(FOLDER.glob("*.py")):
        if re.search(r"^MACROS\b", path.read_text(encoding="utf-8"), re.M):
            files.update(import_module(f"tinydiff.kernels.{path.stem}").MACROS)
    return files


def main():
    """Compile everything, and print a table."""
    print("registers  spills  stack  shared  arch   kernel")
    for file, sets in declared().items():
        for macros in sets:
            print(f"{file} {' '.join(definitions(macros))}")
            for arch in ARCHITECTURES:
                for u in compile_only(file, arch, **macros):
                    print(f"{u.registers:9d}  {u.spills:6d}  {u.stack:5d}  {u.shared:6d}  "
                          f"{arch}  {u.kernel}")


if __name__ == "__main__":
    main()
