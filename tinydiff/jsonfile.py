"""JSON files, read with every fault named and written atomically."""

import json
from pathlib import Path

from tinydiff.atomic import not_read, replacing


def read_json(path):
    """Read a JSON file; a fault is a one-line error that names the file.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    value : object
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise not_read(path, error) from error
    except (ValueError, RecursionError) as fault:
        raise ValueError(f"{path}: not valid JSON: {fault}") from fault


def read_object(path):
    """Read a JSON file that holds one object.

    Parameters
    ----------
    path : path-like

    Returns
    -------
    value : dict
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def write_json(path, value):
    """Write a JSON file, atomically.

    Parameters
    ----------
    path : path-like
    value : object
        Finite: JSON has no NaN.
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with replacing(path) as file:
        file.write(text.encode())
