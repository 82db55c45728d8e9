"""Reading and writing the files of a tokenizer folder, with every fault named."""

from pathlib import Path

from tinydiff.atomic import replacing
from tinydiff.jsonfile import read_object, write_json

__all__ = ["read_tokenizer", "write_tokenizer"]

MERGES_HEADER = "#version: 0.2"
# transformers writes 10**30 where a tokenizer has no limit; CLIP's own limit is 77.
DEFAULT_LENGTH = 77
LONGEST = 10**6
# The published name of each special token, and its name in `Tokenizer`.
SPECIAL_NAMES = {
    "bos_token": "start_token",
    "eos_token": "end_token",
    "pad_token": "pad_token",
    "unk_token": "unknown_token",
}


def read_tokenizer(folder):
    """Read a tokenizer folder.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    vocabulary : dict of str to int
    merges : list of (str, str)
    options : dict
        Special tokens and length, as keyword arguments of `Tokenizer`.

    Raises
    ------
    FileNotFoundError
        If ``vocab.json`` or ``merges.txt`` is missing.
    ValueError
        If a file is damaged.

    Notes
    -----
    transformers 5 writes one ``tokenizer.json`` in place of vocabulary and merges; it is read
    where there is no ``vocab.json``.

    Published folders name the padding token twice, and Stable Diffusion 2 names two: there
    ``special_tokens_map.json`` decides, unless the configuration lists its
    ``added_tokens_decoder``, which newer folders do.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such tokenizer folder")
    joint = folder / "tokenizer.json"
    if joint.exists() and not (folder / "vocab.json").exists():
        vocabulary, merges = read_joint_file(joint)
    else:
        vocabulary = check_vocabulary(read_object(folder / "vocab.json"), folder / "vocab.json")
        merges = read_merges(folder / "merges.txt", vocabulary)

    config_path, special_path = folder / "tokenizer_config.json", folder / "special_tokens_map.json"
    config = read_object(config_path) if config_path.exists() else {}
    special = {}
    if special_path.exists() and "added_tokens_decoder" not in config:
        special = read_object(special_path)

    options = {"model_max_length": read_length(config, config_path)}
    for published, name in SPECIAL_NAMES.items():
        path = special_path if published in special else config_path
        token = special.get(published, config.get(published))
        if isinstance(token, dict):               # newer files keep the token's flags beside it
            token = token.get("content")
            if token is None:
                raise ValueError(f"{path}: {published} has no 'content'")
        if token is None:
            continue
        if not isinstance(token, str) or token not in vocabulary:
            raise ValueError(f"{path}: {published} {token!r} is not in the vocabulary")
        options[name] = token
    return vocabulary, merges, options


def read_joint_file(path):
    """Return the vocabulary and the merges of a ``tokenizer.json``, if it is CLIP's kind."""
    model = read_object(path).get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise ValueError(f"{path}: not a byte-pair tokenizer")
    if model.get("end_of_word_suffix") != "</w>":
        raise ValueError(f"{path}: words do not end in '</w>': not a tokenizer of CLIP's kind")
    vocabulary, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocabulary, dict) or not isinstance(merges, list):
        raise ValueError(f"{path}: model has no vocab or no merges")
    check_vocabulary(vocabulary, path)
    # Older files write a pair as one string.
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else pair for pair in merges]
    return vocabulary, [check_pair(pair, vocabulary, f"{path}: merge {i}")
                        for i, pair in enumerate(pairs, start=1)]


def check_vocabulary(vocabulary, path):
    """Return `vocabulary` if it has the ids 0 .. V-1, each once."""
    owner = {}
    for symbol, i in vocabulary.items():
        if type(i) is not int:
            raise ValueError(f"{path}: the id of {symbol!r} is {i!r}, not a whole number")
        if i in owner:
            raise ValueError(f"{path}: id {i} belongs to both {owner[i]!r} and {symbol!r}")
        if not 0 <= i < len(vocabulary):
            raise ValueError(f"{path}: id {i} of {symbol!r} is outside 0 to {len(vocabulary) - 1}")
        owner[i] = symbol
    if not vocabulary:
        raise ValueError(f"{path}: the vocabulary is empty")
    return vocabulary


def read_merges(path, vocabulary):
    """Read ``merges.txt``: after the version line, two symbols a line."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except UnicodeDecodeError as fault:
        raise ValueError(f"{path}: not valid UTF-8 ({fault})") from None
    merges = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        merges.append(check_pair(line.split(), vocabulary, f"{path}: line {number}"))
    return merges


def check_pair(pair, vocabulary, where):
    """Return `pair` as a tuple if it is two symbols that, like their union, have ids."""
    if not isinstance(pair, list | tuple) or len(pair) != 2 or {*map(type, pair)} != {str}:
        raise ValueError(f"{where} is not two symbols")
    for symbol in (*pair, pair[0] + pair[1]):
        if symbol not in vocabulary:
            raise ValueError(f"{where}: {symbol!r} is not in the vocabulary")
    return tuple(pair)


def read_length(config, path):
    """Return the length of a row of ids; published files may say "no limit"."""
    length = config.get("model_max_length", DEFAULT_LENGTH)
    if isinstance(length, bool) or not isinstance(length, int | float) or not length >= 2:
        raise ValueError(f"{path}: model_max_length is {length!r}, not a length of 2 or more")
    return DEFAULT_LENGTH if length > LONGEST else int(length)


def write_tokenizer(folder, vocabulary, merges, options):
    """Write the four files; the arguments are what `read_tokenizer` returns."""
    special = {published: options[name] for published, name in SPECIAL_NAMES.items()}
    config = {
        "tokenizer_class": "CLIPTokenizer",
        "add_prefix_space": False,
        "do_lower_case": True,
        "errors": "replace",
        "model_max_length": options["model_max_length"],
        **special,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    ordered = dict(sorted(vocabulary.items(), key=lambda item: item[1]))
    write_json(folder / "vocab.json", ordered)
    lines = [MERGES_HEADER, *(f"{first} {second}" for first, second in merges)]
    with replacing(folder / "merges.txt") as file:
        file.write(("\n".join(lines) + "\n").encode())
    write_json(folder / "tokenizer_config.json", config)
    write_json(folder / "special_tokens_map.json", special)
