"""Train an autoencoder: reconstruct pictures through latents that stay near a standard normal.

Each update: pictures, moved a little; their latents' Gaussians; a draw; the decoded draw.  The
loss says how far that is from the pictures, and how many nats the latents spend.
"""
import copy

import numpy as np

from tinydiff.backends.device import follow, to_host
from tinydiff.backends.random import generator, normal
from tinydiff.losses import image_gradient, kl_to_normal, l1, mse
from tinydiff.metrics import psnr
from tinydiff.models.autoencoder import Autoencoder
from tinydiff.models.pretrained import build
from tinydiff.nn import Tape
from tinydiff.pictures import sheet
from tinydiff.recipes.judges import Adversaries, as_strong, contest, perceptual

SHIFT = 1 / 16                  # a picture moves by at most this share of its side
QUIET = -6.0                    # added to the first log-variances: the draws begin almost exact


def autoencoder_loss(reconstruction, x, weights):
    """Add up the terms of the loss.

    Parameters
    ----------
    reconstruction : Reconstruction
    x : (B, C, H, W) ndarray
        What should have come out.
    weights : dict
        ``mse``, ``l1``, ``gradient`` (of `tinydiff.losses.image_gradient`) and ``kl`` (of the
        nats per latent).

    Returns
    -------
    value : float
    dx_hat, dmean, dlogvar : ndarray
        The gradient in each field of `reconstruction`.
    """
    x_hat, mean, logvar = reconstruction
    value, dmean, dlogvar = kl_to_normal(mean, logvar)
    value, dmean, dlogvar = (weights["kl"] * part for part in (value, dmean, dlogvar))
    dx_hat = np.zeros_like(x_hat)
    for name, loss in (("mse", mse), ("l1", l1), ("gradient", image_gradient)):
        if weights[name]:
            term, dterm = loss(x_hat, x)
            value += weights[name] * term
            dx_hat += weights[name] * dterm
    return value, dx_hat, dmean, dlogvar


