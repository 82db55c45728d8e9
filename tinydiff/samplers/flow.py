"""Flow matching: Euler and Heun on the straight line between noise and data.

Y. Lipman et al., "Flow Matching for Generative Modeling", 2022, arXiv:2210.02747;
X. Liu et al., "Flow Straight and Fast", 2022, arXiv:2209.03003.

With x = (1 - sigma) x0 + sigma eps, as `tinydiff.schedules.Flow` has it, the velocity along the
line is dx / dsigma = eps - x0, and the prediction of it is followed from sigma = 1 to 0::

    v_hat = eps_hat - x0_hat
    x_s   = x_t + (sigma_s - sigma_t) v_hat

(The papers' time runs the other way, from noise at 0 to data at 1.)
"""
from itertools import pairwise

from tinydiff.diffusion import Step, check_levels


def flow_step(x_t, v_hat, t, s):
    """Follow the velocity from level `t` to level `s`.

    Examples
    --------
    >>> from tinydiff.diffusion import CLEAN, Level
    >>> flow_step(0.5, 2.0, Level(250.0, 0.75, 0.25), CLEAN)
    0.0
    """
    return x_t + (s.noise - t.noise) * v_hat


def flow_sample(denoise, x_T, levels, *, noise=None, order=1):
    """Yield every step from noise to a sample: Euler (order 1) or Heun (order 2).

    Parameters
    ----------
    denoise : callable
        ``denoise(x_t, t)`` returns ``(x0_hat, eps_hat)``; Heun asks it twice a step, once for
        the last.
    x_T : ndarray
    levels : sequence of Level
        On the straight line: signal + noise = 1.
    noise : callable, optional
        Not used: the method is deterministic.
    order : {1, 2}, default 1

    Yields
    ------
    step : Step

    Raises
    ------
    ValueError
        If `order` is neither of the two, or a level lies off the line.
    """
    check_levels(levels)
    if order not in (1, 2):
        raise ValueError(f"flow has the orders 1 (Euler) and 2 (Heun), not {order!r}")
    off = [t for t in levels if abs(t.signal + t.noise - 1) > 1e-6]
    if off:
        raise ValueError(f"flow walks the straight line, signal + noise = 1, and {off[0]} is off "
                         "it: use ddim, which is this method on any schedule")
    x_t = x_T
    for t, s in pairwise(levels):
        x0_hat, eps_hat = denoise(x_t, t)
        v_hat = eps_hat - x0_hat
        x_s = flow_step(x_t, v_hat, t, s)
        if order == 2 and s.noise > 0:
            x0_next, eps_next = denoise(x_s, s)
            x_s = flow_step(x_t, (v_hat + eps_next - x0_next) / 2, t, s)
        yield Step(t, s, x_t, x0_hat, eps_hat, x_s)
        x_t = x_s
