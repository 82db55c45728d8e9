"""The one place where a network meets a schedule: ``denoise(x_t, t) -> (x0_hat, eps_hat)``."""
from math import isfinite

import numpy as np

from tinydiff.backends.device import follow
from tinydiff.backends.graph import Recorded
from tinydiff.guidance import classifier_free, rescaled
from tinydiff.targets import to_x0_eps


class Denoiser:
    """What samplers call: it asks the network, and splits `x_t` by the answer.

    Parameters
    ----------
    predict : callable
        ``predict(x_t, timestep) -> prediction``, arrays of one shape; see `guided`.
    kind : {"epsilon", "sample", "v_prediction"}
        What the network predicts.
    clip : float, optional
        Keep x0_hat within +-clip (1 for pixels in [-1, 1]); the noise is then
        what remains of `x_t`, so the two parts still add up to it.

    Notes
    -----
    A DDPM table's row t, counted 1..T, is the published network's timestep t - 1.
    That translation stands here and nowhere else.
    """

    def __init__(self, predict, kind, clip=None):
        self.predict = predict
        self.kind = kind
        self.clip = clip

    def __call__(self, x_t, t):
        """Return ``(x0_hat, eps_hat)`` for the pictures `x_t` (B, C, H, W) at level `t`."""
        prediction = self.predict(x_t, network_timestep(t))
        x0_hat, eps_hat = to_x0_eps(prediction, x_t, t, self.kind)
        if self.clip is not None:
            x0_hat = np.clip(x0_hat, -self.clip, self.clip)
            if t.noise > 0:
                eps_hat = (x_t - t.signal * x0_hat) / t.noise
        return x0_hat, eps_hat


def network_timestep(t):
    """Translate a Level of a DDPM table, t in (0, T] or a batch of them, to the timestep."""
    return t.t - 1


def guided(unet, text, text_null, w, rescale=0.0, within=None):
    """Wrap a U-Net as ``predict(x_t, timestep)`` under classifier-free guidance.

    Parameters
    ----------
    unet : UNet
        Attends to the tokens; where it has a class embedding, that takes the pooled text.
    text, text_null : TextEncoding
        The encoded prompts, and the encoded empty prompt as often.
    w : float
        0 ignores the prompt, 1 follows it, more exaggerates it.  Where one of the two
        predictions has no weight (w = 0 or 1) it is not computed.
    rescale : float, default 0
        See `tinydiff.guidance.rescaled`.
    within : (float, float), optional
        Timesteps between which `w` counts; outside the prompt is followed, w = 1.
    """
    if not isfinite(w):
        raise ValueError(f"guidance weight {w}: a finite number is needed (1 is no guidance)")
    if w in (0, 1):
        only = text if w == 1 else text_null
        return lambda x_t, timestep: unet.forward(x_t, timestep, only.hidden, only.pooled)
    hidden = np.concatenate([text_null.hidden, text.hidden])          # (2B, N, D)
    pooled = np.concatenate([text_null.pooled, text.pooled])          # (2B, D)

    def predict(x_t, timestep):
        if within is not None and not within[0] <= timestep <= within[1]:
            return unet.forward(x_t, timestep, text.hidden, text.pooled)
        prediction = unet.forward(np.concatenate([x_t, x_t]), timestep, hidden, pooled)
        B = x_t.shape[0]
        guided = classifier_free(prediction[:B], prediction[B:], w)
        return rescaled(guided, prediction[B:], rescale) if rescale else guided
    return predict


class RecordedUNet:
    """A U-Net whose forward pass is one CUDA graph, where its arrays are on a device.

    It is recorded at the first picture, and again for pictures of another number or size.  The
    timestep travels as an array, since a graph repeats every plain number.
    """

    def __init__(self, unet):
        self.run = Recorded(unet.forward)

    def forward(self, x_t, timestep, hidden, pooled):
        """Predict as `UNet.forward` does."""
        t = follow(np.array([timestep], x_t.dtype), x_t)
        return self.run(x_t, t, hidden, pooled).copy()
