"""AdamW in one kernel is the readable update, whatever the alignment of its arrays."""
import numpy as np
import pytest

from tinydiff.kernels.adamw import VERSIONS, adamw_update, check
from tinydiff.kernels.emulator import emulation, obstacle
from tinydiff.optim import adamw_update as definition

pytestmark = pytest.mark.skipif(bool(obstacle()), reason=str(obstacle()))

RATES = {"k": 2, "lr": 1e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("n", [1, 3, 4, 1003])
def test_a_version_is_as_accurate_as_float32_and_has_no_race(n, version):
    check(np.random.default_rng(0), n, (version,))
    with emulation(race=True, seed=1):
        check(np.random.default_rng(0), n, (version,))


@pytest.mark.parametrize("offset", [0, 1, 4])
def test_views_that_begin_anywhere_are_updated(offset):
    """A model's parameters are views of one array: few begin at a multiple of 16 bytes."""
    start = np.random.default_rng(0).standard_normal((5, 64), dtype=np.float32) ** 2
    ours, theirs = start.copy(), start.copy()
    adamw_update(*(a[offset:offset + 37] for a in ours), **RATES, clip=0.5, share=0.2)
    definition.reference(*(a[offset:offset + 37] for a in theirs), **RATES, clip=0.5, share=0.2)
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    outside = np.r_[0:offset, offset + 37:64]
    np.testing.assert_array_equal(ours[:, outside], start[:, outside])


def test_what_the_kernel_does_not_know_goes_to_the_definition():
    arrays = np.ones((4, 8))
    assert adamw_update(*arrays, **RATES) is NotImplemented
    assert adamw_update(*arrays.astype(np.float32)[:, ::2], **RATES) is NotImplemented
