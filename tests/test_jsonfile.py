"""Claim: JSON is read back as it was written, and a damaged file is refused by name."""

import re

import pytest

from tinydiff.jsonfile import read_json, read_object, write_json


def test_json_survives_a_round_trip(tmp_path):
    value = {"a": [1, 2.5, None, True], "größe": "😀"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("text", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_damaged_json_names_the_file(tmp_path, text):
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'a.json'}: not valid JSON")):
        read_json(tmp_path / "a.json")


def test_json_that_cannot_be_written_leaves_the_old(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert read_json(tmp_path / "a.json") == 1 and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("value", [[1], "text", None])
def test_where_an_object_is_needed_anything_else_is_named(tmp_path, value):
    write_json(tmp_path / "a.json", value)
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / 'a.json'}: expected a JSON obj")):
        read_object(tmp_path / "a.json")


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="^" + re.escape(f"{tmp_path / 'no'}: no such")):
        read_json(tmp_path / "no")
    with pytest.raises(OSError, match="^" + re.escape(f"{tmp_path}: cannot be read")):
        read_json(tmp_path)
