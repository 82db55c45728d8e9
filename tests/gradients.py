"""Checks that a hand-written backward pass is the derivative of its forward pass."""
import numpy as np


def numerical_vjp(f, x, dy, h=1e-6):
    """Central-difference estimate of (df/dx)^T dy, one entry of `x` at a time."""
    dx = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        x_i = x[i]
        x[i] = x_i + h
        f_plus = f()
        x[i] = x_i - h
        f_minus = f()
        x[i] = x_i
        dx[i] = np.vdot(dy, f_plus - f_minus) / (2 * h)
    return dx


def assert_grad(f, wrt, dy, rtol=1e-6, **got):
    """Assert that each gradient in `got` matches central differences of `f`.

    Parameters
    ----------
    f : callable
        ``f() -> ndarray``; reads the arrays in `wrt`, which are nudged in place.
    wrt : dict of str to float64 ndarray
        The arrays to differentiate with respect to.
    dy : ndarray, the shape of ``f()``
        A random cotangent.  All ones would hide mistakes: through a normalisation layer it pulls
        back to zero.
    rtol : float
        Tolerance, relative to the largest gradient in this check.  (Relative to each gradient by
        itself fails where the true gradient is zero, such as a bias before a normalisation.)
    **got : ndarray
        The gradients under test, named as in `wrt`.
    """
    assert got.keys() == wrt.keys(), f"not checked: {wrt.keys() ^ got.keys()}"
    for name, x in wrt.items():
        assert x.dtype == np.float64, f"{name}: finite differences need float64"
        assert got[name].shape == x.shape, f"d{name} has shape {got[name].shape}, not {x.shape}"
    want = {name: numerical_vjp(f, x, dy) for name, x in wrt.items()}
    scale = max(np.abs(dx).max() for dx in want.values())
    for name in wrt:
        error = np.abs(got[name] - want[name]).max() / scale
        assert error < rtol, f"d{name}: relative error {error:.1e} (tolerance {rtol:.0e})"


def assert_adjoint(forward, backward, x, y, rtol=1e-12):
    """Assert <A x, y> = <x, A^T y>: exact, for any linear op, at any size."""
    left, right = np.vdot(forward(x), y), np.vdot(x, backward(y))
    scale = np.linalg.norm(x) * np.linalg.norm(backward(y))           # the sums may cancel
    assert abs(left - right) <= rtol * scale, (left, right)


def assert_direction(f, wrt, dy, rng, rtol=1e-6, h=1e-6, **got):
    """Assert that the gradients in `got` are right along one random direction.

    For whole models: two evaluations, whatever the number of entries.  With a random direction r_i
    for each array x_i of `wrt`::

        <dy, (f(x + h r) - f(x - h r)) / 2h>  ==  sum_i <dx_i, r_i>

    Arguments are those of `assert_grad`, and `rng` draws the directions.  The tolerance is relative
    to the norm of the products summed: the sum itself may be near zero by chance.
    """
    assert got.keys() == wrt.keys(), f"not checked: {wrt.keys() ^ got.keys()}"
    start = {name: x.copy() for name, x in wrt.items()}
    r = {name: rng.normal(size=x.shape) for name, x in wrt.items()}
    values = []
    for sign in (+1, -1):
        for name, x in wrt.items():
            assert x.dtype == np.float64, f"{name}: finite differences need float64"
            x[...] = start[name] + sign * h * r[name]
        values.append(f())
    for name, x in wrt.items():
        x[...] = start[name]

    numerical = np.vdot(dy, values[0] - values[1]) / (2 * h)
    analytical = sum(np.vdot(got[name], r[name]) for name in wrt)
    scale = np.sqrt(sum(np.sum(np.square(got[name] * r[name])) for name in wrt))
    error = abs(numerical - analytical) / scale
    assert error < rtol, f"relative error {error:.1e} (tolerance {rtol:.0e})"
