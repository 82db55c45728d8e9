"""Every version of softmax is the definition, in any order of its threads."""
from functools import partial

import numpy as np
import pytest

from tinydiff import ops
from tinydiff.kernels.emulator import emulation, obstacle, sites, unnoticed
from tinydiff.kernels.softmax import VERSIONS, check, softmax_backward, softmax_forward

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))

SMALL = (2, 3, 150)


def right(shape, version):
    check(np.random.default_rng(0), shape, (version,))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33, 67), (3, 781), (130, 2), (2, 1, 257)])
def test_a_version_is_as_accurate_as_float32(shape, version):
    right(shape, version)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_version_is_right_in_any_order_and_has_no_race(version):
    for seed in (1, 2, 3):
        with emulation(seed=seed):
            right(SMALL, version)
    with emulation(race=True):
        right(SMALL, version)


@pytest.mark.parametrize("file", ["softmax.cu", "softmax_backward.cu"])
def test_no_barrier_can_be_left_out(file):
    assert len(sites(file)) == {"softmax.cu": 5, "softmax_backward.cu": 2}[file]
    assert unnoticed(file, [partial(right, SMALL, version) for version in VERSIONS]) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_softmax_is_the_op_and_may_write_where_it_reads(version):
    x = np.random.default_rng(0).standard_normal((4, 9, 40), dtype=np.float32)
    y, (_, arrays) = softmax_forward(x, version=version)
    want, cache = ops.softmax_forward(x)
    np.testing.assert_allclose(y, want, rtol=1e-5)
    np.testing.assert_allclose(softmax_backward(x, arrays), ops.softmax_backward(x, cache),
                               rtol=1e-4, atol=1e-6)
    in_place = x.copy()
    assert softmax_forward(in_place, out=in_place, version=version)[0] is in_place
    np.testing.assert_array_equal(in_place, y)


def test_what_the_kernels_do_not_know_goes_to_the_definition():
    x = np.zeros((4, 6), np.float32)
    for given, axis in ((x.astype(np.float64), -1), (x, 0), (x[:, ::2], -1), (x[:0], -1)):
        assert softmax_forward(given, axis) is NotImplemented
