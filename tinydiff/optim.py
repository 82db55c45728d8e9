"""AdamW, its learning-rate schedule, and gradient clipping.

I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", 2017,
arXiv:1711.05101, Algorithm 2.
"""
from itertools import groupby
from math import cos, pi, sqrt

import numpy as np

from tinydiff.backends.device import follow, on_host
from tinydiff.backends.table import replaceable
from tinydiff.ema import move_average
from tinydiff.nn.flat import FlatParameters

DOT = 8192      # numbers in one scalar product: too few for BLAS to cut among however many threads


@replaceable
def adamw_update(value, grad, m, v, average=None, *, k, lr, betas, eps, weight_decay,
                 clip=1.0, share=0.0):
    """Update `value`, its two moments and, if there is one, its average, all in place.

    Parameters
    ----------
    value, grad, m, v : (n,) ndarray
        Any numbers that are treated alike, their gradient, and its running mean and square.
    average : (n,) ndarray, optional
        The moving average of `value`.
    k : int
        The number of this update, counted from 1.
    lr, betas, eps, weight_decay : float
        See `AdamW`.
    clip : float, default 1
        The gradient is multiplied by it; see `clip_factor`.
    share : float, default 0
        How far the average moves; see `tinydiff.ema.EMA`.

    Notes
    -----
    With ``g = clip * grad``::

        m = beta1 m + (1 - beta1) g            m_hat = m / (1 - beta1^k)
        v = beta2 v + (1 - beta2) g^2          v_hat = v / (1 - beta2^k)
        value = value - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay value)
        average = average + share (value - average)
    """
    beta1, beta2 = betas
    m_correction, v_correction = 1 - beta1**k, 1 - beta2**k
    g = clip * grad
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    update = m / (np.sqrt(v) * sqrt(1 / v_correction) + eps)
    update *= lr / m_correction
    if weight_decay:
        update += lr * weight_decay * value
    value -= update
    if average is not None:
        move_average(average, value, share)


