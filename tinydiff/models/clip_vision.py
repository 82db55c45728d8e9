"""CLIP's image encoder: a transformer over the patches of a picture.

The architecture, the configuration fields and the tensor names are those of the published
``CLIPVisionModel`` and ``CLIPVisionModelWithProjection`` files, `pre_layrnorm` with its missing
letters included.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021, arXiv:2103.00020, Section 2.4; the transformer over patches from A. Dosovitskiy et al., "An
Image is Worth 16x16 Words", 2020, arXiv:2010.11929, Section 3.1.

Every `backward` below is its `forward` read from the bottom up.
"""
from typing import NamedTuple

import numpy as np

from tinydiff.models.clip_layers import Encoder, TakeToken
from tinydiff.models.patches import PatchEmbedding
from tinydiff.models.pretrained import check_config, load_model, save_model
from tinydiff.nn import ACTIVATIONS, NO_TAPE, Embedding, LayerNorm, Linear, Module, Parameter
from tinydiff.nn.initialisers import normal

SUPPORTED = {                           # field: the default of the published files
    "architectures": ("CLIPVisionModel",),
    "hidden_size": 768,
    "intermediate_size": 3072,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "initializer_factor": 1.0,
}
ONLY_DEFAULT = {"model_type": "clip_vision_model", "dropout": 0.0}

WITH_PROJECTION = "CLIPVisionModelWithProjection"


class ImageEncoding(NamedTuple):
    """What `CLIPVision.forward` returns: N patches, and before them the class token."""

    hidden: object                      # (B, 1 + N, D), after the last layer, not normed
    pooled: object                      # (B, D), the class token, normed; (B, P) with a projection
    penultimate: object                 # (B, 1 + N, D), before the last layer


