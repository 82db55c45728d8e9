"""Recipes: one TOML file per shipped model, and what each kind of recipe trains."""
import tomllib
from importlib.resources import files
from math import inf
from pathlib import Path

# What a value may be: in words, and as a test of one value.
COUNT = "a whole number from 1", lambda v: type(v) is int and v >= 1
WHOLE = "a whole number from 0", lambda v: type(v) is int and v >= 0
NUMBER = "a number from 0", lambda v: type(v) in (int, float) and 0 <= v < inf
POSITIVE = "a number above 0", lambda v: type(v) in (int, float) and 0 < v < inf
SHARE = "a number from 0 to 1", lambda v: type(v) in (int, float) and 0 <= v <= 1
SHARES = "two numbers from 0 to below 1", lambda v: (
    isinstance(v, list) and len(v) == 2 and all(SHARE[1](x) and x < 1 for x in v))
FLAG = "true or false", lambda v: isinstance(v, bool)
TEXT = "a text", lambda v: isinstance(v, str) and v != ""
TEXTS = "a list of texts", lambda v: isinstance(v, list) and v and all(TEXT[1](x) for x in v)

TABLES = {                              # of a recipe of kind "text_to_image"
    "data": {"dataset": TEXT, "size": COUNT, "styles": TEXTS, "tones": FLAG, "folder": TEXT},
    "tokenizer": {"vocab_size": COUNT, "max_length": COUNT},
    "text_encoder": None,               # published fields: the model checks them
    "unet": None,
    "scheduler": None,
    "loss": {"min_snr_gamma": NUMBER, "time_power": POSITIVE, "caption_dropout": SHARE},
    "train": {"steps": COUNT, "batch_size": COUNT, "shards": COUNT, "lr": NUMBER,
              "lr_end": NUMBER, "warm_up": WHOLE, "betas": SHARES, "weight_decay": NUMBER,
              "clip_norm": NUMBER, "ema_decay": SHARE, "seed": WHOLE},
    "samples": {"every": COUNT, "steps": COUNT, "guidance": NUMBER, "prompts": TEXTS},
}
DERIVED = {                             # fields that follow from the data and the tokenizer
    "text_encoder": {"vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id"},
    "unet": {"sample_size", "in_channels", "out_channels"},
}
REQUIRED = {"data": {"size"}, "train": {"steps"}}       # of the other tables, every key


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


def check_recipe(recipe, where):
    """Refuse by name what is unknown, missing, or of the wrong kind.

    Raises
    ------
    ValueError
        Naming `where`, the key and what it should be.
    """
    for table, values in recipe.items():
        if table in ("name", "kind"):
            continue
        if table not in TABLES:
            raise ValueError(f"{where}: unknown table [{table}]; known: {', '.join(TABLES)}")
        if not isinstance(values, dict):
            raise ValueError(f"{where}: {table}={values!r} should be a table, [{table}]")
        for key in DERIVED.get(table, set()) & values.keys():
            raise ValueError(f"{where}: {table}.{key} follows from the data: leave it out")
        for key, value in values.items() if TABLES[table] else ():
            if key not in TABLES[table]:
                raise ValueError(f"{where}: unknown key {table}.{key}; "
                                 f"[{table}] has {', '.join(sorted(TABLES[table]))}")
            words, fits = TABLES[table][key]
            if not fits(value):
                raise ValueError(f"{where}: {table}.{key}={value!r} should be {words}")
    required = [f"{table}.{key}" for table, known in TABLES.items()
                for key in sorted(REQUIRED.get(table, known or ()))
                if key not in recipe.get(table, {})]
    missing = [name for name in ("name", "kind", *TABLES) if name not in recipe] + required
    if missing:
        raise ValueError(f"{where}: {missing[0]} is missing")
    if recipe["kind"] != "text_to_image" or not TEXT[1](recipe["name"]):
        raise ValueError(f"{where}: kind={recipe['kind']!r}, name={recipe['name']!r}: the kind "
                         "should be 'text_to_image', the name a text")


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
    """Apply one ``table.key=value``."""
    path, equals, value = setting.partition("=")
    table, dot, key = path.strip().partition(".")
    if not (equals and dot and key):
        raise ValueError(f"--set {setting!r}: write table.key=value, e.g. train.steps=1000")
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value.strip()
    if not isinstance(recipe.setdefault(table, {}), dict):
        raise ValueError(f"--set {setting!r}: {table} is not a table")
    recipe[table][key] = parsed