class AdamW:
    """Adam with decoupled weight decay, updating every parameter in place.

    Parameters
    ----------
    parameters : iterable of (str, Parameter)
        As `Module.parameters` yields them; frozen ones are left alone.  The others' values become
        views of one array, and so do the gradients they accumulate: an update is one pass over
        it.  A replica is made afterwards, to share the values.
    betas : (float, float), default (0.9, 0.99)
        Decay of the running mean of the gradient, and of its square.
    eps : float, default 1e-8
        Added to the root of the running square.
    weight_decay : float, default 0.01
        Applied to matrices and convolutions; scales, shifts and biases are spared.
    ema : EMA, optional
        An average of the same model, which moves in the same pass.

    Attributes
    ----------
    steps : int
        Updates made so far.
    m, v : dict of str to ndarray
        The running mean of the gradient and of its square, by parameter name.

    Notes
    -----
    The update is `adamw_update`.  Algorithm 2 multiplies the decay by the schedule's factor eta_t
    alone; here it is multiplied by the whole `lr`, as in PyTorch, so a `weight_decay` of 0.01
    means the same in both.
    """

    def __init__(self, parameters, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01, ema=None):
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.ema = ema
        self.steps = 0
        self.flat = FlatParameters(parameters)
        assert ema is None or ema.flat.parameters.keys() == self.flat.parameters.keys()
        self._grad, self._m, self._v = (np.zeros_like(self.flat.values) for _ in range(3))
        self.m, self.v = self.flat.views(self._m), self.flat.views(self._v)
        for name, grad_out in self.flat.views(self._grad).items():
            self.flat.parameters[name].grad_out = grad_out

    def grad_norm(self):
        """Return the Euclidean norm of all gradients together."""
        length = DOT if on_host(self._grad) else self._grad.size   # a device does it at once
        blocks = [self._grad[start:min(start + length, run.stop)]
                  for run, has_grad, _ in self._runs() if has_grad
                  for start in range(run.start, run.stop, length)]
        return sqrt(sum(float(np.vdot(block, block)) for block in blocks))

    def step(self, lr, clip=1.0):
        """Update every parameter that has a gradient, with learning rate `lr`.

        Parameters
        ----------
        lr : float
        clip : float, default 1
            What all gradients are multiplied by; see `clip_factor`.

        Raises
        ------
        RuntimeError
            If a parameter's value is no longer the array that is updated here.
        """
        self.steps += 1
        share = self.ema.share(self.steps) if self.ema else 0.0
        for run, has_grad, is_matrix in self._runs():
            value = self.flat.values[run]
            average = self.ema.flat.values[run] if self.ema else None
            if has_grad:
                adamw_update(value, self._grad[run], self._m[run], self._v[run], average,
                             k=self.steps, lr=lr, betas=self.betas, eps=self.eps,
                             weight_decay=self.weight_decay if is_matrix else 0.0,
                             clip=clip, share=share)
            elif average is not None:
                move_average(average, value, share)

    def _runs(self):
        """Yield ``(slice, has a gradient, is a matrix)`` of neighbours that are treated alike.

        There are two where every parameter has a gradient.  One that was not accumulated but
        assigned is copied to its place here.
        """
        for flat in [self.flat, self.ema.flat] if self.ema else [self.flat]:
            flat.check()
        stop = 0
        for (has_grad, is_matrix), run in groupby(
                self.flat.parameters.values(),
                key=lambda p: (p.grad is not None, p.value.ndim > 1)):
            start = stop
            for p in run:
                stop += p.value.size
                if has_grad and p.grad is not p.grad_out:
                    p.grad_out[...] = p.grad
                    p.grad = p.grad_out
            yield slice(start, stop), has_grad, is_matrix

    def state(self):
        """Return ``{"m.NAME": array, "v.NAME": array}`` for a checkpoint."""
        return {f"{kind}.{name}": array for kind, arrays in (("m", self.m), ("v", self.v))
                for name, array in arrays.items()}

    def load_state(self, state, steps):
        """Go on from what `state` returned after `steps` updates.

        Raises
        ------
        ValueError
            If a tensor is missing or extra, or has another shape.
        """
        own = self.state()
        if own.keys() != state.keys():
            name = sorted(own.keys() ^ state.keys())[0]
            raise ValueError(f"optimiser state does not fit the model: {name}")
        for name, array in own.items():
            if array.shape != state[name].shape:
                raise ValueError(f"optimiser state {name} has shape {state[name].shape}, "
                                 f"expected {array.shape}")
            array[...] = follow(state[name], array)
        self.steps = steps


def warm_up_cosine(step, steps, lr, warm_up=100, lr_end=0.0):
    """Learning rate of update `step`: a linear rise, then half a cosine down.

    Parameters
    ----------
    step, steps : int
        This update, counted from 0, and the number of all.
    lr, lr_end : float
        The peak, and the value after the last update.
    warm_up : int
        Updates until the peak.

    Returns
    -------
    float

    Examples
    --------
    >>> [round(warm_up_cosine(k, 100, 1.0, warm_up=10), 3) for k in (0, 9, 55, 99)]
    [0.1, 1.0, 0.5, 0.0]
    """
    if step < warm_up:
        return lr * (step + 1) / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return lr_end + (lr - lr_end) * 0.5 * (1 + cos(pi * progress))


def clip_factor(norm, max_norm):
    """Return what gradients are multiplied by, so that their joint norm is at most `max_norm`.

    Parameters
    ----------
    norm : float
        Their joint norm as it is, see `AdamW.grad_norm`.
    max_norm : float

    Returns
    -------
    float
        At most 1.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent
       neural networks", 2012, arXiv:1211.5063, Algorithm 1.

    Examples
    --------
    >>> clip_factor(8.0, 2.0), clip_factor(1.0, 2.0)
    (0.25, 1.0)
    """
    return max_norm / norm if norm > max_norm else 1.0
