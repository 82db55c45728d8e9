"""tinydiff: diffusion models, complete and from scratch, every gradient written by hand.

    import tinydiff
    pipe = tinydiff.load("emoji")
    image = pipe("red heart, noto style", steps=50, seed=0)

Read in this order: `diffusion`, `schedules`, `grids`, `targets`, `samplers` (the mathematics);
`ops`, `nn`, `models` (the networks); `losses`, `train` (how they learn); `pipelines`.
"""
from importlib import import_module
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]
if (_CHECKOUT / "setup.py").is_file():  # not installed: kernels/ and data/ lie beside this folder
    __path__.append(str(_CHECKOUT))

__version__ = "0.1.0"

_WHERE = {                              # public name: the module it lives in
    "load": "tinydiff.pipelines",
    "shipped": "tinydiff.pipelines",
    "Level": "tinydiff.diffusion",
    "Step": "tinydiff.diffusion",
    "Schedule": "tinydiff.schedules",
    "levels": "tinydiff.grids",
    "SAMPLERS": "tinydiff.samplers",
    "Tape": "tinydiff.nn",
    "TextToImage": "tinydiff.pipelines",
    "ClassToImage": "tinydiff.pipelines",
    "Tokenizer": "tinydiff.text",
    "use": "tinydiff.backends.table",
}
_MODULES = ("backends", "datasets", "diffusion", "ema", "grids", "guidance", "likelihood",
            "losses", "models", "nn", "ops", "optim", "oracle", "pictures", "pipelines",
            "preconditioning", "recipes", "safetensors", "samplers", "schedules", "targets",
            "text", "train", "viz", "vlb")

__all__ = [*_WHERE, *_MODULES]


def __getattr__(name):
    """Import a public name when it is first used: ``import tinydiff`` itself stays instant."""
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    if name in _MODULES:
        return import_module(f"tinydiff.{name}")
    raise AttributeError(f"module 'tinydiff' has no attribute {name!r}")
