"""What judges a reconstruction beside its pixels: CLIP's image encoder, and a discriminator.

Errors in pixels forgive blur: where a fine line lies is uncertain, so its mean over all places is
the best guess.  These two do not.  Latent diffusion trains its autoencoders with both:
R. Rombach et al., 2021, arXiv:2112.10752, Section 3.1.  What each brought here is measured in
data/models/emoji/README.md.
"""
import numpy as np

from tinydiff.backends.device import scalar
from tinydiff.losses import hinge
from tinydiff.models.discriminator import PatchDiscriminator
from tinydiff.nn import Module, Tape

TINY = 1e-12                            # keeps a gradient of zero from dividing by its norm


class Adversaries(Module):
    """An autoencoder and the discriminator it is trained against, with one optimiser.

    Parameters
    ----------
    autoencoder : Autoencoder
        Filled already.
    seed : int
        Of the discriminator's start.
    """

    def __init__(self, autoencoder, seed=0):
        self.autoencoder = autoencoder
        channels = autoencoder.config["out_channels"]
        self.discriminator = PatchDiscriminator(channels).initialise(seed)


def perceptual(vision, x_hat, x):
    """Distance of two pictures' patches as an image encoder sees them.

    Parameters
    ----------
    vision : CLIPVision
        Frozen: nothing is added to its gradients.
    x_hat, x : (B, C, S, S) ndarray in [-1, 1]

    Returns
    -------
    value : float
        From 0 to 4.
    dx_hat : (B, C, S, S) ndarray

    Notes
    -----
    With h a token before the encoder's last layer (after it, CLIP's loss reads the class token
    alone), scaled to unit length, u = h / |h|, and the means over all tokens::

        value = mean |u_hat - u|^2
        dh    = (du - u (u . du)) / |h|,    du = 2 (u_hat - u) / N

    References
    ----------
    .. [1] R. Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual
       Metric", 2018, arXiv:1801.03924, Eq. 1 (there of several layers of a convolutional network).
    """
    want, _ = _unit(vision.forward(x).penultimate)                    # (B, 1 + N, D)
    tape = Tape()
    u, length = _unit(vision.forward(x_hat, tape).penultimate)
    error = u - want
    value = scalar((error * error).sum(axis=2).mean())
    du = error * error.dtype.type(2 / (u.shape[0] * u.shape[1]))
    dh = (du - u * (u * du).sum(axis=2, keepdims=True)) / length
    return value, vision.backward(None, dpenultimate=dh, tape=tape)


def _unit(h):
    """Scale each token to unit length; return the tokens and their lengths."""
    length = np.sqrt((h * h).sum(axis=2, keepdims=True))              # (B, 1 + N, 1)
    return h / length, length


def contest(discriminator, x_hat, x, share):
    """Train the discriminator on one batch, and ask it which way pictures would look more real.

    Parameters
    ----------
    discriminator : PatchDiscriminator
        The gradient of its own loss, `tinydiff.losses.hinge`, is added to it.
    x_hat, x : (B, C, H, W) ndarray in [-1, 1]
        Drawn and real.
    share : float
        Multiplies that gradient.

    Returns
    -------
    dx_hat : (B, C, H, W) ndarray
        The gradient of -mean(D(x_hat)), of which nothing is added to the discriminator.
    """
    real, fake, pull = Tape(), Tape(), Tape()
    judge = discriminator.replica().freeze()                          # the same weights, at rest
    logits = judge.forward(x_hat, pull)                               # (B, 1, h, w)
    dx_hat = judge.backward(np.full_like(logits, -1 / logits.size), pull)

    _, dreal, dfake = hinge(discriminator.forward(x, real), discriminator.forward(x_hat, fake))
    discriminator.backward(share * dreal, real, needs_dx=False)
    discriminator.backward(share * dfake, fake, needs_dx=False)
    return dx_hat


def as_strong(push, other, weight):
    """Scale one gradient to `weight` times the length of another.

    The discriminator's scale drifts while it learns, and so would the weight of its opinion; latent
    diffusion measures both gradients too, there in the decoder's last layer (P. Esser et al., 2020,
    arXiv:2012.09841, Eq. 7).

    Examples
    --------
    >>> as_strong(np.array([0.0, 5.0]), np.array([3.0, 4.0]), 0.5)
    array([0. , 2.5])
    """
    length = lambda d: np.sqrt((d * d).sum())
    return push * (weight * length(other) / (length(push) + TINY))
