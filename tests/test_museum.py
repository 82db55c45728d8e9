"""Claims: a test of the library catches every bug of the museum: it passes, and with the switch on
it fails; the page says what the exhibits say.

The tests are those of the other files, run here once more, as they are; each of them compares with
a formula, an identity or a law that is known exactly, not with a picture remembered.  That the
error which the page prints is small without the bug and large with it, the page asserts.
"""
import importlib
import re
from inspect import signature
from pathlib import Path

import pytest
from museum import EXHIBITS, ROOMS, placard

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "13_bug_museum.py"

each = pytest.mark.parametrize("exhibit", EXHIBITS.values(), ids=EXHIBITS.keys())


def catching(exhibit):
    """Return the library's own test, on the exhibit's case of it."""
    file, _, name = exhibit.test.partition("::")
    test = getattr(importlib.import_module(file.removesuffix(".py")), name)
    assert len(signature(test).parameters) == len(exhibit.arguments)
    return lambda: test(*exhibit.arguments)


@each
def test_the_librarys_test_passes_without_the_bug_and_fails_with_it(exhibit):
    test = catching(exhibit)
    test()
    with exhibit.switch(), pytest.raises((AssertionError, pytest.fail.Exception)):
        test()
    test()                                             # and the switch leaves nothing behind


@each
def test_the_page_says_what_the_exhibit_says(exhibit):
    page = NOTEBOOK.read_text(encoding="utf-8")
    said = "\n".join(f"# {line}".rstrip() for line in placard(exhibit).splitlines())
    assert said in page, f"the page should say:\n{said}"
    assert f'visit("{exhibit.name}")' in page


@each
def test_an_exhibit_says_where_the_bug_was_and_which_line(exhibit):
    assert exhibit.wrong != exhibit.right
    assert re.search(r"https://|`test_|`prepare_", exhibit.seen)
    assert len(exhibit.title) < 60 and not exhibit.measure.endswith(".")


def test_every_exhibit_is_in_one_room():
    assert sum(map(len, ROOMS.values())) == len(EXHIBITS) >= 20
