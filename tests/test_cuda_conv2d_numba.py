"""The Numba twins of the CUDA convolutions are their .cu files to the last bit, and can be stepped.

Numba reads NUMBA_ENABLE_CUDASIM when it is first imported, so the simulator runs in a process of
its own.
"""
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tinydiff.kernels.emulator import obstacle

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.skipif(not find_spec("numba"), reason="Numba is not installed")

AGREE = """
import numpy as np
from tinydiff.kernels import conv2d, conv2d_numba

def normal(*shape, seed):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)

for B, C, H, W, O, KH, KW, stride, padding in (
        (1, 2, 5, 6, 2, 3, 3, 1, 1), (2, 1, 7, 4, 2, 2, 3, 2, 1), (1, 1, 1, 1, 1, 1, 1, 1, 0)):
    x, weight, bias = normal(B, C, H, W, seed=0), normal(O, C, KH, KW, seed=1), normal(O, seed=2)
    for version in conv2d_numba.VERSIONS:
        y, cache = conv2d.conv2d_forward(x, weight, bias, stride, padding, version=version)
        dy = normal(*y.shape, seed=3)
        dx, dweight, _ = cache.backward(dy, cache.arrays)
        twin = conv2d_numba.forward(x, weight, bias, stride, padding, version)
        np.testing.assert_array_equal(twin, y)
        twins = conv2d_numba.backward(dy, x, weight, stride, padding, version)
        np.testing.assert_array_equal(twins[0], dx)
        if version == 1:
            np.testing.assert_array_equal(twins[1], dweight)
        else:                                   # sums are cut at the tiles, and these are smaller
            np.testing.assert_allclose(twins[1], dweight, atol=1e-5)
print("equal")
"""

STEP = """
import numpy as np
from tinydiff.kernels.conv2d_numba import conv2d_v2_tiled
from tinydiff.kernels.stepping import stop_at, typing

x = np.arange(25, dtype=np.float32).reshape(1, 1, 5, 5)
weight, bias = np.ones((1, 1, 2, 2), np.float32), np.zeros(1, np.float32)
y = np.full((1, 1, 4, 4), np.nan, np.float32)
kernel = stop_at(conv2d_v2_tiled, "of_c += seen", "p == 2 and q == 1 and i == 1 and j == 0")
with typing("p p, q, i, j", "p float(seen)", "p float(of_c)", "next", "p float(of_c)") as session:
    kernel[(2, 2, 1), (2, 2, 1), 0, 4 * 9](x, weight, bias, y, 1, 0, 0)
print(session.transcript)
print("stops", session.stops)
print("y", float(y[0, 0, 2, 1]))

for line in ("no such line", "for"):
    try:
        stop_at(conv2d_v2_tiled, line, "True")
    except ValueError as error:
        print(error)
"""


def simulate(script):
    """Run a script with Numba's simulator in place of a device; return what it prints."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], cwd=ROOT, text=True,
                          env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))
def test_the_twins_compute_the_same_bits_as_the_cu_files():
    assert simulate(AGREE) == "equal\n"


def test_the_debugger_stops_in_one_thread_and_steps():
    said = simulate(STEP)
    answers = re.findall(r"^\(Pdb\) p .*\n(.*)", said, flags=re.M)
    # y[2, 1] = x[2, 1] + x[2, 2] + x[3, 1] + x[3, 2]: two of four are added, the third is next.
    assert answers == ["(2, 1, 1, 0)", "16.0", "23.0", "39.0"]
    assert "-> of_c += seen * weight[o, c, i, j]" in said
    assert "stops 1\n" in said
    assert "y 56.0\n" in said
    assert "0 lines of conv2d_v2_tiled begin with 'no such line'" in said
    assert "5 lines of conv2d_v2_tiled begin with 'for'" in said
