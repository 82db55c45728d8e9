"""Dynamic loss scaling: what keeps small gradients alive where products are in float16.

P. Micikevicius et al., "Mixed Precision Training", 2017, arXiv:1710.03740, Sec. 3.2.

float16 knows nothing smaller than 6e-8, and many a gradient is.  The loss is therefore multiplied
by a large number, and with it every gradient on the way back; the optimiser divides by it again.
The number is as large as it can be: it halves when a gradient overflows, and that update is
skipped; it doubles after many updates without one.
"""
from math import isfinite

GROWTH, BACKOFF, INTERVAL = 2.0, 0.5, 2000
SMALLEST = 2.0**-14                     # where no gradient of a sound network overflows


class LossScale:
    """The number that the loss is multiplied by.

    Parameters
    ----------
    value : float, default 2**16
        Where it starts; a power of two, so that scaling rounds nothing.
    interval : int, default 2000
        Sound updates after which it doubles.

    Attributes
    ----------
    value : float
    sound : int
        Updates since it last changed.

    Examples
    --------
    >>> scale = LossScale(1024.0, interval=2)
    >>> [scale.update(norm) for norm in (3.0, float("inf"), 3.0, 3.0)], scale.value
    ([True, False, True, True], 1024.0)
    """

    def __init__(self, value=2.0**16, interval=INTERVAL):
        self.value = value
        self.interval = interval
        self.sound = 0

    def update(self, grad_norm):
        """Look at the norm of the scaled gradients; return whether they may be used.

        Raises
        ------
        FloatingPointError
            If they overflow at any scale: then it is not the scale.
        """
        if not isfinite(grad_norm):
            self.value *= BACKOFF
            self.sound = 0
            if self.value < SMALLEST:
                raise FloatingPointError(
                    "gradients overflow at every loss scale: lower lr, look at the data, or "
                    "train with --precision float32")
            return False
        self.sound += 1
        if self.sound == self.interval:
            self.value *= GROWTH
            self.sound = 0
        return True

    def state(self):
        """Return its two numbers, for a checkpoint."""
        return [self.value, float(self.sound)]

    def load_state(self, state):
        """Go on from what `state` returned."""
        self.value, self.sound = float(state[0]), int(state[1])
