"""How exact a fast kernel must be: its rounding errors are compared with the reference's own."""
import numpy as np


def assert_as_accurate_as(got, reference32, reference64, factor=2.0):
    """Our float32 error is at most `factor` times the reference's own float32 error, plus a floor.

    T. Dao et al. test FlashAttention by this rule.  It scales with the problem, so one line serves
    a 3x3 and a 1024x1024 input and no tolerance is tuned.
    """
    assert got.shape == reference64.shape
    assert got.dtype == np.float32
    floor = np.finfo(np.float32).eps * np.abs(reference64).max()
    ours = np.abs(got - reference64).max()
    theirs = np.abs(reference32 - reference64).max()
    assert ours <= factor * theirs + floor, f"error {ours:.1e}, the reference's own {theirs:.1e}"
