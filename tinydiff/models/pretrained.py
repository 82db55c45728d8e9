"""Models in the field's own folders: ``config.json`` beside a safetensors file, checked strictly.

What a file says and this project cannot do is an error that names it: a field, a tensor, a shape.
A silent default would draw a wrong picture and leave no trace.
"""

import re
from pathlib import Path

import numpy as np

from tinydiff.backends.device import to_host
from tinydiff.jsonfile import read_json, write_json
from tinydiff.safetensors import check_finite, read_safetensors, read_sharded, write_safetensors

WEIGHTS_NAMES = ("diffusion_pytorch_model.safetensors", "model.safetensors")

# Published fields that speak of the file or of the program that wrote it, not of the network.
ABOUT_THE_FILE = ("architectures", "model_type", "transformers_version", "torch_dtype", "dtype")

# Names that published files once had, or have since: (pattern, today's name).
LEGACY_NAMES = (
    (r"(\.attentions\.\d+)\.query\.", r"\1.to_q."),            # older autoencoders
    (r"(\.attentions\.\d+)\.key\.", r"\1.to_k."),
    (r"(\.attentions\.\d+)\.value\.", r"\1.to_v."),
    (r"(\.attentions\.\d+)\.proj_attn\.", r"\1.to_out.0."),
    (r"^(embeddings|encoder|final_layer_norm)\.", r"text_model.\1."),   # CLIP by transformers 5
    (r"^(embeddings|pre_layrnorm|encoder|post_layernorm)\.", r"vision_model.\1."),
)
LEGACY_BUFFERS = r"(^|\.)embeddings\.position_ids$"             # the numbers 0 to 76, no parameter


# ---- configurations ----

def check_config(given, supported, only_default=None, owner="model"):
    """Complete a published configuration, and refuse by name what is not supported.

    Parameters
    ----------
    given : dict
        Fields of a ``config.json``.  One that begins with ``_`` is about the file: accepted.
    supported : dict
        The fields that the model reads, each with its published default.
    only_default : dict, optional
        Further published fields, accepted at this value and at no other.
    owner : str, default "model"
        Whose configuration this is, for the messages.

    Returns
    -------
    config : dict
        Every field of `supported`, with lists where Python has tuples, as JSON has them.

    Raises
    ------
    ValueError
        Naming the field, its value, and what is supported.

    Examples
    --------
    >>> check_config({"act_fn": "gelu", "_class_name": "Net"}, {"act_fn": "silu", "dropout": 0.0})
    {'act_fn': 'gelu', 'dropout': 0.0}
    """
    only_default = only_default or {}
    config = {field: _listed(value) for field, value in supported.items()}
    for field, value in given.items():
        shown = f"{owner} config: {field}={value!r:.80}"
        if field in supported:
            expected = _expected_kind(value, supported[field])
            if expected:
                raise ValueError(f"{shown} should be {expected}")
            config[field] = _listed(value)
        elif field in only_default:
            if _listed(value) != _listed(only_default[field]):
                raise ValueError(f"{shown} is not supported; only {only_default[field]!r} is")
        elif not field.startswith("_") and field not in ABOUT_THE_FILE:
            raise ValueError(f"{shown} is not a supported field; supported are "
                             + ", ".join(supported))
    return config


def _expected_kind(value, default):
    """Say what `value` should have been, judged by the kind of `default`, or return None."""
    leaves, examples = _leaves(value), [leaf for leaf in _leaves(default) if leaf is not None]
    if any(isinstance(leaf, dict) for leaf in leaves):
        return "a value or a list of values"
    if examples and isinstance(examples[0], str):
        if not all(leaf is None or isinstance(leaf, str) for leaf in leaves):
            return "a name or a list of names"
    elif examples and not all(isinstance(leaf, (int, float)) for leaf in leaves):
        return "a number or a list of numbers"
    return None


def _leaves(value):
    return [leaf for v in value for leaf in _leaves(v)] if isinstance(value, (list, tuple)) \
        else [value]


def _listed(value):
    return [_listed(v) for v in value] if isinstance(value, (list, tuple)) else value


# ---- folders ----

