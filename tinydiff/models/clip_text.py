"""CLIP's text encoder: a causal transformer over the tokens of a caption.

The architecture, the configuration fields and the tensor names are those of the published
``CLIPTextModel`` and ``CLIPTextModelWithProjection`` files: the text encoders of Stable
Diffusion and of SDXL open here, and one trained here opens in transformers.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021, arXiv:2103.00020, Section 2.4.

Every `backward` below is its `forward` read from the bottom up.
"""
from typing import NamedTuple

import numpy as np

from tinydiff.models.clip_layers import Encoder, TakeToken
from tinydiff.models.pretrained import check_config, load_model, save_model
from tinydiff.nn import ACTIVATIONS, NO_TAPE, Embedding, LayerNorm, Linear, Module
from tinydiff.nn.initialisers import normal
from tinydiff.ops import causal_mask

SUPPORTED = {                           # field: the default of the published files
    "architectures": ("CLIPTextModel",),
    "vocab_size": 49408,
    "hidden_size": 512,
    "intermediate_size": 2048,
    "projection_dim": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,          # unused: every tensor has a width of its own, below
    "initializer_factor": 1.0,
    "pad_token_id": 1,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
ONLY_DEFAULT = {"model_type": "clip_text_model", "dropout": 0.0}

WITH_PROJECTION = "CLIPTextModelWithProjection"
# Configs from before 2023 say 2, which is no end token; their models pool at the highest id.
HIGHEST_ID = 2


class TextEncoding(NamedTuple):
    """What `CLIPText.forward` returns.

    `hidden` is what Stable Diffusion attends to; SDXL attends to `penultimate`, the state
    that enters the last layer, and takes `pooled` for its ``text_embeds``.
    """

    hidden: object                      # (B, N, D), after the final norm
    pooled: object                      # (B, D) at the end token; (B, P) with a projection
    penultimate: object                 # (B, N, D), before the last layer, not normed


class TextEmbeddings(Module):
    """A vector for each token plus a vector for each place."""

    def __init__(self, config):
        D, std = config["hidden_size"], 0.02 * config["initializer_factor"]
        self.token_embedding = Embedding(config["vocab_size"], D, std)
        self.position_embedding = Embedding(config["max_position_embeddings"], D, std)

    def forward(self, ids, tape=NO_TAPE):
        """Map ids (B, N) to (B, N, D)."""
        place = np.arange(ids.shape[1], like=ids)                     # (N,)
        x = self.token_embedding.forward(ids, tape)
        return x + self.position_embedding.forward(place, tape)

    def backward(self, dx, tape):
        """Add to both tables' gradients; ids have none."""
        self.position_embedding.backward(dx.sum(axis=0), tape)
        self.token_embedding.backward(dx, tape)


class TextTransformer(Module):
    """The published ``text_model``: embeddings, layers, final norm, pooling."""

    def __init__(self, config):
        self.embeddings = TextEmbeddings(config)
        self.encoder = Encoder(config)
        self.final_layer_norm = LayerNorm(config["hidden_size"], config["layer_norm_eps"])
        self.take_end = TakeToken()
        self.eos_token_id = config["eos_token_id"]

    def forward(self, ids, tape=NO_TAPE):
        """Map ids (B, N) to a `TextEncoding`, pooled without projection."""
        x = self.embeddings.forward(ids, tape)
        # Padding is not masked: only later padding sees it, and Stable Diffusion was trained so.
        mask = causal_mask(ids.shape[1], x.dtype, like=x)             # (N, N)
        x, penultimate = self.encoder.forward(x, mask, tape)
        hidden = self.final_layer_norm.forward(x, tape)
        pooled = self.take_end.forward(hidden, self.end_place(ids), tape)
        return TextEncoding(hidden, pooled, penultimate)

    def backward(self, dhidden, dpooled, dpenultimate, tape):
        """Pull the gradients back to every parameter; `dpooled` alone may not be None."""
        dh = self.take_end.backward(dpooled, tape)
        if dhidden is not None:
            dh = dh + dhidden
        dx = self.final_layer_norm.backward(dh, tape)
        dx = self.encoder.backward(dx, dpenultimate, tape)
        self.embeddings.backward(dx, tape)

    def end_place(self, ids):
        """Return the place (B,) of the first end token in each row."""
        if self.eos_token_id == HIGHEST_ID:
            return ids.argmax(axis=1)
        return (ids == self.eos_token_id).argmax(axis=1)


class CLIPText(Module):
    """The text encoder, with CLIP's projection where the config names it.

    Parameters
    ----------
    **config
        Fields of a published ``config.json``, those of `SUPPORTED`; missing ones take the
        published defaults.  ``architectures=["CLIPTextModelWithProjection"]`` adds
        `text_projection`, without which ``projection_dim`` has no effect.

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
    >>> text = CLIPText(vocab_size=600, hidden_size=32, intermediate_size=64, eos_token_id=599,
    ...                 num_hidden_layers=2, num_attention_heads=4).initialise(seed=0)
    >>> encoding = text.forward(np.array([[598, 7, 599, 599], [598, 7, 8, 599]]))
    >>> encoding.hidden.shape, encoding.pooled.shape
    ((2, 4, 32), (2, 32))
    """

    weights_name = "model.safetensors"

    def __init__(self, **config):
        self.config = c = clip_text_config(config)
        self.config_header = {"model_type": "clip_text_model"}
        self.text_model = TextTransformer(c)
        self.text_projection = None
        if c["architectures"] == [WITH_PROJECTION]:
            self.text_projection = Linear(
                c["hidden_size"], c["projection_dim"], bias=False,
                fill=normal(c["hidden_size"] ** -0.5 * c["initializer_factor"]))

    def forward(self, ids, tape=NO_TAPE):
        """Encode captions.

        Parameters
        ----------
        ids : (B, N) ndarray of int
            As `tinydiff.text.Tokenizer.encode_batch` returns them.
        tape : Tape, optional

        Returns
        -------
        TextEncoding

        Raises
        ------
        ValueError
            If a row is too long, an id is not in the vocabulary, or `tape` asks for dropout.
        """
        c = self.config
        if ids.shape[1] > c["max_position_embeddings"]:
            raise ValueError(f"{ids.shape[1]} tokens are more than this text encoder's "
                             f"max_position_embeddings={c['max_position_embeddings']}")
        if tape.generator is not None and c["attention_dropout"]:
            raise ValueError(f"attention_dropout={c['attention_dropout']} is not supported in "
                             "training; set it to 0")
        ids = self.text_model.embeddings.token_embedding.place(ids)
        encoding = self.text_model.forward(ids, tape)
        if self.text_projection is not None:
            pooled = self.text_projection.forward(encoding.pooled, tape)
            encoding = encoding._replace(pooled=pooled)
        return encoding

    def backward(self, dhidden, dpooled=None, dpenultimate=None, *, tape):
        """Add to every parameter's gradient; ids have none.

        Parameters
        ----------
        dhidden, dpooled, dpenultimate : ndarray or None
            Gradients in the three fields of `TextEncoding`; None for one that was not used.
        tape : Tape
            The one that `forward` was given.
        """
        given = next(d for d in (dhidden, dpooled, dpenultimate) if d is not None)
        if dpooled is None:
            c = self.config
            width = c["hidden_size" if self.text_projection is None else "projection_dim"]
            dpooled = np.zeros((given.shape[0], width), given.dtype, like=given)
        if self.text_projection is not None:
            dpooled = self.text_projection.backward(dpooled, tape)
        self.text_model.backward(dhidden, dpooled, dpenultimate, tape)

    @classmethod
    def from_pretrained(cls, folder, dtype=np.float32):
        """Open a folder with ``config.json`` and ``model.safetensors``."""
        return load_model(cls, folder, dtype)

    def save_pretrained(self, folder, dtype="float32"):
        """Write ``config.json`` and the weights, as the published files have them."""
        save_model(self, folder, dtype)


def clip_text_config(given):
    """Complete and check the published fields of a text encoder.

    Raises
    ------
    ValueError
        Naming the field that is not supported.
    """
    config = check_config(given, SUPPORTED, ONLY_DEFAULT, "CLIPText")
    config["architectures"] = list(config["architectures"] or ["CLIPTextModel"])
    for field, value, known in [
            ("architectures", config["architectures"], [["CLIPTextModel"], [WITH_PROJECTION]]),
            ("hidden_act", config["hidden_act"], list(ACTIVATIONS))]:
        if value not in known:
            raise ValueError(f"CLIPText config: {field}={value!r} is not supported; "
                             f"known: {', '.join(map(str, known))}")
    D, heads = config["hidden_size"], config["num_attention_heads"]
    if D % heads:
        raise ValueError(f"CLIPText config: num_attention_heads={heads} does not divide "
                         f"hidden_size={D}")
    if type(config["eos_token_id"]) is not int:
        raise ValueError(f"CLIPText config: eos_token_id={config['eos_token_id']!r} is not one id")
    if config["num_hidden_layers"] < 1:
        raise ValueError("CLIPText config: num_hidden_layers must be 1 or more")
    return config
