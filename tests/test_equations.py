"""Claims: every public function of the mathematics is answered for by a test or a doctest, and
notebooks/EQUATIONS.md says which equation of which paper it is.
"""
import pytest
from equations import PAGE, answered_by, citations, cited, files_of_tests, page, public_functions

TESTS = files_of_tests()


@pytest.mark.parametrize("file, name, docstring",
                         [pytest.param(*each, id=each[1]) for each in public_functions()])
def test_a_public_function_has_a_test_or_a_doctest(file, name, docstring):
    assert ">>>" in docstring or answered_by(name, TESTS), f"{file.name}: {name}"


def test_the_page_is_what_the_docstrings_say():
    assert PAGE.read_text(encoding="utf-8") == page(), "run make equations"
    assert len(citations()) > 50


def test_citations_are_read_from_a_docstring():
    text = "x\n\n.. [1] Somebody, 2020, arXiv:2010.02502, Eq. 12 (the update), Eq. 16 (sigma)."
    assert list(cited(text)) == [("2010.02502", "Eq. 12, Eq. 16")]