def load_model(cls, folder, dtype=np.float32):
    """Build the model that a folder describes; nothing is drawn at random on the way.

    Parameters
    ----------
    cls : type
        A `Module` whose constructor takes the published fields; its ``config_header``, if it has
        one, holds the ``_class_name`` that the folder must agree with, or be one of its
        ``former_class_names``.  If its files hold other tensors than it has parameters, its
        ``load_published`` takes them in the place of ``load_state``.
    folder : path-like
        Holds ``config.json`` and the weights in safetensors, whole or sharded; the ``fp16``
        variant is read where it is the only one.
    dtype : numpy dtype, default float32
        What the weights are converted to.

    Returns
    -------
    model : cls

    Raises
    ------
    FileNotFoundError
        If the folder, its configuration or its weights are missing.
    ValueError
        Naming the file and the first fault in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    path = folder / "config.json"
    config = read_json(path)
    if not isinstance(config, dict):
        raise ValueError(f"{path}: should hold an object, {{...}}")
    own_class = getattr(cls, "config_header", {}).get("_class_name")
    known = (own_class, *getattr(cls, "former_class_names", ()))
    if own_class and config.get("_class_name", own_class) not in known:
        raise ValueError(f"{path}: describes {config['_class_name']}, not {own_class}")
    model = build(cls, config, path)

    path = find_weights(folder)
    tensors = read_sharded(path) if path.suffix == ".json" else read_safetensors(path)
    tensors = modern_names(tensors, dict(model.parameters()))
    check_finite(tensors, path)
    try:
        getattr(model, "load_published", model.load_state)(tensors, dtype)
    except ValueError as fault:
        raise ValueError(f"{path}: {fault}") from fault
    return model


def build(cls, config, where):
    """Build a model from fields that a user or a file wrote; any fault in them is one line.

    Parameters
    ----------
    cls : type
    config : dict
        The constructor's fields.
    where : object
        What to name in the message: the file, or the table of a recipe.

    Raises
    ------
    ValueError
        Naming `where` and the fault.
    """
    try:
        return cls(**config)
    except (ValueError, TypeError, ArithmeticError, AttributeError, LookupError) as fault:
        raise ValueError(f"{where}: {fault}") from fault


def find_weights(folder):
    """Find a folder's safetensors file, or the index of its shards.

    Parameters
    ----------
    folder : path-like

    Returns
    -------
    path : Path
    """
    folder = Path(folder)
    for ending in ("safetensors", "safetensors.index.json",
                   "fp16.safetensors", "safetensors.index.fp16.json"):
        for name in WEIGHTS_NAMES:
            path = folder / name.replace("safetensors", ending)
            if path.is_file():
                return path
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    why = f" ({pickled[0]} is a pickle, which could run anything: convert it)" if pickled else ""
    raise FileNotFoundError(f"{folder}: has neither {' nor '.join(WEIGHTS_NAMES)}{why}")


def modern_names(tensors, own):
    """Give tensors of older and newer published files the names that the model has.

    Parameters
    ----------
    tensors : dict of str to ndarray
    own : container of str
        The model's names; one that it has is left alone.

    Returns
    -------
    tensors : dict of str to ndarray
    """
    renamed = {}
    for name, values in tensors.items():
        if name not in own:
            if re.search(LEGACY_BUFFERS, name):
                continue
            modern = (re.sub(pattern, today, name) for pattern, today in LEGACY_NAMES)
            name = next((m for m in modern if m in own and m not in tensors), name)
        renamed[name] = values
    return renamed


def save_model(model, folder, dtype="float32"):
    """Write a model's ``config.json`` and weights, each atomically.

    Parameters
    ----------
    model : Module
        Has ``config``, ``weights_name`` and, for other programs, ``config_header``; with a
        ``published_state`` where files hold other tensors than it has parameters.
    folder : path-like
        Made if it is missing.  Whole checkpoints go through `tinydiff.atomic.write_folder`.
    dtype : {"float16", "float32", "float64"}, default "float32"
        What the file holds.

    Raises
    ------
    ValueError
        If a weight is not finite, or not in `dtype`.
    OSError
        If the disk is full; the old files are intact then.
    """
    folder = Path(folder)
    name = getattr(model, "weights_name", WEIGHTS_NAMES[0])
    state = getattr(model, "published_state", model.state)()
    tensors = _converted(state, dtype, folder / name)
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / name, tensors, {"format": "pt"})     # transformers asks for "pt"
    write_json(folder / "config.json", {**getattr(model, "config_header", {}), **model.config})


def _converted(state, dtype, path):
    """Convert to what the file holds, refusing what it cannot hold."""
    if dtype not in ("float16", "float32", "float64"):
        raise ValueError(f"{path}: cannot be saved as {dtype}; float16, float32 and float64 can")
    dtype = np.dtype(dtype)
    empty = [name for name, values in state.items() if values is None]
    if empty:
        raise ValueError(f"{path}: {empty[0]} has no value yet: initialise or load the model")
    state = {name: to_host(values) for name, values in state.items()}
    check_finite(state, path)
    with np.errstate(over="ignore"):
        tensors = {name: values.astype(dtype) for name, values in state.items()}
    for name, values in tensors.items():
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: tensor {name!r} reaches {np.abs(state[name]).max():.3g}, "
                             f"{dtype} only {np.finfo(dtype).max:.6g}; save it as float32")
    return tensors
