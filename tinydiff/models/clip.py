"""CLIP: a text encoder and an image encoder that meet in one space.

A picture and its caption become two unit vectors, and training turns them towards each other and
away from all other captions and pictures.  The folder is that of the published ``CLIPModel``; its
text half alone, ``clip.text.save_pretrained(...)``, is the ``text_encoder`` of a Stable Diffusion
folder.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021, arXiv:2103.00020, Section 2.3 and Figure 3.
"""
from typing import NamedTuple

import numpy as np

from tinydiff.models import clip_text, clip_vision
from tinydiff.models.clip_text import CLIPText
from tinydiff.models.clip_vision import CLIPVision
from tinydiff.models.pretrained import check_config, load_model, save_model
from tinydiff.nn import NO_TAPE, Module, Parameter, Pointwise
from tinydiff.nn.initialisers import constant
from tinydiff.ops import unit_backward, unit_forward

SUPPORTED = {                           # field: the default of the published files
    "projection_dim": 512,
    "logit_scale_init_value": 2.6592,   # log(1 / 0.07)
    "initializer_factor": 1.0,          # of the two projections
}
ONLY_DEFAULT = {"text_config_dict": None, "vision_config_dict": None}   # older spellings
# What transformers 4 wrote into both halves of every file, whatever the model: at these values,
# none of it speaks of this network.
OF_EVERY_MODEL = {
    **dict.fromkeys((
        "add_cross_attention", "do_sample", "early_stopping", "is_decoder", "is_encoder_decoder",
        "output_attentions", "output_hidden_states", "output_scores", "remove_invalid_values",
        "return_dict_in_generate", "tie_encoder_decoder", "torchscript", "use_bfloat16"), False),
    **dict.fromkeys((
        "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cross_attention_hidden_size",
        "decoder_start_token_id", "eos_token_id", "exponential_decay_length_penalty",
        "finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "pad_token_id", "prefix",
        "problem_type", "sep_token_id", "suppress_tokens", "task_specific_params", "tf_legacy_loss",
        "tokenizer_class"), None),
    **dict.fromkeys((
        "chunk_size_feed_forward", "diversity_penalty", "encoder_no_repeat_ngram_size",
        "min_length", "no_repeat_ngram_size"), 0),
    **dict.fromkeys((
        "length_penalty", "num_beam_groups", "num_beams", "num_return_sequences",
        "repetition_penalty", "temperature", "top_p", "typical_p"), 1),
    "return_dict": True, "tie_word_embeddings": True, "top_k": 50, "max_length": 20,
    "pruned_heads": {}, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "label2id": {"LABEL_0": 0, "LABEL_1": 1},
}
PARTS = {"text_config": clip_text, "vision_config": clip_vision}


class Pairs(NamedTuple):
    """What `CLIP.forward` returns: unit vectors, one a picture and one a caption."""

    image: object                       # (B, P)
    text: object                        # (B, P)


class CLIP(Module):
    """Both encoders, both projections and the learned temperature.

    Parameters
    ----------
    text_config, vision_config : dict
        Published fields, see `CLIPText` and `CLIPVision`.
    **config
        ``projection_dim``, P, and the others of `SUPPORTED`.

    Attributes
    ----------
    text : CLIPText
    vision : CLIPVision
        With their projections; they own the parameters, so what trains one trains the other.
    logit_scale : Parameter, ()
        t, the logarithm of what similarities are multiplied by.
    config : dict
        Every supported field.

    Raises
    ------
    ValueError
        Naming the field or the value that is not supported.

    Examples
    --------
    >>> small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
    ...          "num_attention_heads": 4}
    >>> clip = CLIP(text_config={**small, "vocab_size": 600, "eos_token_id": 599},
    ...             vision_config={**small, "image_size": 16, "patch_size": 4},
    ...             projection_dim=24).initialise(seed=0)
    >>> pairs = clip.forward(np.zeros((1, 3, 16, 16), np.float32), np.array([[598, 7, 599]]))
    >>> pairs.image.shape, pairs.text.shape
    ((1, 24), (1, 24))
    """

    weights_name = "model.safetensors"
    config_header = {"architectures": ["CLIPModel"], "model_type": "clip"}     # noqa: RUF012

    def __init__(self, text_config=None, vision_config=None, **config):
        c = check_config(config, SUPPORTED, ONLY_DEFAULT, "CLIP")
        if config.get("model_type", "clip") != "clip":
            raise ValueError(f"CLIP config: model_type={config['model_type']!r} is not 'clip'")
        self.text = CLIPText(**_half(text_config, "text_config", c))
        self.vision = CLIPVision(**_half(vision_config, "vision_config", c))
        self.logit_scale = Parameter((), constant(c["logit_scale_init_value"]))
        self.unit_text = Pointwise(unit_forward, unit_backward)
        self.unit_image = Pointwise(unit_forward, unit_backward)
        self.config = {**c, "text_config": _published(self.text),
                       "vision_config": _published(self.vision)}

    def members(self):
        """Yield the parts of both encoders side by side, as the published file has them."""
        yield "logit_scale", self.logit_scale
        yield from self.text.members()
        yield from self.vision.members()

    def forward(self, x, ids, tape=NO_TAPE):
        """Encode pictures and captions.

        Parameters
        ----------
        x : (B, C, S, S) ndarray
            See `CLIPVision.forward`.
        ids : (B, N) ndarray of int
            See `CLIPText.forward`.
        tape : Tape, optional

        Returns
        -------
        Pairs
        """
        image = self.vision.forward(x, tape).pooled                   # (B, P)
        image = self.unit_image.forward(image, tape)
        text = self.text.forward(ids, tape).pooled                    # (B, P)
        return Pairs(image, self.unit_text.forward(text, tape))

    def backward(self, dimage, dtext, tape):
        """Add to every parameter's gradient but that of `logit_scale`, which the loss gives."""
        dtext = self.unit_text.backward(dtext, tape)
        self.text.backward(None, dtext, tape=tape)
        dimage = self.unit_image.backward(dimage, tape)
        self.vision.backward(None, dimage, tape=tape, needs_dx=False)

    @classmethod
    def from_pretrained(cls, folder, dtype=np.float32):
        """Open a folder with ``config.json`` and ``model.safetensors``."""
        return load_model(cls, folder, dtype)

    def save_pretrained(self, folder, dtype="float32"):
        """Write ``config.json`` and the weights, as the published files have them."""
        save_model(self, folder, dtype)


def _half(given, field, config):
    """Return one encoder's fields; the joined model alone says how wide its projection is."""
    if not isinstance(given or {}, dict):
        raise ValueError(f"CLIP config: {field}={given!r:.80} should be an object, {{...}}")
    own = {name: value for name, value in (given or {}).items()
           if name not in OF_EVERY_MODEL or value != OF_EVERY_MODEL[name]}
    return {**own, "architectures": [PARTS[field].WITH_PROJECTION],
            "projection_dim": config["projection_dim"]}


def _published(encoder):
    """Return an encoder's fields as the joined file has them."""
    return {**encoder.config_header, **encoder.config, "architectures": None}
