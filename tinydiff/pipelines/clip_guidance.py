"""CLIP guidance: pictures pushed towards their prompt by the gradient of CLIP's similarity.

The gradient is written by hand all the way: from the similarity of two unit vectors through the
image encoder to the pixels and, of a latent model, on through the autoencoder's decoder.
"""
from math import isfinite

from tinydiff.backends.device import follow
from tinydiff.nn import Tape
from tinydiff.ops import unit_backward, unit_forward
from tinydiff.pictures import resize, resize_backward
from tinydiff.pipelines.clip import ClipEncoder


class ClipGuidance:
    """What a `Denoiser` is pushed by: the gradient of weight * similarity(picture, prompt).

    Parameters
    ----------
    pipe : TextToImage
        With an image encoder.
    prompts : list of B str
    weight : float
        CLIP holds log p(prompt | picture) to be its temperature, up to 100, times the similarity,
        less a constant: at that weight this is its classifier's guidance.

    Raises
    ------
    ValueError
        If the model has no image encoder, or `weight` is not finite.

    Notes
    -----
    The similarity is asked of x0_hat, which CLIP has seen the like of, and not of `x_t`::

        d similarity / d x_t  =  (d x0_hat / d x_t)^T  d similarity / d x0_hat

    The denoiser's own derivative is ``signal / noise^2 Cov[x0 | x_t]``.  In its place stands what
    it is for Gaussian data of variance 1, ``signal / (signal^2 + noise^2)``, which costs nothing
    and is bounded at both ends.  Together with `tinydiff.guidance.by_gradient` x0_hat moves along
    d similarity / d x0_hat by weight * noise^2 at a variance-preserving level: far in the noise,
    where anything may still come of it, and not at all at the end.

    References
    ----------
    .. [1] A. Nichol et al., "GLIDE", 2021, arXiv:2112.10741 (CLIP guidance).
    """

    def __init__(self, pipe, prompts, weight):
        if not isfinite(weight):
            raise ValueError(f"clip guidance weight {weight}: a finite number is needed (0 is "
                             "off)")
        if pipe.image_encoder is None:
            raise ValueError("CLIP guidance needs the image encoder of a CLIP, and this model has "
                             "none: choose another model, or leave it out")
        clip = ClipEncoder(pipe.text_encoder, pipe.image_encoder, pipe.tokenizer)
        self.weight = float(weight)
        self.text = clip.encode_text(list(prompts))                   # (B, P)
        # Twins that share all values and keep no gradients: nobody trains here.
        self.vision = pipe.image_encoder.replica().freeze()
        self.vae = None if pipe.vae is None else pipe.vae.replica().freeze()

    def __call__(self, x_t, t, x0_hat):
        """Return the gradient in `x_t` (B, C, H, W), of its shape."""
        _, gradient = self.similarity(x0_hat)
        return self.weight * t.signal / (t.signal**2 + t.noise**2) * gradient

    def similarity(self, x0):
        """Compare each picture with its prompt.

        Parameters
        ----------
        x0 : (B, C, H, W) ndarray
            Pictures, or latents where the model has an autoencoder.

        Returns
        -------
        similarity : (B,) ndarray
            The cosine between the two, from -1 to 1.
        gradient : (B, C, H, W) ndarray
            Of each picture's similarity, in `x0`.
        """
        tape, text = Tape(), follow(self.text, x0)
        x = x0
        if self.vae is not None:
            scale = 1 / self.vae.config["scaling_factor"]
            x = self.vae.decode(scale * x0, tape)                     # (B, 3, S, S)
        side = self.vision.config["image_size"]
        pooled = self.vision.forward(resize(x, side), tape).pooled    # (B, P)
        image, cache = unit_forward(pooled)
        similarity = (image * text).sum(axis=1)

        dpooled = unit_backward(text, cache)
        dx = self.vision.backward(None, dpooled, tape=tape)
        dx = resize_backward(dx, x.shape[-1])
        return similarity, dx if self.vae is None else scale * self.vae.decode_backward(dx, tape)
