"""From a kernel file to a library that this processor runs, compiled once and kept on disk."""
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from functools import cache
from pathlib import Path

from tinydiff.kernels.emulator.errors import CompileError
from tinydiff.kernels.emulator.translate import translate
from tinydiff.kernels.source import definitions

HERE = Path(__file__).parent
MONTH = 30 * 24 * 3600                  # seconds
RUNTIME = ("fiber.cpp", "runtime.cpp", "tracer.cpp", "counter.cpp")
HEADERS = ("runtime.h", "scheduler.h", "fiber.h", "cuda.h", "ptx.h")

COMMON = ("-std=c++17", "-fPIC", "-w", "-fno-strict-aliasing", "-ffp-contract=off")
FAST = ("-O1",)                         # small launches: compiling takes longer than running
RACE = ("-O1", "-g", "-fno-tree-vectorize", "-fsanitize=thread")



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


def facts():
    """Say what emulates CUDA kernels here, or why nothing does.

    Returns
    -------
    facts : dict of str to str
    """
    return {"CUDA emulator": obstacle() or f"{version()}, compiled files in {cache_folder()}"}


def cache_folder():
    """Return where compiled files are kept: below $TINYDIFF_CACHE, or ~/.cache/tinydiff."""
    return Path(os.environ.get("TINYDIFF_CACHE") or Path.home() / ".cache" / "tinydiff", "emulator")


def kept(stem, content, make):
    """Return the path of a compiled file, made now if there is none.

    Parameters
    ----------
    stem : str
        The beginning of its name; the rest is a hash.
    content : object
        All that it is made from, as far as this module's own text and the compiler do not say.
    make : callable
        ``make(path)`` compiles it.

    Raises
    ------
    OSError
        If the folder cannot be written.
    """
    how = Path(__file__).read_text(encoding="utf-8")
    name = hashlib.sha256(repr((version(), how, content)).encode()).hexdigest()[:16]
    out = cache_folder() / f"{stem}-{name}.so"
    if out.exists():
        os.utime(out)                   # still in use
        return out
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent) as folder:
            make(Path(folder, out.name))
            Path(folder, out.name).replace(out)         # others see the whole file or none
    except PermissionError as error:
        raise OSError(f"compiled kernels cannot be kept in {out.parent} ({error.strerror}): "
                      "set TINYDIFF_CACHE to a folder that can be written") from error
    for old in out.parent.glob("*.so"):
        with suppress(OSError):         # another process may be removing it too
            if old.stat().st_mtime < time.time() - MONTH:
                old.unlink()
    return out


def run_compiler(out, *options):
    """Compile to `out`.

    Raises
    ------
    CompileError
        With what the compiler said.
    """
    done = subprocess.run([compiler(), *COMMON, *options, "-o", str(out)], capture_output=True,
                          text=True)
    if done.returncode:
        raise CompileError(done.stderr.strip())


@cache
def headers():
    """Return the text of the runtime's headers."""
    return [(HERE / name).read_text(encoding="utf-8") for name in HEADERS]


@cache
def runtime():
    """Return the path of the runtime's library, compiled when it is first asked for."""
    def make(out):
        own_name = f"-Wl,-install_name,@rpath/{out.name}" if platform.system() == "Darwin" else \
            f"-Wl,-soname,{out.name}"
        run_compiler(out, "-O2", "-shared", own_name, *(str(HERE / name) for name in RUNTIME))

    texts = [(HERE / name).read_text(encoding="utf-8") for name in RUNTIME]
    return kept("runtime", (headers(), texts), make)


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

    def make(out):
        file, object_file = out.with_name(f"{stem}.cu"), out.with_suffix(".o")
        file.write_text(f'#include "cuda.h"\n#include "ptx.h"\n{translated.text}',
                        encoding="utf-8")
        run_compiler(object_file, *flags, f"-I{HERE}", "-x", "c++", "-c", str(file))
        # Not with -fsanitize=thread: the runtime takes the place of the sanitizer's library.
        rpath = "@loader_path" if platform.system() == "Darwin" else "$ORIGIN"
        run_compiler(out, "-shared", str(object_file), str(runtime()), f"-Wl,-rpath,{rpath}")

    content = runtime().name, headers(), flags, translated.text
    return kept(f"{stem}-race" if race else stem, content, make), translated.kernels
