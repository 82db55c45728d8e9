"""The Numba twins of the CUDA attention kernels agree with their .cu files.

Numba reads NUMBA_ENABLE_CUDASIM when it is first imported, so the simulator runs in a process of
its own.
"""
import os
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
from tinydiff.kernels import attention, attention_backward_numba, attention_numba
from tinydiff.kernels.accuracy import assert_as_accurate_as
from tinydiff.ops.attention import attention_backward, attention_forward, causal_mask

def definition(q, k, v, do, heads, mask):
    o, cache = attention_forward.reference(q, k, v, heads, mask)
    return o, *attention_backward.reference(do, cache)

rng = np.random.default_rng(0)
for B, N, M, D, E, heads, mask in ((2, 5, 7, 18, 7, 2, None), (1, 9, 9, 18, 7, 1, causal_mask(9)),
                                   (1, 6, 3, 18, 7, 2, np.full(3, -np.inf, np.float32))):
    q, k, v, do = (rng.standard_normal((B, length, heads * width), dtype=np.float32)
                   for length, width in ((N, D), (M, D), (M, E), (N, E)))
    in_32 = definition(q, k, v, do, heads, mask)
    in_64 = definition(*(x.astype(np.float64) for x in (q, k, v, do)), heads, mask)
    for version in attention_numba.VERSIONS:
        o, statistics = attention_numba.forward(q, k, v, heads, mask, version=version)
        twins = o, *attention_backward_numba.backward(do, q, k, v, o, statistics, heads, mask,
                                                      version=version)
        for twin, r32, r64 in zip(twins, in_32, in_64, strict=True):
            assert_as_accurate_as(twin, r32, r64)
        o, cache = attention.attention_forward(q, k, v, heads, mask, version=version)
        for twin, cu in zip(twins, (o, *attention_backward(do, cache)), strict=True):
            np.testing.assert_allclose(twin, cu, rtol=0, atol=2e-6 * np.abs(cu).max())
print("equal")
"""


@pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))
def test_the_twins_agree_with_the_cu_files():
    done = subprocess.run([sys.executable, "-W", "error", "-c", AGREE], cwd=ROOT, text=True,
                          env={**os.environ, "NUMBA_ENABLE_CUDASIM": "1"}, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "equal\n"
