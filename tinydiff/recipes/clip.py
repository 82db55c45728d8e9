"""The objective of a "clip" recipe: pictures and captions in one space, by contrast.

A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
2021, arXiv:2103.00020, Sections 2.3 to 2.5.
"""
from math import log

import numpy as np

from tinydiff.backends.device import follow
from tinydiff.backends.random import generator
from tinydiff.cross_entropy import contrastive
from tinydiff.datasets import augment, caption, captions
from tinydiff.metrics import match_rank, recall
from tinydiff.models.clip import CLIP
from tinydiff.models.pretrained import build
from tinydiff.nn import Tape
from tinydiff.pictures import from_bytes, sheet
from tinydiff.pipelines.clip import ClipEncoder

LARGEST_SCALE = log(100)                # Section 2.5: similarities are never scaled by more


class ClipObjective:
    """What an update of CLIP computes; see `tinydiff.train.Trainer`.

    The loss of a picture depends on all the others in its batch, so a batch is one shard.

    Parameters
    ----------
    recipe : dict
        The tables ``text_encoder``, ``image_encoder``, ``loss`` and ``train``.
    pictures : Pictures
        The training pictures with their captions.
    tokenizer : Tokenizer
    init : CLIP, optional
        Start from this model's weights instead of at random.
    held_out : Pictures, optional
        What `metrics` looks for among all pictures; without, the training pictures themselves.

    Raises
    ------
    ValueError
        Naming the field that is wrong.
    """

    def __init__(self, recipe, pictures, tokenizer, init=None, held_out=None):
        if recipe["train"].get("shards") != 1:
            raise ValueError("[train] shards must be 1: the contrastive loss compares every "
                             "picture of a batch with every caption")
        self.pictures = pictures
        self.held_out = held_out
        self.size = len(pictures)
        self.seed = recipe["train"].get("seed", 0)
        self.loss = recipe["loss"]
        self.tokenizer = tokenizer
        self.model = new_clip(recipe, pictures, tokenizer)
        if init is not None:
            self.model.load_state(init.state())
        # Pictures with the same caption are right answers for one another: see `contrastive`.
        numbers = {}
        self.concept = np.array([numbers.setdefault(caption(r), len(numbers))
                                 for r in pictures.records])

    def shard(self, model, step, pictures, share):
        """Forward and backward on one whole batch; return its loss."""
        positions, indices = zip(*pictures, strict=True)
        x = self.pictures.array(list(indices))                        # (B, C, S, S)
        if self.loss["augment"]:
            x = augment(x, self.seed, step, positions)
        x = follow(x, model.like())
        ids = self.tokenizer.encode_batch(
            [captions(self.pictures.records[i], generator(self.seed, "caption", step, k))
             for k, i in pictures])                                   # (B, N)
        # What follows every caption's end is padding, which no pooled vector has seen.
        ids = ids[:, :(ids == self.tokenizer.end_id).argmax(axis=1).max() + 1]
        concept = self.concept[list(indices)]
        alike = follow(concept[:, None] == concept, x)

        tape = Tape()
        t = model.logit_scale.value
        np.minimum(t, LARGEST_SCALE, out=t)
        image, text = model.forward(x, ids, tape)
        loss, dimage, dtext, dlogit_scale = contrastive(image, text, float(t), alike)
        model.logit_scale.accumulate(np.full_like(t, share * dlogit_scale))
        model.backward(share * dimage, share * dtext, tape)
        return loss

    def pipeline(self, model):
        """Return `model`, the trained one or its average: it saves itself."""
        return model

    def encoder(self, model):
        """Wrap `model` for use."""
        return ClipEncoder(model.text, model.vision, self.tokenizer)

    def metrics(self, model):
        """Look captions up among pictures, and pictures among captions.

        Returns
        -------
        metrics : dict of str to float
            Shares, of the held-out pairs where there are any: right at once, and among the first
            five, of all the pictures or captions and, "in batch", of 256 held-out ones.
        """
        every, asked = self.pictures, self.pictures
        truth = np.arange(self.size)
        what = "training"
        if self.held_out is not None:
            what, asked = "held-out", self.held_out
            truth = self.size + np.arange(len(asked))
        encoder = self.encoder(model)
        image, text = (np.concatenate(parts) for parts in zip(*(
            (encoder.encode_image(from_bytes(p.images)),
             encoder.encode_text([caption(r) for r in p.records]))
            for p in ([every] if asked is every else [every, asked])), strict=True))
        found = {}
        for name, query, library in ((f"{what} caption to picture", text, image),
                                     (f"{what} picture to caption", image, text)):
            rank = match_rank(query[truth], library, truth)
            found |= {f"{name}, at {k}": recall(rank, k) for k in (1, 5)}
            batch = truth[generator(0, "in batch").permutation(len(truth))[:256]]
            rank = match_rank(query[batch], library[batch], np.arange(len(batch)))
            found[f"{name}, in batch"] = recall(rank, 1)
        return found

    def sample_sheet(self, model, samples):
        """Draw, for each prompt of the table ``[samples]``, a row of the nearest pictures."""
        encoder = self.encoder(model)
        image = encoder.encode_image(from_bytes(self.pictures.images))
        similarity = encoder.encode_text(samples["prompts"]) @ image.T
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :8]
        return sheet(self.pictures.array(nearest.reshape(-1)), columns=nearest.shape[1], scale=2)


def new_clip(recipe, pictures, tokenizer):
    """Build the model of a recipe, at random."""
    _, channels, side, _ = pictures.images.shape
    text = {**recipe["text_encoder"], "vocab_size": len(tokenizer),
            "max_position_embeddings": tokenizer.model_max_length,
            "bos_token_id": tokenizer.start_id, "eos_token_id": tokenizer.end_id,
            "pad_token_id": tokenizer.pad_id}
    image = {**recipe["image_encoder"], "image_size": side, "num_channels": channels}
    clip = build(CLIP, {"text_config": text, "vision_config": image,
                        "projection_dim": recipe["loss"]["projection_dim"]}, "clip")
    clip.initialise(recipe["train"].get("seed", 0))
    # White paper says nothing: a white patch, all ones, starts as its place alone.
    embeddings = clip.vision.vision_model.embeddings
    white = embeddings.patch_embedding.weight.value.sum(axis=(1, 2, 3))             # (D,)
    embeddings.position_embedding.weight.value[1:] -= white
    return clip
