"""What a recipe trains on: the pictures of its table ``[data]``, and their captions' words."""
from tinydiff.datasets import STYLES, caption, load_emoji, load_folder
from tinydiff.text import Tokenizer


def training_pictures(data):
    """Read the pictures that the table ``[data]`` of a recipe asks for.

    Raises
    ------
    ValueError, FileNotFoundError
        If there is no such data set or folder.
    """
    if data.get("folder"):
        return load_folder(data["folder"], data["size"])
    if data.get("dataset") != "emoji":
        raise ValueError(f"[data] dataset={data.get('dataset')!r} is unknown; known: emoji; "
                         "or name a folder of your own with --data")
    return load_emoji(data["size"], data.get("styles", STYLES), data.get("tones", False),
                      split="train")


def held_out_pictures(data):
    """Read the pictures that no stage of training may see; None for a user's own folder."""
    if data.get("folder"):
        return None
    return load_emoji(data["size"], data.get("styles", STYLES), data.get("tones", False),
                      split="held_out")


def new_tokenizer(records, words):
    """Train a tokenizer on every text that it should know how to spell briefly.

    Parameters
    ----------
    records : list of dict
        Of the training pictures.
    words : dict
        The table ``[tokenizer]``.

    Returns
    -------
    Tokenizer
    """
    texts = [text for r in records for text in (caption(r), " ".join(r.get("tags", ())))]
    return Tokenizer.train(texts, words["vocab_size"], model_max_length=words["max_length"])
