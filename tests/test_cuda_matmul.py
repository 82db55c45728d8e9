"""Every version of the matrix product is right, in any order of its threads."""
from functools import partial

import numpy as np
import pytest

from tinydiff.kernels.emulator import emulation, obstacle, sites, unnoticed
from tinydiff.kernels.matmul import VERSIONS, check, matmul

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))

SHAPES = [(1, 1, 1), (33, 65, 19), (7, 130, 40), (129, 5, 17)]        # M, N, K


def right(shape, version, seed=0):
    check(np.random.default_rng(seed), shape, (version,))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", SHAPES)
def test_a_version_is_as_accurate_as_float32(shape, version):
    right(shape, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_version_is_right_in_any_order(seed, version):
    with emulation(seed=seed):
        right((33, 65, 19), version)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_has_no_race(version):
    with emulation(race=True):
        right((17, 33, 35), version)


def test_no_barrier_can_be_left_out():
    assert len(sites("matmul.cu")) == 10
    assert unnoticed("matmul.cu", [partial(right, (17, 33, 35), v) for v in VERSIONS]) == []


def test_matrices_that_do_not_fit_are_refused():
    a, b = np.zeros((2, 3), np.float32), np.zeros((4, 5), np.float32)
    with pytest.raises(ValueError, match="a has 3 columns and b 4 rows"):
        matmul(a, b)
