"""Claims: every public function of the mathematics has a doctest or a property test, and a test of
its own or a doctest; it cites its paper, and notebooks/EQUATIONS.md says which equation it is.
"""
import ast

import pytest
from equations import PAGE, answered_by, citations, cited, files_of_tests, page, public_functions

TESTS = files_of_tests()
PROPERTIES = [(file, names) for file, names in TESTS if file == "test_properties.py"]
EACH = pytest.mark.parametrize("file, name, docstring",
                               [pytest.param(*each, id=each[1]) for each in public_functions()])
TEXTBOOK = {"l1", "image_gradient", "cross_entropy"}     # older than any paper that could be cited
TEXTBOOK |= {"time_in", "batch_of", "own_options"}       # no equations


def heading(file):
    """Return the docstring of a file."""
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


@EACH
def test_a_public_function_has_a_test_or_a_doctest(file, name, docstring):
    assert ">>>" in docstring or answered_by(name, TESTS), f"{file.name}: {name}"


@EACH
def test_a_public_function_has_a_doctest_or_a_property_test(file, name, docstring):
    assert ">>>" in docstring or answered_by(name, PROPERTIES), f"{file.name}: {name}"


@EACH
def test_a_public_function_cites_its_paper(file, name, docstring):
    """In its own docstring, or in the heading of its file or of its folder."""
    texts = docstring, heading(file), heading(file.parent / "__init__.py")
    assert name in TEXTBOOK or any("arXiv:" in text for text in texts), f"{file.name}: {name}"


def test_the_page_is_what_the_docstrings_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make equations"
    assert len(citations()) > 50


def test_citations_are_read_from_a_docstring():
    text = "x\n\n.. [1] Somebody, 2020, arXiv:2010.02502, Eq. 12 (the update), Eq. 16 (sigma)."
    assert list(cited(text)) == [("2010.02502", "Eq. 12, Eq. 16")]
