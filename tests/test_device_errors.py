"""Whatever stands between a user and the GPU is one line that says what to install or to lower."""
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from tiny import tiny_pipeline

from tinydiff.backends import device, options
from tinydiff.cli import build_parser, main


class CUDARuntimeError(RuntimeError):
    """As CuPy's of that name."""


class OutOfMemoryError(MemoryError):
    """As CuPy's of that name."""


def raising(fault):
    def function(*arguments, **more):
        raise fault
    return function


def fake_cupy(built=13020, driver=13000, count=lambda: 1, ones=np.ones):
    """Make a module that answers what a user's CuPy would."""
    cupy = ModuleType("cupy")
    cupy.__version__ = "14.2.0"
    cupy.ones = ones
    cupy.asarray = np.asarray
    properties = {"name": b"NVIDIA Fake", "major": 9, "minor": 0, "multiProcessorCount": 132}
    runtime = SimpleNamespace(
        runtimeGetVersion=lambda: built, driverGetVersion=lambda: driver, getDeviceCount=count,
        memGetInfo=lambda: (60 * 2**30, 80 * 2**30), getDeviceProperties=lambda id: properties)
    cupy.cuda = SimpleNamespace(runtime=runtime, Device=lambda: SimpleNamespace(id=0))
    return cupy


@pytest.fixture
def install(monkeypatch):
    """Return a function that puts a module in the place of CuPy, or None for none."""
    def put(module):
        monkeypatch.setitem(sys.modules, "cupy", module)
        device.obstacle.cache_clear()
        return device.obstacle()
    yield put
    device.obstacle.cache_clear()


FAULTS = {
    "no CuPy": (None, "CuPy is not installed; pip install 'tinydiff[cuda]'"),
    "no driver": (fake_cupy(driver=0), "no NVIDIA driver was found; a GPU needs one"),
    "old driver": (fake_cupy(driver=12040),
                   "the driver knows CUDA 12.4, this CuPy was built for CUDA 13.2; update the "
                   "driver to 580 or newer, or pip install cupy-cuda12x instead"),
    "no GPU": (fake_cupy(count=lambda: 0), "the driver finds no GPU; see nvidia-smi"),
    "driver at fault": (
        fake_cupy(count=raising(CUDARuntimeError("cudaErrorNoDevice:\nno CUDA-capable device"))),
        "the driver finds no GPU (cudaErrorNoDevice: no CUDA-capable device is"[:-3]),
    "another CUDA": (
        fake_cupy(ones=raising(ImportError("libnvrtc.so.13: cannot open shared object file"))),
        "CuPy 14.2.0 needs the libraries of CUDA 13 (libnvrtc.so.13: cannot open shared object "
        "file); pip install 'cupy-cuda13x[ctk]'"),
    "full": (fake_cupy(ones=raising(OutOfMemoryError("allocating 512 bytes"))),
             "the GPU has no memory left (allocating 512 bytes)"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_obstacle_is_one_line_that_names_the_remedy(name, install):
    module, line = FAULTS[name]
    why = install(module)
    assert why.startswith(line) and "\n" not in why
    assert device.choose("auto") == ("cpu", why)
    assert device.facts() == {"device": f"none: {why}"}
    with pytest.raises(ValueError, match=r"^device 'cuda': "):
        device.choose("cuda")


def test_a_cupy_that_does_not_import_says_why(install, monkeypatch):
    def fails(name):
        raise ImportError("libcudart.so.12: cannot open shared object file", name="libcudart")

    monkeypatch.setattr(device, "import_module", fails)
    assert "cannot be imported (libcudart.so.12" in install(fake_cupy())


def test_a_device_that_works_is_chosen_and_described(install):
    assert install(fake_cupy()) is None
    assert device.choose("auto") == device.choose("cuda") == ("cuda", None)
    facts = device.facts()
    assert facts["device"].startswith("NVIDIA Fake, 80 GiB (60 free), compute capability 9.0, 132")
    assert facts["driver"] == "for CUDA 13.0" and facts["cupy"] == "14.2.0, CUDA 13.2"


def test_an_unknown_device_is_named():
    with pytest.raises(ValueError, match="device 'gpu': there are auto, cpu, cuda"):
        device.choose("gpu")


# ---- on the command line ----

@pytest.fixture
def model(tmp_path):
    tiny_pipeline().save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


def ends(arguments, capsys):
    """Run a command that fails; return its one line on stderr."""
    with pytest.raises(SystemExit) as end:
        main(arguments)
    error = capsys.readouterr().err
    assert end.value.code == 2 and "Traceback" not in error
    return error.splitlines()[-1]


def test_generate_says_that_it_runs_on_the_cpu_and_why(model, install, capsys, tmp_path):
    install(None)
    main(["generate", "red heart", "--model", model, "--steps", "1",
          "--out", str(tmp_path / "a.png")])
    assert "running on the CPU: CuPy is not installed; pip install" in capsys.readouterr().err
    main(["generate", "red heart", "--model", model, "--steps", "1", "--device", "cpu",
          "--out", str(tmp_path / "b.png")])
    assert "running on the CPU" not in capsys.readouterr().err
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("option, line", [
    (["--device", "cuda"], "tinydiff: error: device 'cuda': CuPy is not installed; pip install"),
    (["--precision", "tf32"], "tinydiff: error: precision 'tf32' needs a GPU's tensor cores: "),
    (["--batch", "0"], "tinydiff: error: --scale 4, --batch 0 and --count 1 must be at least 1")])
def test_what_cannot_be_had_is_one_line(option, line, model, install, capsys):
    install(None)
    assert ends(["generate", "red heart", "--model", model, *option], capsys).startswith(line)


@pytest.mark.parametrize("fault, where", [
    (OutOfMemoryError("Out of memory allocating 1,024 bytes"), "device memory"),
    (CUDARuntimeError("cudaErrorMemoryAllocation: out of memory"), "device memory"),
    (MemoryError("Unable to allocate 9 GiB"), "memory")])
def test_running_out_of_memory_says_what_to_lower(fault, where, model, install, capsys,
                                                  monkeypatch):
    install(None)
    monkeypatch.setattr("tinydiff.pipelines.TextToImage.steps", raising(fault))
    line = ends(["generate", "red heart", "--model", model, "--device", "cpu"], capsys)
    assert line.startswith(f"tinydiff: error: out of {where} (")
    assert line.endswith("lower --batch, 32 pictures at once by default")


def test_other_faults_of_the_runtime_are_not_taken_for_memory():
    assert options.memory_fault(RuntimeError("a bug"), SimpleNamespace()) is None


@pytest.mark.parametrize("command", ["generate PROMPT", "train RECIPE", "evaluate MODEL"])
def test_every_command_that_runs_a_network_takes_a_device(command):
    args = build_parser().parse_args([*command.split(), "--device", "cpu"])
    assert args.device == "cpu" and args.precision == "float32" and args.lower
