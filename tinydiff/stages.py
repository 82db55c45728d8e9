"""A run in stages: CLIP, the autoencoder, and the U-Net that works between the two.

::

    RUN/recipe.json               the recipe, with all --set applied
    RUN/tokenizer/                trained on the captions, before all else
    RUN/clip/                     a run as `tinydiff.runs` has it; model/ is a CLIPModel folder
    RUN/autoencoder/              the same; model/ is an AutoencoderKL folder
    RUN/unet/                     the same; model/ is the finished Stable Diffusion folder
        latents.safetensors       every training picture, encoded once

CLIP and the autoencoder know nothing of each other and may be trained at the same time, unless the
autoencoder's loss has a perceptual term: CLIP's image encoder judges it.
"""
from functools import cached_property
from pathlib import Path

import numpy as np

from tinydiff.atomic import recover_folder, write_folder
from tinydiff.jsonfile import read_object, write_json
from tinydiff.models import CLIP, Autoencoder
from tinydiff.recipes import stage_recipe
from tinydiff.recipes.autoencoder import AutoencoderObjective, new_autoencoder
from tinydiff.recipes.clip import ClipObjective
from tinydiff.recipes.data import held_out_pictures, new_tokenizer, training_pictures
from tinydiff.recipes.latent_diffusion import LatentDiffusionObjective, cached_latents, new_unet
from tinydiff.recipes.tables import STAGES
from tinydiff.runs import Run
from tinydiff.scheduler_config import SchedulerConfig
from tinydiff.text import Tokenizer
from tinydiff.train import TrainConfig

LAST_FILE = {"clip": "config.json", "autoencoder": "config.json", "unet": "model_index.json"}


