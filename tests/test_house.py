"""The house stays in order: short files, imports that point downwards, links that lead on."""
import ast
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import tinydiff
from tinydiff.backends.table import obstacle

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tinydiff"
FILES = sorted(PACKAGE.rglob("*.py"))
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
NUMBA = {file for file in KERNELS if file.parent.name == "cpu" or file.stem.endswith("_numba")}
MODULES = [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
           for file in FILES]
MODULES += [".".join(("tinydiff", *file.relative_to(ROOT).with_suffix("").parts))
            for file in KERNELS if file.stem[0] != "_" and not (file in NUMBA and obstacle())]

LONGEST = 310                                      # lines; the budget is about 300

# A room is a module or a folder of tinydiff/, or the folder kernels/ beside it.  Each may import
# itself and the rooms named here, all of which stand above it: nothing points upwards in the
# architecture, downwards on this page.
ROOMS = {
    "__init__": "",
    # files
    "atomic": "",
    "jsonfile": "atomic",
    "safetensors": "atomic jsonfile",
    "backends": "",
    "pictures": "backends",
    "kernels": "backends",
    # mathematics: knows no network
    "diffusion": "",
    "schedules": "diffusion",
    "grids": "diffusion schedules",
    "targets": "diffusion",
    "scheduler_fields": "schedules",
    "scheduler_config": "diffusion grids schedules scheduler_fields targets",
    "losses": "backends diffusion targets",
    "cross_entropy": "backends",
    "guidance": "",
    "vlb": "diffusion losses",
    "likelihood": "diffusion vlb",
    "preconditioning": "",
    "samplers": "diffusion vlb",
    "oracle": "diffusion",
    "editing": "diffusion samplers",
    # networks: know no schedule
    "ops": "backends",
    "nn": "backends ops",
    "models": "backends jsonfile nn ops safetensors",
    "text": "atomic jsonfile",
    # what they learn from, and how
    "datasets": "backends pictures",
    "metrics": "",
    "ema": "nn",
    "optim": "backends ema nn",
    "loss_scale": "",
    "train": "backends ema losses nn optim",
    # all of it together
    "pipelines": "atomic backends datasets diffusion editing guidance jsonfile models nn ops "
                 "pictures samplers scheduler_config targets text",
    "recipes": "backends cross_entropy datasets diffusion jsonfile losses metrics models nn "
               "pictures pipelines safetensors scheduler_config targets text",
    "runs": "atomic jsonfile recipes safetensors text train",
    "stages": "atomic jsonfile models recipes runs scheduler_config text train",
    "evaluate": "backends datasets metrics pictures pipelines",
    "evaluate_classes": "backends diffusion evaluate likelihood metrics pictures pipelines",
    "viz": "backends diffusion pictures",
    "bench": "backends datasets jsonfile kernels losses models nn ops pipelines recipes "
             "safetensors train",
    "info": "__init__ backends datasets kernels pipelines recipes runs samplers",
    "commands": "backends datasets evaluate evaluate_classes jsonfile loss_scale models pictures "
                "pipelines recipes runs stages train viz",
    "cli": "backends bench commands info jsonfile",
    "__main__": "cli",
}
DEPENDENCIES = {"numpy", "scipy", "PIL", "matplotlib", "tqdm", "threadpoolctl"}
OPTIONAL = {                                       # who imports what may be missing
    PACKAGE / "backends" / "threads.py": {"numba"},
    PACKAGE / "bench" / "ladder.py": {"numba"},
    PACKAGE / "bench" / "torch_side.py": {"torch", "diffusers", "transformers"},
    PACKAGE / "bench" / "torch_unet.py": {"torch"},
    PACKAGE / "bench" / "gpu.py": {"torch"},
    **{file: {"numba", "llvmlite", "cupy", "cuda"} for file in KERNELS},
}
RUN_WHAT_A_FILE_SAYS = {"pickle", "shelve", "marshal", "dbm"}


def room(file):
    """The room that a file belongs to."""
    inside = PACKAGE if file.is_relative_to(PACKAGE) else ROOT
    return file.relative_to(inside).parts[0].removesuffix(".py")


