"""AdamW, its learning-rate schedule, and gradient clipping.

I. Loshchilov and F. Hutter, "Decoupled Weight Decay Regularization", 2017,
arXiv:1711.05101, Algorithm 2.
"""
from math import cos, pi, sqrt

import numpy as np


class AdamW:
    """Adam with decoupled weight decay, updating every parameter in place.

    Parameters
    ----------
    parameters : iterable of (str, Parameter)
        As `Module.parameters` yields them; frozen ones are left alone.
    betas : (float, float), default (0.9, 0.99)
        Decay of the running mean of the gradient, and of its square.
    eps : float, default 1e-8
        Added to the root of the running square.
    weight_decay : float, default 0.01
        Applied to matrices and convolutions; scales, shifts and biases are spared.

    Attributes
    ----------
    steps : int
        Updates made so far.
    m, v : dict of str to ndarray
        The running mean of the gradient and of its square, by parameter name.

    Notes
    -----
    With g the gradient and k the number of this update::

        m = beta1 m + (1 - beta1) g            m_hat = m / (1 - beta1^k)
        v = beta2 v + (1 - beta2) g^2          v_hat = v / (1 - beta2^k)
        value = value - lr (m_hat / (sqrt(v_hat) + eps) + weight_decay value)

    Algorithm 2 multiplies the decay by the schedule's factor eta_t alone; here it is multiplied by
    the whole `lr`, as in PyTorch, so a `weight_decay` of 0.01 means the same in both.
    """

    def __init__(self, parameters, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.01):
        self.parameters = [(name, p) for name, p in parameters if not p.frozen]
        self.betas = betas
        self.eps = eps
        self.weight_decay = weight_decay
        self.steps = 0
        self.m = {name: np.zeros_like(p.value) for name, p in self.parameters}
        self.v = {name: np.zeros_like(p.value) for name, p in self.parameters}

    def step(self, lr):
        """Update every parameter that has a gradient, with learning rate `lr`."""
        self.steps += 1
        beta1, beta2 = self.betas
        m_correction = 1 - beta1**self.steps
        v_correction = 1 - beta2**self.steps
        for name, p in self.parameters:
            if p.grad is None:
                continue
            m, v, g = self.m[name], self.v[name], p.grad
            m += (1 - beta1) * (g - m)
            v += (1 - beta2) * (g * g - v)
            update = m / (np.sqrt(v) * sqrt(1 / v_correction) + self.eps)
            update *= lr / m_correction
            if p.value.ndim > 1:
                update += lr * self.weight_decay * p.value
            p.value -= update

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
            array[...] = state[name]
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


def clip_grad_norm(parameters, max_norm):
    """Scale all gradients down together, so that their joint norm is at most `max_norm`.

    Parameters
    ----------
    parameters : iterable of (str, Parameter)
    max_norm : float

    Returns
    -------
    float
        The joint Euclidean norm before clipping.

    References
    ----------
    .. [1] R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent
       neural networks", 2012, arXiv:1211.5063, Algorithm 1.
    """
    with_grad = [p for _, p in parameters if p.grad is not None]
    norm = sqrt(sum(float(np.vdot(p.grad, p.grad)) for p in with_grad))
    if norm > max_norm:
        for p in with_grad:
            p.grad = p.grad * (max_norm / norm)
    return norm
