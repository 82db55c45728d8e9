"""The one place where a network meets a schedule: ``denoise(x_t, t) -> (x0_hat, eps_hat)``."""
from math import isfinite

import numpy as np

from tinydiff.backends.device import follow
from tinydiff.backends.graph import Recorded
from tinydiff.guidance import (
    by_gradient,
    classifier_free,
    dynamic_threshold,
    rescaled,
    weight_within,
)
from tinydiff.targets import to_x0_eps


class Denoiser:
    """What samplers call: it asks the network, and splits `x_t` by the answer.

    Parameters
    ----------
    predict : callable
        ``predict(x_t, timestep) -> prediction``, arrays of one shape; see `guided`.
    kind : {"epsilon", "sample", "v_prediction", "flow_prediction"}
        What the network predicts.
    clip : float, optional
        Keep x0_hat within +-clip (1 for pixels in [-1, 1]); the noise is then
        what remains of `x_t`, so the two parts still add up to it.
    threshold : (float, float), optional
        Squeeze x0_hat instead: `ratio` and `largest` of `tinydiff.guidance.dynamic_threshold`.
    push : callable, optional
        ``push(x_t, t, x0_hat)`` returns the gradient in `x_t` of what is to rise, the shape of
        `x_t`: of log p(y | x_t), for a classifier's guidance, times its weight; see
        `tinydiff.guidance.by_gradient`.  Not asked at pure noise, which says nothing of y.
    timestep : callable, default `network_timestep`
        Translates a Level to what the network is told; see `timestep_of`.

    Notes
    -----
    A DDPM table's row t, counted 1..T, is the published network's timestep t - 1; flow matching's
    network is told T sigma.  That translation stands in this file and nowhere else.
    """

    def __init__(self, predict, kind, clip=None, threshold=None, push=None, timestep=None):
        self.predict = predict
        self.kind = kind
        self.clip = clip
        self.threshold = threshold
        self.push = push
        self.timestep = timestep or network_timestep

    def __call__(self, x_t, t):
        """Return ``(x0_hat, eps_hat)`` for the pictures `x_t` (B, C, H, W) at level `t`."""
        prediction = self.predict(x_t, self.timestep(t))
        x0_hat, eps_hat = to_x0_eps(prediction, x_t, t, self.kind)
        if self.push is not None and t.signal > 0:
            x0_hat, eps_hat = by_gradient(x0_hat, eps_hat, self.push(x_t, t, x0_hat), t)
        if self.threshold is None and self.clip is None:
            return x0_hat, eps_hat
        if self.threshold is not None:
            x0_hat = dynamic_threshold(x0_hat, *self.threshold)
        else:
            x0_hat = np.clip(x0_hat, -self.clip, self.clip)
        return x0_hat, (x_t - t.signal * x0_hat) / t.noise if t.noise > 0 else eps_hat


def network_timestep(t):
    """Translate a Level of a DDPM table, t in (0, T] or a batch of them, to the timestep."""
    return t.t - 1


def flow_timestep(t):
    """Translate a Level of flow matching's straight line to what its network is told: T sigma."""
    return t.t


def timestep_of(schedule):
    """Return the translation for a schedule: `network_timestep` of a table, or `flow_timestep`."""
    return network_timestep if hasattr(schedule, "alpha_bar") else flow_timestep


def timesteps_within(schedule, interval):
    """Return the first and last of the network's timesteps whose sigma lies in an interval.

    Parameters
    ----------
    schedule : Schedule
    interval : (float, float)
        Of sigma = noise / signal; see `tinydiff.guidance.weight_within`.
    """
    timestep, levels = timestep_of(schedule), map(schedule.level, range(1, schedule.T + 1))
    inside = [timestep(t) for t in levels if weight_within(0.0, t, interval) == 0.0]
    return (inside[0], inside[-1]) if inside else (schedule.T + 1, schedule.T + 1)


def guided(network, told, told_null, w, rescale=0.0, within=None):
    """Wrap a network as ``predict(x_t, timestep)`` under classifier-free guidance.

    Parameters
    ----------
    network : UNet, or what calls another network
        ``network.forward(x_t, timestep, *told)``.
    told, told_null : tuple of ndarray
        What it is told of each picture that is wanted, and of no picture in particular, B rows
        each: the tokens and the pooled text of the prompts and of the empty prompt, or numbers of
        classes.
    w : float
        0 ignores what it is told, 1 follows it, more exaggerates it.  Where one of the two
        predictions has no weight (w = 0 or 1) it is not computed.
    rescale : float, default 0
        See `tinydiff.guidance.rescaled`.
    within : (float, float), optional
        Timesteps between which `w` counts; outside w = 1.
    """
    if not isfinite(w):
        raise ValueError(f"guidance weight {w}: a finite number is needed (1 is no guidance)")
    if w in (0, 1):
        only = told if w == 1 else told_null
        return lambda x_t, timestep: network.forward(x_t, timestep, *only)
    both = [np.concatenate(pair) for pair in zip(told_null, told, strict=True)]        # (2B, ...)

    def predict(x_t, timestep):
        if within is not None and not within[0] <= timestep <= within[1]:
            return network.forward(x_t, timestep, *told)
        prediction = network.forward(np.concatenate([x_t, x_t]), timestep, *both)
        B = x_t.shape[0]
        guided = classifier_free(prediction[:B], prediction[B:], w)
        return rescaled(guided, prediction[B:], rescale) if rescale else guided
    return predict


class RecordedNetwork:
    """A network whose forward pass is one CUDA graph, where its arrays are on a device.

    It is recorded at the first picture, and again for pictures of another number or size.  The
    timestep travels as an array, since a graph repeats every plain number.
    """

    def __init__(self, network):
        self.run = Recorded(network.forward)

    def forward(self, x_t, timestep, *told):
        """Predict as the network's own ``forward`` does."""
        t = follow(np.array([timestep], x_t.dtype), x_t)
        return self.run(x_t, t, *told).copy()