class AutoencoderObjective:
    """What an update of an "autoencoder" recipe computes; see `tinydiff.train.Trainer`.

    Parameters
    ----------
    recipe : dict
        With the tables ``data``, ``model`` (published fields), ``loss``, ``train``, ``samples``.
    pictures : Pictures
        The training pictures.
    init : Autoencoder, optional
        Start from this model's weights instead of at random.
    held_out : Pictures, optional
        What `metrics` and `sample_sheet` reconstruct; without, the first training pictures.
    vision : CLIPVision, optional
        Frozen: whose tokens ``loss.perceptual`` compares.

    Attributes
    ----------
    model : Autoencoder or Adversaries
        With a discriminator, whose ``loss.adversarial`` is not 0, the two together.

    Raises
    ------
    ValueError
        Naming the field that is wrong.

    Notes
    -----
    A fresh encoder's latents are small beside a standard normal draw's noise: the decoder sees
    little, and the encoder spends its first updates on growing.  `QUIET` spares it that.
    """

    def __init__(self, recipe, pictures, init=None, held_out=None, vision=None):
        self.pictures = pictures
        self.held_out = held_out
        self.size = len(pictures)
        self.seed = recipe["train"].get("seed", 0)
        self.loss = recipe["loss"]
        self.vision = vision
        if self.loss["perceptual"] and vision is None:
            raise ValueError("[autoencoder.loss] perceptual compares tokens of an image encoder, "
                             "and there is none: set it to 0")
        autoencoder = new_autoencoder(recipe, pictures)
        if init is not None:
            autoencoder.load_state(init.state())
        self.model = (Adversaries(autoencoder, self.seed) if self.loss["adversarial"]
                      else autoencoder)

    def shard(self, model, step, pictures, share):
        """Forward and backward on some pictures of one batch; return their mean loss."""
        return self.compute(model, *self.inputs(model, step, pictures), share, Tape())

    def inputs(self, model, step, pictures):
        """Return what an update is made from: x (B, C, H, W), and the noise of the draw."""
        positions, indices = zip(*pictures, strict=True)
        x = self.pictures.array(list(indices))                        # (B, C, H, W)
        if self.loss["augment"]:
            x = np.stack([augment(x_k, generator(self.seed, "augment", step, k))
                          for x_k, k in zip(x, positions, strict=True)])
        x = follow(x, model.like())
        autoencoder = autoencoder_of(model)
        latent_shape = (autoencoder.config["latent_channels"],
                        *(side // autoencoder.factor for side in x.shape[2:]))
        return x, normal(latent_shape, self.seed, "train eps", step, positions, x.dtype, x)

    def compute(self, model, x, eps, share, tape):
        """Run forward and backward on arrays alone: what a CUDA graph can repeat."""
        autoencoder = autoencoder_of(model)
        reconstruction = autoencoder.forward(x, eps, tape)
        loss, dx_hat, dmean, dlogvar = autoencoder_loss(reconstruction, x, self.loss)
        if self.loss["perceptual"]:
            distance, ddistance = perceptual(self.vision, reconstruction.x_hat, x)
            loss += self.loss["perceptual"] * distance
            dx_hat += self.loss["perceptual"] * ddistance
        if self.loss["adversarial"]:
            push = contest(model.discriminator, reconstruction.x_hat, x, share)
            dx_hat += as_strong(push, dx_hat, self.loss["adversarial"])
        autoencoder.backward(share * dx_hat, share * dmean, share * dlogvar, tape, needs_dx=False)
        return loss

    def test_pictures(self):
        """Return the pictures that are reconstructed to see how good the model is.

        Returns
        -------
        (N, C, H, W) float32 ndarray in [-1, 1]
        """
        return self.pictures.array(slice(256)) if self.held_out is None else self.held_out.array()

    def metrics(self, model):
        """Return numbers to print: PSNR, nats per picture, latent statistics."""
        model = autoencoder_of(model)
        x = follow(self.test_pictures(), model.like())
        gaussians = [model.encode(x[k:k + 64]) for k in range(0, len(x), 64)]
        mean = np.concatenate([g.mean for g in gaussians])
        logvar = np.concatenate([g.logvar for g in gaussians])
        x_hat = np.concatenate([model.decode(mean[k:k + 64]) for k in range(0, len(x), 64)])
        x, x_hat = to_host(x), to_host(x_hat)
        return {"PSNR": psnr(x_hat, x),
                "PSNR, mean of pictures": float(np.mean([psnr(x_hat[[k]], x[[k]])
                                                         for k in range(len(x))])),
                "nats": float(kl_to_normal(mean, logvar)[0]) * mean[0].size,
                "latent mean": float(mean.mean()), "latent std": float(mean.std()),
                "latent noise": float(np.exp(logvar / 2).mean())}

    def pipeline(self, model):
        """Return `model`, the trained one or its average, with latents centred and scaled."""
        return centre_latents(autoencoder_of(model), self.pictures.array())

    def sample_sheet(self, model, samples):
        """Draw rows of pictures, each above its reconstructions; return a picture."""
        model, x, columns = autoencoder_of(model), self.test_pictures(), min(8, samples["count"])
        chosen = np.linspace(0, len(x) - 1, samples["count"] // columns * columns).astype(int)
        x = follow(x[chosen], model.like())
        x_hat = model.decode(model.encode(x).mean)
        rows = [row for k in range(0, len(x), columns) for row in (x[k:k + columns],
                                                                   x_hat[k:k + columns])]
        return sheet(np.concatenate(rows), columns, scale=2)


def new_autoencoder(recipe, pictures):
    """Build the model of a recipe, at random.

    Raises
    ------
    ValueError
        Naming the field that is wrong.
    """
    _, channels, side, _ = pictures.images.shape
    model = build(Autoencoder, {**recipe["model"], "sample_size": side, "in_channels": channels,
                                "out_channels": channels}, "[autoencoder.model]")
    model.initialise(recipe["train"].get("seed", 0))
    if model.quant_conv is not None:
        model.quant_conv.bias.value[model.config["latent_channels"]:] += QUIET
    return model


def autoencoder_of(model):
    """Return the autoencoder alone of what is trained."""
    return model.autoencoder if isinstance(model, Adversaries) else model


def augment(x, rng):
    """Mirror one picture (C, H, W) or not, and move it by a few pixels, repeating its border."""
    most = round(SHIFT * x.shape[1])
    flip = rng.random() < 0.5
    top, left = rng.integers(2 * most + 1, size=2)
    if flip:
        x = x[:, :, ::-1]
    x = np.pad(x, ((0, 0), (most, most), (most, most)), mode="edge")
    return x[:, top:x.shape[1] - 2 * most + top, left:x.shape[2] - 2 * most + left]


def centre_latents(autoencoder, x):
    """Return the same autoencoder with latents that are centred, and scaled by its configuration.

    Stable Diffusion's pipeline knows a `scaling_factor` and no shift, so the mean of each channel
    moves into the two 1x1 convolutions between which the latents lie: ``quant_conv`` subtracts it
    and ``post_quant_conv`` adds it again.  The reconstructions stay what they were.

    Parameters
    ----------
    autoencoder : Autoencoder
        With both convolutions; it is left as it is.
    x : (N, C, H, W) ndarray in [-1, 1]
        The training pictures.

    Returns
    -------
    centred : Autoencoder
        Over `x`, ``scaling_factor * mean`` has mean 0 in each channel and standard deviation 1 in
        all together.

    Raises
    ------
    ValueError
        If the autoencoder has no ``quant_conv`` or no ``post_quant_conv``.

    Notes
    -----
    With m the mean of the latents::

        quant_conv'(h)      = quant_conv(h) - m                 bias'  = bias - m
        post_quant_conv'(z) = post_quant_conv(z + m)            bias'  = bias + weight m
    """
    if autoencoder.quant_conv is None or autoencoder.post_quant_conv is None:
        raise ValueError("latents are centred in quant_conv and post_quant_conv: this autoencoder "
                         "needs use_quant_conv and use_post_quant_conv")
    like = autoencoder.like()
    means = np.concatenate([autoencoder.encode(follow(x[k:k + 64], like)).mean
                            for k in range(0, len(x), 64)])
    m = means.mean(axis=(0, 2, 3), dtype=np.float64)                  # (C,)
    spread = np.sqrt(((means - m[:, None, None]) ** 2).mean())

    centred = copy.deepcopy(autoencoder)
    centred.zero_grad()
    centred.config["scaling_factor"] = float(1 / spread)
    before, after = centred.quant_conv, centred.post_quant_conv
    before.bias.value[:len(m)] -= m
    after.bias.value += after.weight.value[:, :, 0, 0] @ m
    return centred
