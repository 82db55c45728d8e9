"""exp for kernels: exact to about one rounding, calm at both ends of the range."""
import numpy as np
import pytest

pytest.importorskip("numba")
expf = pytest.importorskip("tinydiff.kernels.cpu.expf")
jit = pytest.importorskip("tinydiff.kernels.cpu.jit")


@jit.serial
def exp_of(x, y):
    for i in range(x.size):
        y[i] = expf.exp(x[i])


@jit.serial
def sigmoid_of(x, y):
    for i in range(x.size):
        y[i] = expf.sigmoid(x[i])


@jit.serial
def slope_of(x, y):
    for i in range(x.size):
        y[i] = expf.silu_slope(x[i])


def call(function, x):
    y = np.empty_like(x)
    function(x, y)
    return y


def roundings(got, want):
    """Give the largest error in units of the last place of float32."""
    return (np.abs(got - want) / np.spacing(want.astype(np.float32))).max()


def test_exp_is_right_to_one_rounding_over_its_whole_range():
    x = np.linspace(-87.3, 88.3, 1_000_003, dtype=np.float32)
    assert roundings(call(exp_of, x), np.exp(x.astype(float))) < 1.02


def test_exp_is_right_around_zero():
    tiny = np.geomspace(1e-30, 0.5, 10_001, dtype=np.float32)
    for x in (tiny, -tiny):
        assert roundings(call(exp_of, x), np.exp(x.astype(float))) < 1.02


@pytest.mark.parametrize("size", [1, 37])              # a single number; vectors and a remainder
@pytest.mark.parametrize(("x", "want"), [
    (0.0, 1.0), (-0.0, 1.0), (-np.inf, 0.0), (np.inf, np.inf), (-1e30, 0.0), (1e30, np.inf),
    (-88.0, 0.0), (89.0, np.inf), (-104.0, 0.0), (np.nan, np.nan)])
def test_exp_beyond_its_range(x, want, size):
    y = call(exp_of, np.full(size, x, np.float32))
    np.testing.assert_array_equal(y, np.full(size, want, np.float32))


def test_every_nan_stays_nan():
    x = np.array([0x7FC00000, 0xFFC00000, 0x7F800001, 0x7FFFFFFF, 0x7FC000FF], np.uint32)
    assert np.isnan(call(exp_of, x.view(np.float32))).all()


def test_exp_never_falls():
    x = np.linspace(-1.0, 1.0, 100_001, dtype=np.float32)
    assert (np.diff(call(exp_of, x)) >= -np.finfo(np.float32).eps).all()


@pytest.mark.parametrize("function", [exp_of, sigmoid_of])
def test_the_bits_do_not_depend_on_the_place_in_the_array(function):
    x = np.random.default_rng(0).normal(size=300).astype(np.float32) * 10
    whole = call(function, x)
    for start in range(1, 40):
        np.testing.assert_array_equal(call(function, x[start:start + 57].copy()),
                                      whole[start:start + 57])


def test_sigmoid_is_its_definition():
    x = np.linspace(-80, 80, 100_001, dtype=np.float32)
    assert roundings(call(sigmoid_of, x), 1 / (1 + np.exp(-x.astype(float)))) < 3


def test_the_slope_of_silu_is_right_on_both_sides():
    x = np.linspace(-80, 80, 100_001, dtype=np.float32)
    exact = x.astype(float)
    s, rest = 1 / (1 + np.exp(-exact)), 1 / (1 + np.exp(exact))
    error = call(slope_of, x) - (s + exact * s * rest)
    assert np.abs(error / (s + np.abs(exact * s * rest))).max() < 4 * np.finfo(np.float32).eps


@pytest.mark.parametrize(("x", "want"), [
    (-np.inf, 0.0), (np.inf, 1.0), (-1e30, 0.0), (1e30, 1.0), (0.0, 0.5), (np.nan, np.nan)])
def test_sigmoid_at_the_extremes(x, want):
    y = call(sigmoid_of, np.full(19, x, np.float32))
    np.testing.assert_array_equal(y, np.full(19, want, np.float32))