class VisionEmbeddings(Module):
    """The class token and the patches, and a vector for each place."""

    def __init__(self, config):
        D, P, factor = config["hidden_size"], config["patch_size"], config["initializer_factor"]
        std = config["initializer_range"] * factor
        self.class_embedding = Parameter((D,), normal(D**-0.5 * factor))
        self.patch_embedding = PatchEmbedding(config["num_channels"], D, P, normal(std), bias=False)
        self.position_embedding = Embedding(1 + (config["image_size"] // P) ** 2, D, std)

    def forward(self, x, tape=NO_TAPE):
        """Map pictures (B, C, H, W) to tokens (B, 1 + N, D)."""
        patches = self.patch_embedding.forward(x, tape)               # (B, N, D)
        B, N, D = patches.shape
        first = np.broadcast_to(self.class_embedding.value, (B, 1, D))
        h = np.concatenate([first, patches], axis=1)                  # (B, 1 + N, D)
        return h + self.position_embedding.forward(np.arange(1 + N, like=x), tape)

    def backward(self, dh, tape, needs_dx=True):
        """Return dx, the pictures' shape; None if nobody needs it."""
        self.position_embedding.backward(dh.sum(axis=0), tape)
        self.class_embedding.accumulate(dh[:, 0].sum(axis=0))
        return self.patch_embedding.backward(dh[:, 1:], tape, needs_dx)


class VisionTransformer(Module):
    """The published ``vision_model``: embeddings, norm, layers, and the class token, normed."""

    def __init__(self, config):
        D, eps = config["hidden_size"], config["layer_norm_eps"]
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = LayerNorm(D, eps)                         # spelled so in every file
        self.encoder = Encoder(config)
        self.take_class = TakeToken()
        self.post_layernorm = LayerNorm(D, eps)

    def forward(self, x, tape=NO_TAPE):
        """Map pictures (B, C, H, W) to an `ImageEncoding`, pooled without projection."""
        h = self.embeddings.forward(x, tape)
        h = self.pre_layrnorm.forward(h, tape)
        hidden, penultimate = self.encoder.forward(h, None, tape)
        first = np.zeros(len(x), int, like=x)                         # (B,), the place of the class
        pooled = self.take_class.forward(hidden, first, tape)
        pooled = self.post_layernorm.forward(pooled, tape)
        return ImageEncoding(hidden, pooled, penultimate)

    def backward(self, dhidden, dpooled, dpenultimate, tape, needs_dx=True):
        """Return dx; `dpooled` alone may not be None."""
        dpooled = self.post_layernorm.backward(dpooled, tape)
        dh = self.take_class.backward(dpooled, tape)
        if dhidden is not None:
            dh = dh + dhidden
        dh = self.encoder.backward(dh, dpenultimate, tape)
        dh = self.pre_layrnorm.backward(dh, tape)
        return self.embeddings.backward(dh, tape, needs_dx)


class CLIPVision(Module):
    """The image encoder, with CLIP's projection where the config names it.

    Parameters
    ----------
    **config
        Fields of a published ``config.json``, those of `SUPPORTED`; missing ones take the
        published defaults.  ``architectures=["CLIPVisionModelWithProjection"]`` adds
        `visual_projection`, without which ``projection_dim`` has no effect.

    Attributes
    ----------
    config : dict
        Every supported field.

    Raises
    ------
    ValueError
        Naming the field or the value that is not supported.

    Examples
    --------
    >>> vision = CLIPVision(image_size=16, patch_size=4, hidden_size=32, intermediate_size=64,
    ...                     num_hidden_layers=2, num_attention_heads=4).initialise(seed=0)
    >>> encoding = vision.forward(np.zeros((2, 3, 16, 16), np.float32))
    >>> encoding.hidden.shape, encoding.pooled.shape
    ((2, 17, 32), (2, 32))
    """

    weights_name = "model.safetensors"

    def __init__(self, **config):
        self.config = c = clip_vision_config(config)
        self.config_header = {"model_type": "clip_vision_model"}
        self.vision_model = VisionTransformer(c)
        self.visual_projection = None
        if c["architectures"] == [WITH_PROJECTION]:
            self.visual_projection = Linear(
                c["hidden_size"], c["projection_dim"], bias=False,
                fill=normal(c["hidden_size"] ** -0.5 * c["initializer_factor"]))

    def forward(self, x, tape=NO_TAPE):
        """Encode pictures.

        Parameters
        ----------
        x : (B, C, S, S) ndarray
            As the model was trained: those of this project in [-1, 1]; published ones say in
            ``preprocessor_config.json`` which mean and deviation they expect.
        tape : Tape, optional

        Returns
        -------
        ImageEncoding

        Raises
        ------
        ValueError
            If the pictures have another size, or `tape` asks for dropout.
        """
        c = self.config
        expected = (c["num_channels"], c["image_size"], c["image_size"])
        if x.shape[1:] != expected:
            raise ValueError(f"pictures of shape {x.shape[1:]}: this image encoder takes "
                             f"{expected}")
        if tape.generator is not None and c["attention_dropout"]:
            raise ValueError(f"attention_dropout={c['attention_dropout']} is not supported in "
                             "training; set it to 0")
        encoding = self.vision_model.forward(x, tape)
        if self.visual_projection is not None:
            pooled = self.visual_projection.forward(encoding.pooled, tape)
            encoding = encoding._replace(pooled=pooled)
        return encoding

    def backward(self, dhidden, dpooled=None, dpenultimate=None, *, tape, needs_dx=True):
        """Add to every parameter's gradient, and return the pictures'.

        Parameters
        ----------
        dhidden, dpooled, dpenultimate : ndarray or None
            Gradients in the three fields of `ImageEncoding`; None for one that was not used.
        tape : Tape
            The one that `forward` was given.
        needs_dx : bool, default True

        Returns
        -------
        dx : (B, C, S, S) ndarray or None
            None if `needs_dx` is False.
        """
        given = next(d for d in (dhidden, dpooled, dpenultimate) if d is not None)
        if dpooled is None:
            c = self.config
            width = c["hidden_size" if self.visual_projection is None else "projection_dim"]
            dpooled = np.zeros((given.shape[0], width), given.dtype, like=given)
        if self.visual_projection is not None:
            dpooled = self.visual_projection.backward(dpooled, tape)
        return self.vision_model.backward(dhidden, dpooled, dpenultimate, tape, needs_dx)

    @classmethod
    def from_pretrained(cls, folder, dtype=np.float32):
        """Open a folder with ``config.json`` and ``model.safetensors``."""
        return load_model(cls, folder, dtype)

    def save_pretrained(self, folder, dtype="float32"):
        """Write ``config.json`` and the weights, as the published files have them."""
        save_model(self, folder, dtype)


def clip_vision_config(given):
    """Complete and check the published fields of an image encoder.

    Raises
    ------
    ValueError
        Naming the field that is not supported.
    """
    config = check_config(given, SUPPORTED, ONLY_DEFAULT, "CLIPVision")
    config["architectures"] = list(config["architectures"] or ["CLIPVisionModel"])
    for field, value, known in [
            ("architectures", config["architectures"], [["CLIPVisionModel"], [WITH_PROJECTION]]),
            ("hidden_act", config["hidden_act"], list(ACTIVATIONS))]:
        if value not in known:
            raise ValueError(f"CLIPVision config: {field}={value!r} is not supported; "
                             f"known: {', '.join(map(str, known))}")
    for field in ("image_size", "patch_size", "num_hidden_layers"):
        if type(config[field]) is not int or config[field] < 1:
            raise ValueError(f"CLIPVision config: {field}={config[field]!r} should be a whole "
                             "number from 1")
    for field, whole in (("num_attention_heads", "hidden_size"), ("patch_size", "image_size")):
        if config[whole] % config[field]:
            raise ValueError(f"CLIPVision config: {field}={config[field]} does not divide "
                             f"{whole}={config[whole]}")
    return config
