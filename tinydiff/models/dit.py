"""DiT, the transformer that denoises: picture, time and class in, noise (or x0, or v) out.

W. Peebles and S. Xie, "Scalable Diffusion Models with Transformers", 2022, arXiv:2212.09748.  The
configuration fields and the tensor names are those of the published ``DiTTransformer2DModel`` files
(and of ``Transformer2DModel`` ones, as they were called before).

Those files have the embedders of time and class in every block, and read them in every block.  The
published weights are one set, copied: here they are one set too, *tied*.  It is trained and counted
once, and written to every block on saving.  A file whose blocks differ, as training in diffusers
leaves them, is opened untied and stays so.

`forward` cuts the picture into tokens and puts them together again at the end; `backward` is the
same path read from the bottom up.
"""
import copy
from typing import ClassVar

import numpy as np

from tinydiff import ops
from tinydiff.models.dit_blocks import TIME_FEATURES, Condition, DiTBlock, Modulate
from tinydiff.models.dit_config import dit_config
from tinydiff.models.patches import PatchEmbedding, Unpatchify, sincos_positions
from tinydiff.models.pretrained import load_model, save_model
from tinydiff.nn import NO_TAPE, LayerNorm, Linear, Module
from tinydiff.nn.initialisers import xavier_uniform, zeros


