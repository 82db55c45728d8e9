"""Recipes: one TOML file per shipped model, and what each kind of recipe trains."""
import tomllib
from importlib.resources import files
from pathlib import Path

from tinydiff.recipes.tables import check_recipe


def names():
    """Return the names of the recipes that come with the package."""
    return sorted(p.name.removesuffix(".toml") for p in files(__name__).iterdir()
                  if p.name.endswith(".toml"))


def load_recipe(name_or_path, settings=()):
    """Read a recipe, change some of its values, and check every key.

    Parameters
    ----------
    name_or_path : str or path
        A name of `names`, or a TOML file of your own.
    settings : iterable of str
        ``"table.key=value"``, the value written as in TOML; a bare word is a string.

    Returns
    -------
    recipe : dict of dict

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the recipe, the table or the key that is wrong.

    Examples
    --------
    >>> load_recipe("emoji-pixel", ["train.steps=10"])["train"]["steps"]
    10
    """
    text, where = _read(name_or_path)
    try:
        recipe = tomllib.loads(text)
    except tomllib.TOMLDecodeError as fault:
        raise ValueError(f"{where}: {fault}") from fault
    for setting in settings:
        _set(recipe, setting)
    check_recipe(recipe, where)
    return recipe


def stage_recipe(recipe, stage):
    """Return what one stage of a recipe is trained by: its own tables, and the shared ones.

    Parameters
    ----------
    recipe : dict
        Of a kind with stages.
    stage : str
        A name of `tinydiff.recipes.tables.STAGES`.

    Returns
    -------
    recipe : dict of dict
        ``kind`` is the stage; ``loss``, ``train``, ``samples`` and the models' tables are its own.
    """
    return {"name": f"{recipe['name']}/{stage}", "kind": stage, "data": recipe["data"],
            "tokenizer": recipe["tokenizer"], **recipe[stage]}


def _read(name_or_path):
    """Return the text of a recipe and what to call it in messages."""
    path = Path(name_or_path)
    if path.suffix == ".toml":
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such recipe file")
        return path.read_text(encoding="utf-8"), str(path)
    if str(name_or_path) not in names():
        raise ValueError(f"unknown recipe {str(name_or_path)!r}; known: {', '.join(names())}, "
                         "or a .toml file of your own")
    resource = files(__name__) / f"{name_or_path}.toml"
    return resource.read_text(encoding="utf-8"), f"recipe {name_or_path}"


def _set(recipe, setting):
    """Apply one ``table.key=value``; the table may lie in another, ``stage.table.key``."""
    path, equals, value = setting.partition("=")
    table, dot, key = path.strip().rpartition(".")
    if not (equals and dot and key and table):
        raise ValueError(f"--set {setting!r}: write table.key=value, e.g. train.steps=1000")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    inner = recipe
    for name in table.split("."):
        inner = inner.setdefault(name, {})
        if not isinstance(inner, dict):
            raise ValueError(f"--set {setting!r}: {name} is not a table")
    inner[key] = parsed
