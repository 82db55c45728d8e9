"""Pictures and captions as unit vectors of one space: CLIP in use."""
import numpy as np

from tinydiff.backends.device import follow, to_host
from tinydiff.ops import unit_forward
from tinydiff.pictures import resize

BATCH = 256                             # pictures or captions encoded at once


class ClipEncoder:
    """Both halves of a CLIP, with the tokenizer.

    Parameters
    ----------
    text_encoder : CLIPText
    image_encoder : CLIPVision
        Both with a projection, trained together on pictures in [-1, 1]: the halves ``clip.text``
        and ``clip.vision`` of a `CLIP`.
    tokenizer : Tokenizer

    Raises
    ------
    ValueError
        If the two do not meet in one space.
    """

    def __init__(self, text_encoder, image_encoder, tokenizer):
        if text_encoder.text_projection is None or image_encoder.visual_projection is None:
            raise ValueError("CLIP compares pictures with captions through a projection of each; "
                             "one of these encoders has none")
        widths = [e.config["projection_dim"] for e in (image_encoder, text_encoder)]
        if widths[0] != widths[1]:
            raise ValueError(f"the image encoder projects to projection_dim={widths[0]}, "
                             f"the text encoder to {widths[1]}")
        self.text_encoder = text_encoder
        self.image_encoder = image_encoder
        self.tokenizer = tokenizer

    def encode_image(self, x):
        """Encode pictures.

        Parameters
        ----------
        x : (B, C, S, S) ndarray in [-1, 1]
            Of any size: they are resized by area to the encoder's own.

        Returns
        -------
        (B, P) ndarray of unit vectors
        """
        side = self.image_encoder.config["image_size"]
        like = self.image_encoder.like()
        parts = [self.image_encoder.forward(follow(resize(x[i:i + BATCH], side), like)).pooled
                 for i in range(0, len(x), BATCH)]
        return to_host(unit_forward(np.concatenate(parts))[0])

    def encode_text(self, captions):
        """Encode captions, a list of str; return (B, P) unit vectors."""
        ids = self.tokenizer.encode_batch(captions)
        parts = [self.text_encoder.forward(ids[i:i + BATCH]).pooled
                 for i in range(0, len(ids), BATCH)]
        return to_host(unit_forward(np.concatenate(parts))[0])