def imports(file):
    """Yield ``(line, module)`` for every import of a file, those inside functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            inside = [f"tinydiff.{alias.name}" for alias in node.names if alias.name in ROOMS]
            if node.module == "tinydiff" and inside:
                yield from ((node.lineno, module) for module in inside)
            else:
                yield node.lineno, node.module


def each(files):
    return pytest.mark.parametrize("file", files, ids=lambda f: str(f.relative_to(ROOT)))


# ---- files and imports ----

@each(FILES + KERNELS)
def test_a_module_is_short_enough_to_read(file):
    assert len(file.read_text(encoding="utf-8").splitlines()) < LONGEST


def test_every_room_stands_below_what_it_imports():
    assert {room(file) for file in FILES + KERNELS} == ROOMS.keys()
    known = set()
    for name, below in ROOMS.items():
        assert known.issuperset(below.split()), f"{name} may import what stands below it"
        known.add(name)


@each(FILES + KERNELS)
def test_imports_point_downwards(file):
    allowed = {room(file), *ROOMS[room(file)].split()}
    for line, module in imports(file):
        top, _, inside = module.partition(".")
        if top == "tinydiff":
            target = inside.partition(".")[0] or "__init__"
            assert target in allowed, f"line {line}: {room(file)} imports {target}"


@each(KERNELS)
def test_a_kernel_knows_the_table_and_no_other_backend(file):
    for line, module in imports(file):
        assert module == "tinydiff.backends.table" or "backends" not in module, f"line {line}"


@each([file for file in FILES if room(file) not in ("backends", "bench")])
def test_kernels_are_reached_through_the_table_alone(file):
    assert '"tinydiff.kernels' not in file.read_text(encoding="utf-8")


@each(FILES + KERNELS)
def test_only_the_named_dependencies_are_imported_and_no_pickle(file):
    allowed = {"tinydiff", *DEPENDENCIES, *OPTIONAL.get(file, ())} | sys.stdlib_module_names
    for line, module in imports(file):
        top = module.partition(".")[0]
        assert top in allowed, f"line {line}: {module}"
        assert top not in RUN_WHAT_A_FILE_SAYS, f"line {line}: {module}"
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            assert node.value.value is False, f"line {node.value.lineno}: allow_pickle"


def test_each_module_can_be_imported_first():
    """Not only in the order in which the rest of the tests happens to import them."""
    code = """
import sys, traceback
from importlib import import_module
failed = 0
for name in sys.argv[1:]:
    for loaded in [m for m in sys.modules if m.partition(".")[0] == "tinydiff"]:
        del sys.modules[loaded]
    try:
        import_module(name)
    except Exception:
        failed += 1
        print(f"importing {name}:", traceback.format_exc(), file=sys.stderr)
sys.exit(failed)
"""
    names = [name for name in MODULES if not name.endswith("__main__")]
    done = subprocess.run([sys.executable, "-W", "error", "-c", code, *names], cwd=ROOT,
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not find_spec("transformers"), reason="transformers is not installed")
def test_the_folder_of_kernels_does_not_mislead_transformers():
    """It looks for a library called kernels, and Python finds the folder in the root first."""
    code = "import kernels, transformers.integrations.hub_kernels; print(kernels.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()) == ROOT / "kernels" / "__init__.py"


@pytest.mark.parametrize("name", tinydiff.__all__)
def test_every_public_name_is_there(name):
    assert getattr(tinydiff, name) is not None


# ---- documents and size ----

@each([ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md",
                                "notebooks/README.md")])
def test_links_lead_to_files(file):
    for link in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        target = file.parent / link.partition("#")[0]
        model = ROOT / "data" / "models" / "emoji"
        if "://" in link or (not model.exists() and target.is_relative_to(model)):
            continue
        assert target.exists(), f"{file.name} links to {link}"


def test_the_working_tree_stays_under_45_mib():
    try:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if listed.returncode:
        pytest.skip("not a git repository")
    files = [ROOT / name for name in listed.stdout.decode().split("\0") if name]
    assert sum(file.stat().st_size for file in files if file.is_file()) < 45 * 2**20
