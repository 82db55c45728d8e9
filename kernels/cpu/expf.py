"""exp, and the logistic function of it, for float32: as code that vectorises.

The C library's exp takes one number at a time, and a loop that calls it cannot use vector
registers.  These functions are a few multiplications and additions without a branch: where a kernel
calls them in a loop, the compiler works on 4, 8 or 16 numbers at once.
"""
import numpy as np
from numba import types
from numba.extending import intrinsic

from tinydiff.kernels.cpu.jit import inlined

LOWEST = np.float32(-88.0)              # e^LOWEST < 2^-126.5 becomes 0,
HIGHEST = np.float32(89.0)              # e^HIGHEST > 2^127.5 infinity
LOG2_E = np.float32(1.4426950408889634)
LN2_HIGH = np.float32(0.69314718)       # ln 2 = LN2_HIGH + LN2_LOW to 48 bits
LN2_LOW = np.float32(-1.9046542e-9)
TO_BITS = np.float32(1.5 * 2**23 + 127)     # float32 numbers of this size are integers
ONE = np.float32(1.0)

# (e^r - 1 - r) / r^2 for |r| <= ln(2) / 2; largest error in e^r 3.1e-9, a 20th of a rounding.
C2, C3, C4, C5, C6 = (np.float32(c) for c in (
    0.4999999403953552, 0.1666652113199234, 0.04166838899254799, 0.008368716575205326,
    0.001381459878757596))


@intrinsic
def multiply_add(_, a, b, c):
    """Return ``a * b + c``, rounded once; the compiler does not reorder it."""
    def emit(context, builder, signature, args):
        return builder.fma(*args)
    return types.float32(types.float32, types.float32, types.float32), emit


@inlined
def exp(x):
    """Return e^x for a float32 `x`, within 1.01 units in the last place.

    Notes
    -----
    With n the integer nearest to ``x / ln 2``::

        e^x = 2^n e^r,    r = x - n ln 2,    |r| <= ln(2) / 2 = 0.347

    1. *n.*  Adding 1.5 * 2^23 + 127 to ``x / ln 2`` leaves no room for a fraction: the sum is
       rounded to an integer, and its low bits are n + 127.
    2. *r.*  ln 2 is subtracted in two parts.  ``n LN2_HIGH`` and x are multiples of 2^-25 and their
       difference is at most 0.35 (for |x| < 0.35, n = 0), so the first step is exact; the second
       rounds r by at most 2^-26.
    3. *e^r* is a polynomial of degree 6, summed from the smallest term: ``1 + (r + r^2 q(r))``.
       The term in brackets is at most 0.42, its errors small against the last rounding.
    4. *2^n* is the float32 number whose exponent bits, from bit 23 up, are n + 127.  So the 127 is
       part of the number added in step 1, and a shift moves the sum to its place.

    The exponent bits 0 and 255 mean zero and infinity: both ends of the range need no test.  What
    is below 2^-126.5 becomes 0, what is above 2^127.5 infinity, and NaN stays NaN.
    """
    inside = LOWEST if x < LOWEST else x                              # NaN passes
    inside = HIGHEST if inside > HIGHEST else inside
    shifted = np.float32(multiply_add(inside, LOG2_E, TO_BITS))
    n = shifted - TO_BITS
    r = multiply_add(n, -LN2_HIGH, inside)
    r = multiply_add(n, -LN2_LOW, r)

    q = multiply_add(C6, r, C5)
    q = multiply_add(q, r, C4)
    q = multiply_add(q, r, C3)
    q = multiply_add(q, r, C2)
    e_r = ONE + multiply_add(r * r, q, r)
    power = np.int32(shifted.view(np.int32) << 23)
    return e_r * power.view(np.float32)


@inlined
def sigmoid(x):
    """Return ``1 / (1 + e^-x)``; an overflow of e^-x gives the limit, 0."""
    return ONE / (ONE + exp(-x))


@inlined
def gate_slope(x, z, dz):
    """Return the derivative of ``x s``, s = sigmoid(z), where z(x) has the slope dz.

    Notes
    -----
    It is ``s + x dz s (1 - s)``.  At z = 10 the subtraction leaves ten binary digits of 1 - s, and
    over a group whose u are all large such errors add up.  With ``t = e^-|z|`` nothing cancels, on
    either side of 0, and nothing overflows: ``s (1 - s) = t / (1 + t)^2``, and s is ``1 / (1 + t)``
    or t times that.
    """
    t = exp(-abs(z))
    larger = ONE / (ONE + t)
    s = larger if z > 0 else t * larger
    return s + x * dz * t * larger * larger


@inlined
def silu_slope(x):
    """Return the derivative of ``x sigmoid(x)``."""
    return gate_slope(x, x, ONE)
