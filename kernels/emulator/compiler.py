"""From a kernel file to a library that this processor runs, compiled once and kept on disk."""
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from tinydiff.kernels.emulator.errors import CompileError
from tinydiff.kernels.emulator.translate import translate
from tinydiff.kernels.source import definitions

HERE = Path(__file__).parent
RUNTIME = ("fiber.cpp", "runtime.cpp", "tracer.cpp", "counter.cpp")
HEADERS = ("runtime.h", "scheduler.h", "fiber.h", "cuda.h", "ptx.h")

COMMON = ("-std=c++17", "-fPIC", "-w", "-fno-strict-aliasing", "-ffp-contract=off")
FAST = ("-O1",)                         # small launches: compiling takes longer than running
# Without -fno-tree-sra, g++ takes a float4 apart and reads it in four requests.
RACE = ("-O1", "-g", "-fno-tree-vectorize", "-fno-tree-sra", "-fsanitize=thread")



@cache
def compiler():
    """Return the C++ compiler to use, or None: $CXX, g++, clang++ or c++."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and (path := shutil.which(name)):
            return path
    return None


def obstacle():
    """Return why kernel files cannot be emulated here, or None if they can."""
    if platform.system() == "Windows":
        return "the emulator of CUDA kernels runs on Linux and macOS"
    if platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"):
        return f"the emulator of CUDA kernels knows x86-64 and arm64, not {platform.machine()}"
    if compiler() is None:
        return ("the emulator of CUDA kernels needs a C++ compiler: install g++ or clang++, "
                "or set CXX")
    return None


@cache
def version():
    """Return what the compiler calls itself."""
    done = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


@cache
def cache_folder():
    """Return where compiled files are kept: below $TINYDIFF_CACHE, or ~/.cache/tinydiff."""
    base = os.environ.get("TINYDIFF_CACHE") or Path.home() / ".cache" / "tinydiff"
    folder = Path(base, "emulator")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def named(stem, *content):
    """Return the path of a compiled file: its name ends in a hash of all that it is made from."""
    how = Path(__file__).read_text(encoding="utf-8")
    text = repr((version(), how, *content)).encode()
    return cache_folder() / f"{stem}-{hashlib.sha256(text).hexdigest()[:16]}.so"


def run_compiler(out, *options):
    """Compile to `out`; other processes see the whole file or none.

    Raises
    ------
    CompileError
        With what the compiler said.
    """
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        partial = Path(folder, out.name)
        done = subprocess.run([compiler(), *COMMON, *options, "-o", str(partial)],
                              capture_output=True, text=True)
        if done.returncode:
            raise CompileError(done.stderr.strip())
        partial.replace(out)


@cache
def headers():
    """Return the text of the runtime's headers."""
    return [(HERE / name).read_text(encoding="utf-8") for name in HEADERS]


@cache
def runtime():
    """Return the path of the runtime's library, compiled when it is first asked for."""
    texts = [(HERE / name).read_text(encoding="utf-8") for name in RUNTIME]
    out = named("runtime", headers(), texts)
    if not out.exists():
        own_name = f"-Wl,-install_name,@rpath/{out.name}" if platform.system() == "Darwin" else \
            f"-Wl,-soname,{out.name}"
        run_compiler(out, "-O2", "-shared", own_name, *(str(HERE / name) for name in RUNTIME))
    return out


@cache
def library(stem, text, race, macros):
    """Return the path of a kernel file's library, compiled if there is none yet.

    Parameters
    ----------
    stem : str
        What to call it.
    text : str
        What `tinydiff.kernels.source.source` makes of the file.
    race : bool
        Whether every access to memory is to be reported to the runtime.
    macros : tuple of (str, value)

    Returns
    -------
    path : Path
    kernels : dict of str to list of str
        The names of each kernel's parameters.
    """
    translated = translate(text)
    flags = (*(RACE if race else FAST), *definitions(dict(macros)))
    out = named(f"{stem}-race" if race else stem, runtime().name, headers(), flags, translated.text)
    if not out.exists():
        rpath = "@loader_path" if platform.system() == "Darwin" else "$ORIGIN"
        with tempfile.TemporaryDirectory() as folder:
            file, object_file = Path(folder, f"{stem}.cu"), Path(folder, f"{stem}.o")
            file.write_text(f'#include "cuda.h"\n#include "ptx.h"\n{translated.text}',
                            encoding="utf-8")
            run_compiler(object_file, *flags, f"-I{HERE}", "-x", "c++", "-c", str(file))
            # Not with -fsanitize=thread: the runtime takes the place of the sanitizer's library.
            run_compiler(out, "-shared", str(object_file), str(runtime()), f"-Wl,-rpath,{rpath}")
    return out, translated.kernels