class PositionedPatches(Module):
    """The published ``pos_embed``: a vector for each patch, plus a fixed one for its place."""

    def __init__(self, channels, dim, patch_size, sample_size):
        self.proj = PatchEmbedding(channels, dim, patch_size, xavier_uniform())
        self.side = sample_size // patch_size

    def forward(self, x, tape=NO_TAPE):
        """Map pictures (B, C, H, W) to tokens (B, N, D)."""
        h = self.proj.forward(x, tape)                                # (B, N, D)
        rows, columns = (n // self.proj.patch_size for n in x.shape[2:])
        return h + sincos_positions(rows, columns, h.shape[2], self.side, like=h)

    def backward(self, dh, tape, needs_dx=True):
        """Return dx, the pictures' shape; None if nobody needs it."""
        return self.proj.backward(dh, tape, needs_dx)


class DiT(Module):
    """A denoising transformer, conditioned on time and class.

    Parameters
    ----------
    **config
        Fields of a published ``config.json``; see `tinydiff.models.dit_config` for the supported
        ones.  Missing fields take the published defaults.  With ``out_channels`` twice
        ``in_channels`` the second half of the output is for the variance.

    Attributes
    ----------
    config : dict
        Every supported field.
    null_class : int
        The label that means "no class": what training shows in the place of a dropped label, and
        guidance asks for beside the wanted one.  (This network drops no label by itself.)

    Raises
    ------
    ValueError
        Naming the field or the value that is not supported.

    Examples
    --------
    >>> dit = DiT(num_attention_heads=2, attention_head_dim=8, num_layers=2, in_channels=1,
    ...           sample_size=8, num_embeds_ada_norm=10).initialise(seed=0)
    >>> dit.forward(np.ones((2, 1, 8, 8), "float32"), 999, np.array([3, dit.null_class])).shape
    (2, 1, 8, 8)
    """

    weights_name = "diffusion_pytorch_model.safetensors"
    config_header: ClassVar = {"_class_name": "DiTTransformer2DModel"}
    former_class_names = ("Transformer2DModel",)

    def __init__(self, **config):
        self.config = c = dit_config(config)
        self.null_class = c["num_embeds_ada_norm"]
        dim = c["num_attention_heads"] * c["attention_head_dim"]
        out_channels = c["out_channels"] or c["in_channels"]
        emb = Condition(c["num_embeds_ada_norm"], dim)

        self.pos_embed = PositionedPatches(c["in_channels"], dim, c["patch_size"],
                                           c["sample_size"])
        self.transformer_blocks = [DiTBlock(c, emb) for _ in range(c["num_layers"])]
        self.norm_out = LayerNorm(dim, eps=1e-6, affine=False)
        self.proj_out_1 = Linear(dim, 2 * dim, fill=zeros())
        self.modulate_out = Modulate()
        self.proj_out_2 = Linear(dim, c["patch_size"] ** 2 * out_channels, fill=zeros())
        self.unpatchify = Unpatchify(c["patch_size"])

    # ---- the two passes ----

    def forward(self, sample, timestep, class_labels=None, tape=NO_TAPE):
        """Predict the noise (or x0, or v, whatever it was trained for) in `sample`.

        Parameters
        ----------
        sample : (B, in_channels, H, W) ndarray
            Of any size that `patch_size` divides; the places of its patches are spread over those
            of the configured `sample_size`.
        timestep : float or (B,) ndarray
            The network's own timestep; a DDPM table's row t is the network's t - 1.
        class_labels : (B,) ndarray of int
            From 0 to `null_class`, which means none.
        tape : Tape, optional

        Returns
        -------
        (B, out_channels, H, W) ndarray

        Raises
        ------
        ValueError
            If the labels are missing or out of range, or the picture does not fit.
        """
        self._check(sample, class_labels)
        conditions = self._conditions(sample, timestep, class_labels, tape)
        x = self.pos_embed.forward(sample, tape)                      # (B, N, D)
        for block, k in zip(self.transformer_blocks, self._places(), strict=True):
            x = block.forward(x, conditions[k], tape)
        B, _, D = x.shape
        two = self.proj_out_1.forward(conditions[0], tape).reshape(B, 2, D)
        x = self.norm_out.forward(x, tape)
        x = self.modulate_out.forward(x, two[:, 1], two[:, 0], tape)  # the shift stands first
        x = self.proj_out_2.forward(x, tape)
        return self.unpatchify.forward(x, sample.shape[2] // self.config["patch_size"], tape)

    def backward(self, dy, tape, needs_dsample=True):
        """Pull `dy` (B, out_channels, H, W) back to the sample and every parameter.

        Training has no use for the sample's own gradient, and skips it: `needs_dsample=False`.

        Returns
        -------
        dsample : (B, in_channels, H, W) ndarray or None
        """
        embedders = self.embedders()
        dconditions = [0] * len(embedders)
        dx = self.unpatchify.backward(dy, tape)
        dx = self.proj_out_2.backward(dx, tape)
        dx, dscale, dshift = self.modulate_out.backward(dx, tape)
        dx = self.norm_out.backward(dx, tape)
        dconditions[0] = self.proj_out_1.backward(np.concatenate([dshift, dscale], axis=1), tape)
        for block, k in zip(reversed(self.transformer_blocks), reversed(self._places()),
                            strict=True):
            dx, dcondition = block.backward(dx, tape)
            dconditions[k] = dconditions[k] + dcondition
        dsample = self.pos_embed.backward(dx, tape, needs_dsample)
        for emb, dcondition in zip(reversed(embedders), reversed(dconditions), strict=True):
            emb.backward(dcondition, tape)
        return dsample

    def _conditions(self, sample, timestep, class_labels, tape):
        """Return what the blocks are told, (B, D): one for all, or where untied one for each."""
        like = self.proj_out_2.weight.value
        embedders = self.embedders()
        t = np.zeros(sample.shape[0], sample.dtype, like=sample) + timestep
        sinusoid = ops.timestep_embedding(t, TIME_FEATURES, flip_sin_to_cos=True, dtype=like.dtype)
        labels = embedders[0].class_embedder.embedding_table.place(class_labels)
        return [emb.forward(sinusoid, labels, tape) for emb in embedders]

    def _check(self, sample, class_labels):
        """Refuse, in one line, what does not fit."""
        C = self.config["in_channels"]
        if sample.shape[1] != C:
            raise ValueError(f"a sample of {sample.shape[1]} channels: this DiT takes {C}")
        if class_labels is None:
            raise ValueError("this DiT is class-conditional: class_labels are missing; "
                             f"{self.null_class}, its null_class, means none")
        if class_labels.shape != sample.shape[:1]:
            raise ValueError(f"class_labels of shape {class_labels.shape} for "
                             f"{sample.shape[0]} pictures: one for each is needed")

    # ---- one set of embedders, or one a block ----

    @property
    def tied(self):
        """Whether all blocks share one set of embedders."""
        first, *others = self.transformer_blocks
        return all(block.norm1.emb is first.norm1.emb for block in others)

    def embedders(self):
        """Return the sets of embedders: one, or where untied one for each block."""
        blocks = self.transformer_blocks[:1] if self.tied else self.transformer_blocks
        return [block.norm1.emb for block in blocks]

    def untie(self):
        """Give each block its own copy of the first one's embedders.

        Do it before an optimiser is made, which would not know of the copies.
        """
        first, *others = self.transformer_blocks
        for block in others:
            block.norm1.emb = copy.deepcopy(first.norm1.emb)
        return self._named()

    def _places(self):
        """Return for each block which of `embedders` is its own."""
        n = len(self.transformer_blocks)
        return [0] * n if self.tied else list(range(n))

    def parameters(self, prefix=""):
        """Yield ``(name, Parameter)`` once each; tied embedders under the first block's name."""
        seen = set()
        for name, p in super().parameters(prefix):
            if id(p) not in seen:
                seen.add(id(p))
                yield name, p

    # ---- files ----

    def published_state(self):
        """Return ``{name: value}`` as files have it: tied embedders stand in every block."""
        return {name: p.value for name, p in super().parameters()}

    def load_published(self, tensors, dtype=np.float32):
        """Take every parameter from a file's tensors; where its blocks' embedders differ, untie.

        Parameters
        ----------
        tensors : dict of str to ndarray
        dtype : numpy dtype, default float32

        Raises
        ------
        ValueError
            Naming the tensors that are missing, unexpected or misshapen.
        """
        first = {id(p): name for name, p in self.parameters()}
        copies = {name: first[id(p)] for name, p in super().parameters() if first[id(p)] != name}
        pairs = [(tensors.get(name), tensors.get(original)) for name, original in copies.items()]
        if any(a is None or b is None or not np.array_equal(a, b) for a, b in pairs):
            self.untie()                              # load_state then says what is missing, if any
        else:
            tensors = {name: values for name, values in tensors.items() if name not in copies}
        self.load_state(tensors, dtype)

    @classmethod
    def from_pretrained(cls, folder, dtype=np.float32):
        """Open a folder with ``config.json`` and a safetensors file."""
        return load_model(cls, folder, dtype)

    def save_pretrained(self, folder, dtype="float32"):
        """Write ``config.json`` and the weights, as the published files have them."""
        save_model(self, folder, dtype)
