"""The timestep embedding is the published one, to float32's last digit."""
from math import cos, sin

import numpy as np
import pytest

from tinydiff.ops import timestep_embedding


@pytest.mark.parametrize("dim", [2, 4, 7, 32])
@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("shift", [0, 1, 0.5])
def test_embedding_is_the_published_formula(dim, flip, shift):
    if dim == 2 and shift == 1:
        pytest.skip("half - freq_shift = 0: refused, see below")
    half, t = dim // 2, [0, 1, 499.5, 999]
    angles = [[s * 10000 ** (-i / (half - shift)) for i in range(half)] for s in t]
    want = [[f(a) for f in ((cos, sin) if flip else (sin, cos)) for a in row] + [0.0] * (dim % 2)
            for row in angles]
    got = timestep_embedding(np.array(t), dim, flip, shift)
    assert got.dtype == np.float32 and got.shape == (4, dim)
    np.testing.assert_allclose(got, want, atol=1e-7)
    np.testing.assert_allclose(timestep_embedding(np.array(t), dim, flip, shift, dtype=np.float64),
                               want, atol=1e-11)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float32, np.float64])
def test_any_kind_of_number_gives_the_same(dtype):
    want = timestep_embedding(np.array([3.0, 998.0]), 16)
    np.testing.assert_array_equal(timestep_embedding(np.array([3, 998], dtype), 16), want)


def test_max_period_is_the_longest_wavelength():
    emb = timestep_embedding(np.array([1.0]), 8, max_period=100, dtype=np.float64)
    np.testing.assert_allclose(emb[0, 3], sin(1 / 100), rtol=1e-13)


def test_errors_name_the_numbers():
    with pytest.raises(ValueError, match=r"t has shape \(\)"):
        timestep_embedding(np.array(3), 8)
    with pytest.raises(ValueError, match="dim=2 with freq_shift=1 leaves no frequency"):
        timestep_embedding(np.array([3]), 2)
    with pytest.raises(ValueError, match="dim=1 with"):
        timestep_embedding(np.array([3]), 1)
