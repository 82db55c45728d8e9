"""UniPC: a predictor of any order, and a corrector that costs no further call of the network.

W. Zhao et al., "UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion
Models", 2023, arXiv:2302.04867.

The predictor UniP-p goes from t to s by the values of x0_hat at the last p levels.  Once the
network has been asked at s, the corrector UniC-p does the same step over again with that value
too, and is of order p + 1; the network is not asked again at the corrected sample.

With hh = -h, and r_m the other levels' shares of the step, both are (Eq. 3 and Eq. 8, for x0_hat)::

    x_s = (sigma_s / sigma_t) x_t - alpha_s (e^hh - 1) D0  -  alpha_s B  sum_m a_m (x0_m - D0) / r_m

where a solves  sum_m r_m^(n-1) a_m = n! phi_(n+1)(hh) hh / B  for n = 1, 2, ...: the Taylor terms
of x0_hat are integrated exactly up to the order.

=====================  ==================================================
here                   in the paper
=====================  ==================================================
``t``, ``s``           t_{i-1}, t_i
``.signal, .noise``    alpha, sigma
``h``                  h_i = lambda_i - lambda_{i-1}
``B``                  B(h): hh ("bh1") or e^hh - 1 ("bh2")
``r``, ``a``           r_m, a_m
=====================  ==================================================
"""
from itertools import pairwise
from math import expm1, factorial, inf

import numpy as np

from tinydiff.diffusion import Step, check_levels

SCALES = ("bh1", "bh2")


def unipc_step(x_t, t, s, D0, others=(), scale="bh2"):
    """Go from level `t` to level `s`: predictor or corrector, by which levels `others` holds.

    Parameters
    ----------
    x_t : ndarray
    t, s : Level
        ``s.noise < t.noise``.
    D0 : ndarray
        x0_hat at `t`.
    others : sequence of (Level, x0_hat)
        Further values: of earlier levels, and for the corrector that of `s`, last.
    scale : {"bh1", "bh2"}
        B(h); it matters only where one value is left to be weighed (below).

    Returns
    -------
    x_s : ndarray

    Notes
    -----
    With a single further value the published weight is 1/2, exact as h goes to 0: that, and not the
    equation's own solution, is what B(h) is for.

    References
    ----------
    .. [1] arXiv:2302.04867, Algorithms 1 and 2, Theorem 3.1.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> unipc_step(1.0, Level(1.0, 0.6, 0.8), CLEAN, 0.25)
    0.25
    """
    h = s.lam - t.lam
    x_s = s.noise / t.noise * x_t - s.signal * expm1(-h) * D0
    if h == inf or not others:
        return x_s
    r = np.array([(u.lam - t.lam) / h for u, _ in others])
    B = -h if scale == "bh1" else expm1(-h)
    weights = _weights(r, -h, B)
    for a, r_m, (_, value) in zip(weights, r.tolist(), others, strict=True):
        x_s = x_s - s.signal * B * a / r_m * (value - D0)
    return x_s


def _weights(r, hh, B):
    """Solve for the a_m, as Python floats."""
    if len(r) == 1:
        return [0.5]
    right, phi = [], expm1(hh) / hh - 1
    for n in range(1, len(r) + 1):
        right.append(phi * factorial(n) / B)
        phi = phi / hh - 1 / factorial(n + 1)
    return np.linalg.solve(np.vander(r, increasing=True).T, right).tolist()


def unipc_sample(denoise, x_T, levels, *, noise=None, order=2, scale="bh2", correct=True,
                 lower_order_final=True, history=()):
    """Yield every step from noise to a sample: UniPC-p.

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``.
    x_T : ndarray
    levels : sequence of Level
    noise : callable, optional
        Not used: the method is deterministic.
    order : {1, 2, 3}, default 2
        p of the predictor; the corrector makes the method one order higher.  Reached as soon as
        there are so many values.
    scale : {"bh1", "bh2"}
        The paper's B(h); it advises "bh1" for unguided and "bh2" for guided sampling.
    correct : bool, default True
        False is the predictor alone, UniP-p.
    lower_order_final : bool, default True
        Lower the order over the last steps, as published.
    history : sequence of (Level, x0_hat), optional
        Values from before the first level, the newest first, to start at full order.

    Yields
    ------
    step : Step
        `x_t` and `x_s` are the predicted samples; the corrected one is where a step starts.

    Raises
    ------
    ValueError
        If `order` or `scale` is unknown.
    """
    check_levels(levels)
    if order not in (1, 2, 3):
        raise ValueError(f"unipc has the orders 1, 2 and 3, not {order!r}")
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}")
    nodes, x_t, steps = list(history), x_T, len(levels) - 1
    before, used = None, order           # the corrected sample one level up, and its step's order
    for k, (t, s) in enumerate(pairwise(levels)):
        x0_hat, eps_hat = denoise(x_t, t)
        x = x_t
        if correct and before is not None:
            (u, D0), *older = nodes[:used]
            x = unipc_step(before, u, t, D0, [*_finite(older), (t, x0_hat)], scale)
        nodes = [(t, x0_hat), *nodes][:order]
        used = min(order, steps - k) if lower_order_final else order
        x_s = unipc_step(x, t, s, x0_hat, _finite(nodes[1:used]), scale)
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        before, x_t = x if t.lam > -inf else None, x_s


def _finite(nodes):
    """Leave out values at pure noise: infinitely far away, they say nothing."""
    return [(u, value) for u, value in nodes if u.lam > -inf]
