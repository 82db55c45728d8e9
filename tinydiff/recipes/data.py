"""What a recipe trains on: the pictures of its table ``[data]``, and their captions' words."""
import numpy as np

from tinydiff.datasets import STYLES, caption, load_emoji, load_fashion_mnist, load_folder
from tinydiff.text import Tokenizer


def training_pictures(data):
    """Read the pictures that the table ``[data]`` of a recipe asks for.

    Raises
    ------
    ValueError, FileNotFoundError
        If there is no such data set or folder.
    """
    if data.get("dataset") == "fashion_mnist":            # there the folder holds its own files
        return load_fashion_mnist("train", data.get("folder"), data["size"])
    if data.get("folder"):
        return load_folder(data["folder"], data["size"])
    if data.get("dataset") != "emoji":
        raise ValueError(f"[data] dataset={data.get('dataset')!r} is unknown; known: emoji, "
                         "fashion_mnist; or name a folder of your own with --data")
    return load_emoji(data["size"], data.get("styles", STYLES), data.get("tones", False),
                      split="train")


def held_out_pictures(data):
    """Read the pictures that no stage of training may see; None for a user's own folder."""
    if data.get("dataset") == "fashion_mnist":
        return load_fashion_mnist("test", data.get("folder"), data["size"])
    if data.get("folder"):
        return None
    return load_emoji(data["size"], data.get("styles", STYLES), data.get("tones", False),
                      split="held_out")


def classes_of(pictures):
    """Return each picture's class, and the classes' names.

    Parameters
    ----------
    pictures : Pictures

    Returns
    -------
    numbers : (N,) int64 ndarray
    id2label : dict of int to str

    Raises
    ------
    ValueError
        If the pictures have no classes, or the classes are not numbered from 0 on.
    """
    if not all("class" in r for r in pictures.records):
        raise ValueError("[data] these pictures have captions and no classes: this kind of recipe "
                         "needs dataset = \"fashion_mnist\"")
    id2label = dict(sorted({r["class"]: r["label"] for r in pictures.records}.items()))
    if list(id2label) != list(range(len(id2label))):
        raise ValueError(f"[data] the classes are {list(id2label)}: 0, 1, ... without gaps are "
                         "needed")
    return np.array([r["class"] for r in pictures.records], np.int64), id2label


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
