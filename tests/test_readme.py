"""The README's example prints what the README says it prints."""
import contextlib
import io
import re
from pathlib import Path

import numpy as np

README = Path(__file__).resolve().parent.parent / "README.md"


def numbers(text):
    return [float(word) for word in re.findall(r"-?\d+\.?\d*", text)]


def test_the_ten_lines_print_what_stands_below_them():
    blocks = re.findall(r"```(\w*)\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    place = next(i for i, (_, text) in enumerate(blocks) if "tinydiff.load(" in text)
    code, promised = blocks[place][1], blocks[place + 1][1]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    got, want = printed.getvalue(), promised
    assert re.sub(r"[-\d. ]+", " ", got).split() == re.sub(r"[-\d. ]+", " ", want).split()
    np.testing.assert_allclose(numbers(got), numbers(want), atol=0.02)    # two digits are printed