class StagedRun:
    """The folder of a run in stages.

    Parameters
    ----------
    folder : path-like
    recipe : dict
        Of kind "latent_diffusion", as `tinydiff.recipes.load_recipe` returns it.
    init : TextToImage, optional
        A model to go on from: a further leg.  Stages that are not trained again are taken from it.
    init_name : str, optional
        What to write down of it.
    progress : callable, optional
        Wraps the list of batches that are encoded to latents, e.g. ``tqdm``.
    where : {"cpu", "cuda"}
        Where they are encoded.
    """

    def __init__(self, folder, recipe, init=None, init_name=None, progress=iter, where="cpu"):
        self.folder = Path(folder)
        self.recipe = recipe
        self.init = init
        self.init_name = init_name
        self.progress = progress
        self.where = where

    def start(self, stages=STAGES):
        """Make the folder; with `init`, put the parts into it that are not trained again.

        Raises
        ------
        ValueError
            If one of `stages` was begun here and not finished, or any by another recipe; if the
            parts that `init` would put here are here already, or it lacks one.
        """
        for stage in STAGES:
            if not self.finished(stage) and stage in stages:
                self.run(stage).check_absent()
        if self.init is not None and stages[0] in ("clip", "unet"):
            if self.run("unet").checkpoint().exists() or self._model("clip").is_dir():
                raise ValueError(f"{self.folder} holds stages of its own: name another folder "
                                 "with --run")
            write_folder(self.folder / "tokenizer", self.init.tokenizer.save_pretrained)
        if self.init is not None and stages[0] == "unet":
            join_clip(self.init).save_pretrained(self._model("clip"))
            self.init.vae.save_pretrained(self._model("autoencoder"))
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "recipe.json", self.recipe)

    def check_present(self):
        """Raise FileNotFoundError if no run was started in the folder."""
        if not (self.folder / "recipe.json").is_file():
            raise FileNotFoundError(f"{self.folder} holds no run to resume; leave --resume out to "
                                    "start one")

    def check(self, stages=STAGES):
        """Build every network once, so that a fault in the last stage is found before the first.

        Raises
        ------
        ValueError
            Naming the table and the key that is wrong.
        """
        for stage in stages:
            TrainConfig(**self.recipe[stage]["train"])
        size = self.pictures.images.shape[-1]
        autoencoder = new_autoencoder(stage_recipe(self.recipe, "autoencoder"), self.pictures)
        if size % autoencoder.factor:
            raise ValueError(f"[data] size={size}: this autoencoder needs a multiple of "
                             f"{autoencoder.factor}")
        if "clip" in stages:
            self.objective("clip")
        if "unet" in stages:
            unet = stage_recipe(self.recipe, "unet")
            SchedulerConfig.from_config(unet["scheduler"])
            new_unet(unet, autoencoder.config["latent_channels"], size // autoencoder.factor,
                     self.recipe["clip"]["text_encoder"]["hidden_size"])

    def run(self, stage):
        """Return the `Run` of one stage."""
        recipe = stage_recipe(self.recipe, stage)
        if self.recipe["data"].get("folder") and "prompts" in recipe["samples"]:
            labels = list(dict.fromkeys(r["label"] for r in self.pictures.records))
            recipe["samples"] = {**recipe["samples"], "prompts": labels[:8]}
        return Run(self.folder / stage, recipe, self.init_name)

    def finished(self, stage):
        """Say whether a stage has been trained to its end, by the recipe as it stands.

        Raises
        ------
        ValueError
            If it was trained by another recipe.
        """
        if not (self._model(stage) / LAST_FILE[stage]).is_file():
            return False
        path = self.folder / stage / "recipe.json"
        if path.is_file():                                            # none: it came by --init
            made = read_object(path)
            changed = [table for table, value in stage_recipe(self.recipe, stage).items()
                       if table not in ("name", "samples") and value != made.get(table)]
            if changed:
                raise ValueError(f"{path.parent} was trained by another recipe: "
                                 f"[{stage}.{changed[0]}] differs; repeat its --set and --data, "
                                 "or name another folder with --run")
        return True

    @cached_property
    def pictures(self):
        """The training pictures."""
        return training_pictures(self.recipe["data"])

    @cached_property
    def tokenizer(self):
        """The tokenizer, trained when first asked for."""
        folder = recover_folder(self.folder / "tokenizer")
        if not folder.is_dir():
            tokenizer = new_tokenizer(self.pictures.records, self.recipe["tokenizer"])
            write_folder(folder, tokenizer.save_pretrained)
        return Tokenizer.from_pretrained(folder)

    def objective(self, stage):
        """Return what a stage's `Trainer` trains.

        Raises
        ------
        ValueError, FileNotFoundError
            If an earlier stage that it builds on is missing.
        """
        recipe = stage_recipe(self.recipe, stage)
        if stage == "clip":
            return ClipObjective(recipe, self.pictures, self.tokenizer,
                                 init=self.init and join_clip(self.init),
                                 held_out=held_out_pictures(self.recipe["data"]))
        if stage == "autoencoder":
            vision = self._judge() if recipe["loss"]["perceptual"] else None
            return AutoencoderObjective(recipe, self.pictures, init=self.init and self.init.vae,
                                        held_out=held_out_pictures(self.recipe["data"]),
                                        vision=vision)
        for needed in ("clip", "autoencoder"):
            self._need(needed, "the U-Net")
        clip = CLIP.from_pretrained(self._model("clip"))
        autoencoder = Autoencoder.from_pretrained(self._model("autoencoder")).to(self.where)
        latents = cached_latents(self.folder / "unet" / "latents.safetensors", autoencoder,
                                 self.pictures, self.progress)
        return LatentDiffusionObjective(recipe, self.pictures, clip, self.tokenizer, autoencoder,
                                        latents, init=self.init and self.init.unet)

    def _need(self, stage, who):
        """Raise ValueError if a stage that another builds on is not finished."""
        if not self.finished(stage):
            raise ValueError(f"{self.folder / stage} has not been trained to its end: {who} needs "
                             f"it; run --stage {stage} first")

    def _judge(self):
        """Return the image encoder of the stage "clip", or of the model to go on from, at rest."""
        vision = self.init and not self.finished("clip") and self.init.image_encoder
        if not vision:
            self._need("clip", "[autoencoder.loss] perceptual")
            vision = CLIP.from_pretrained(self._model("clip")).vision
        return vision.freeze()

    def _model(self, stage):
        return self.folder / stage / "model"


def join_clip(pipe):
    """Join the two encoders of a model to the CLIP that they were, all but its temperature.

    Raises
    ------
    ValueError
        If it has no image encoder.
    """
    text, vision = pipe.text_encoder, pipe.image_encoder
    if vision is None or pipe.vae is None or text.text_projection is None:
        raise ValueError("a further leg needs a model with vae, image_encoder and a text encoder "
                         "with a projection, as train makes it")
    clip = CLIP(text_config=text.config, vision_config=vision.config,
                projection_dim=text.config["projection_dim"])
    scale = np.full((), clip.config["logit_scale_init_value"], np.float32)
    clip.load_state({**text.state(), **vision.state(), "logit_scale": scale})
    return clip
