"""The shipped recipe made small: a model that trains in a second, and pictures to train it on."""
import numpy as np

from tinydiff.backends.random import generator
from tinydiff.datasets import Pictures
from tinydiff.datasets.fashion_mnist import NAMES
from tinydiff.recipes import load_recipe, stage_recipe
from tinydiff.recipes.autoencoder import AutoencoderObjective, centre_latents
from tinydiff.recipes.class_to_image import ClassToImageObjective
from tinydiff.recipes.classifier import ClassifierObjective
from tinydiff.recipes.clip import ClipObjective
from tinydiff.recipes.data import new_tokenizer
from tinydiff.recipes.latent_diffusion import LatentDiffusionObjective, encode
from tinydiff.recipes.text_to_image import TextToImageObjective, new_pipeline
from tinydiff.train import TrainConfig, Trainer

SETTINGS = (
    "data.size=16", "tokenizer.vocab_size=530", "tokenizer.max_length=8",
    "text_encoder.hidden_size=8", "text_encoder.intermediate_size=16",
    "text_encoder.num_hidden_layers=1", "text_encoder.num_attention_heads=2",
    "unet.block_out_channels=[8, 16]",
    "unet.down_block_types=['DownBlock2D', 'CrossAttnDownBlock2D']",
    "unet.up_block_types=['CrossAttnUpBlock2D', 'UpBlock2D']",
    "unet.attention_head_dim=2", "unet.norm_num_groups=4", "unet.cross_attention_dim=8",
    "unet.class_embed_type=projection", "unet.projection_class_embeddings_input_dim=8",
    "loss.time_power=1", "loss.caption_dropout=0.1",
    "train.steps=3", "train.batch_size=4", "train.shards=2", "train.warm_up=1",
    "samples.every=1000", "samples.steps=2", "samples.prompts=['red heart', 'blue circle']",
)
LATENT_SETTINGS = (                     # of "emoji-32": 16 pixels, latents of 4x4
    "data.size=16", "tokenizer.vocab_size=530", "tokenizer.max_length=8",
    *(f"clip.{half}_encoder.{key}" for half in ("text", "image") for key in (
        "hidden_size=8", "intermediate_size=16", "num_hidden_layers=1", "num_attention_heads=2",
        "hidden_act=quick_gelu")),
    "clip.image_encoder.patch_size=8", "clip.loss.projection_dim=8",
    "clip.train.steps=3", "clip.train.batch_size=8", "clip.train.warm_up=1",
    "clip.samples.prompts=['red heart', 'pizza']",
    "autoencoder.model.latent_channels=4", "autoencoder.model.block_out_channels=[4, 4, 8]",
    "autoencoder.model.norm_num_groups=2",
    "autoencoder.train.steps=3", "autoencoder.train.batch_size=4", "autoencoder.train.warm_up=1",
    "autoencoder.samples.count=4",
    "unet.model.block_out_channels=[8, 16]",
    "unet.model.down_block_types=['DownBlock2D', 'CrossAttnDownBlock2D']",
    "unet.model.up_block_types=['CrossAttnUpBlock2D', 'UpBlock2D']",
    "unet.model.attention_head_dim=2", "unet.model.norm_num_groups=4", "unet.loss.time_power=1",
    "unet.train.steps=3", "unet.train.batch_size=4", "unet.train.warm_up=1",
    "unet.samples.steps=2", "unet.samples.prompts=['red heart', 'pizza']",
)
CLASS_SETTINGS = {                      # of the fashion recipes, for pictures of 8 or 28 pixels
    "fashion-unet": (
        "denoiser.block_out_channels=[8, 16]",
        "denoiser.down_block_types=['DownBlock2D', 'DownBlock2D']",
        "denoiser.up_block_types=['UpBlock2D', 'UpBlock2D']", "denoiser.norm_num_groups=4",
        "samples.steps=2"),
    "fashion-dit": (
        "denoiser.num_attention_heads=2", "denoiser.attention_head_dim=8",
        "denoiser.num_layers=2", "denoiser.patch_size=4", "samples.steps=2"),
    "fashion-classifier": (
        "model.block_out_channels=[8, 16]", "model.norm_num_groups=4", "loss.noisy=0.5"),
    "all": (
        "scheduler.num_train_timesteps=20", "scheduler.clip_sample=false",
        "train.steps=3", "train.batch_size=4", "train.warm_up=1", "samples.every=1000",
        "samples.count=1"),
}
LABELS = ("red heart", "blue circle", "green apple", "orange star", "pizza", "black cat",
          "white dog", "rocket", "sailboat", "grinning face")


def tiny_recipe(*settings):
    """Return the recipe "emoji-pixel" with everything made small, then `settings` applied."""
    return load_recipe("emoji-pixel", [*SETTINGS, *settings])


def tiny_pictures(count=10, size=16):
    """Return `count` pictures: a disc of one colour on white, another colour and size each."""
    axis = np.arange(size) - (size - 1) / 2
    radius = np.hypot(axis[:, None], axis)                            # (S, S)
    colours = np.random.default_rng(0).integers(0, 200, (count, 3, 1, 1))
    inside = radius < np.linspace(size / 5, size / 2, count)[:, None, None]
    images = np.where(inside[:, None], colours, 255).astype(np.uint8)  # (N, 3, S, S)
    records = [{"label": LABELS[k % len(LABELS)], "tags": [f"tag {k}", "shape"], "style": "noto",
                "held_out": None} for k in range(count)]
    return Pictures(images, records)


def tiny_objective(*settings, count=10, **options):
    """Return what `tiny_recipe` trains; `options` are those of `TextToImageObjective`."""
    return TextToImageObjective(tiny_recipe(*settings), tiny_pictures(count), **options)


def tiny_trainer(*settings, count=10, **options):
    """Return a fresh `Trainer` of `tiny_objective`."""
    recipe = tiny_recipe(*settings)
    return Trainer(tiny_objective(*settings, count=count, **options),
                   TrainConfig(**recipe["train"]))


def tiny_class_pictures(count=12, size=8, classes=3):
    """Return grey pictures of `classes` classes: a light bar on black, thicker for each class."""
    rows = np.random.default_rng(0).integers(1, size - classes - 1, count)
    images = np.zeros((count, 1, size, size), np.uint8)
    records = []
    for k, row in enumerate(rows.tolist()):
        images[k, 0, row:row + 1 + k % classes, 1:-1] = 200 + k % 40
        records.append({"label": NAMES[k % classes], "class": k % classes, "tags": [], "style": "",
                        "held_out": None})
    return Pictures(images, records)


def write_fashion(folder, count=30):
    """Write both splits of a small Fashion-MNIST, its ten classes in turn, as IDX files."""
    pictures = tiny_class_pictures(count, size=28, classes=10)
    labels = np.array([r["class"] for r in pictures.records], np.uint8)
    for split in ("train", "t10k"):
        for name, array in (("images-idx3", pictures.images[:, 0]), ("labels-idx1", labels)):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes()
            (folder / f"{split}-{name}-ubyte").write_bytes(header + array.tobytes())


def tiny_class_objective(*settings, recipe="fashion-unet", init=None, **pictures):
    """Return what a fashion recipe made small trains, on `tiny_class_pictures`."""
    recipe = tiny_class_recipe(*settings, recipe=recipe)
    return ClassToImageObjective(recipe, tiny_class_pictures(**pictures), init)


def tiny_classifier_objective(*settings, held_out=None, **pictures):
    """Return what "fashion-classifier" made small trains, on `tiny_class_pictures`."""
    recipe = tiny_class_recipe(*settings, recipe="fashion-classifier")
    return ClassifierObjective(recipe, tiny_class_pictures(**pictures), held_out)


def tiny_class_recipe(*settings, recipe="fashion-unet"):
    """Return a fashion recipe with everything made small, then `settings` applied."""
    return load_recipe(recipe, [*CLASS_SETTINGS[recipe], *CLASS_SETTINGS["all"], *settings])


def tiny_class_pipeline(*settings, **options):
    """Return a `ClassToImage` that answers every class, seed and step differently."""
    objective = tiny_class_objective(*settings, **options)
    return objective.pipeline(wake(objective.model))


def wake(model, seed=0):
    """Fill every parameter at random, those too that start at zero, keeping their dtype.

    A fresh U-Net answers zero whatever it is asked: its residual branches and its last
    convolution start there.
    """
    for name, p in model.parameters():
        z = generator(seed, f"wake {name}").standard_normal(p.shape)
        fan_in = np.prod(p.shape[1:])                                 # 1 for scales and shifts
        value = z / np.sqrt(fan_in) if len(p.shape) > 1 else 0.1 * z
        value = value + 1 if name.endswith("weight") and len(p.shape) == 1 else value
        if p.value is None:
            p.value = value.astype(np.float32)
        else:
            p.value[...] = value
    return model


def tiny_latent_recipe(*settings):
    """Return the recipe "emoji-32" with everything made small, then `settings` applied."""
    return load_recipe("emoji-32", [*LATENT_SETTINGS, *settings])


def tiny_latent_parts(recipe, pictures):
    """Return a CLIP, its tokenizer and an autoencoder for `recipe`, filled at random."""
    tokenizer = new_tokenizer(pictures.records, recipe["tokenizer"])
    clip = ClipObjective(stage_recipe(recipe, "clip"), pictures, tokenizer).model
    autoencoder = AutoencoderObjective(stage_recipe(recipe, "autoencoder"), pictures).model
    for model in (clip, autoencoder):
        wake(model)
    return clip, tokenizer, centre_latents(autoencoder, pictures.array())


def tiny_judged_objective():
    """Return what the stage "autoencoder" trains with every judge that there is."""
    recipe, pictures = tiny_latent_recipe(
        "autoencoder.loss.perceptual=0.1", "autoencoder.loss.adversarial=0.3"), tiny_pictures()
    tokenizer = new_tokenizer(pictures.records, recipe["tokenizer"])
    vision = wake(ClipObjective(stage_recipe(recipe, "clip"), pictures, tokenizer).model).vision
    return AutoencoderObjective(stage_recipe(recipe, "autoencoder"), pictures,
                                vision=vision.freeze())


def tiny_latent_objective(*settings, count=10, init=None):
    """Return what the stage "unet" of `tiny_latent_recipe` trains."""
    recipe, pictures = tiny_latent_recipe(*settings), tiny_pictures(count)
    clip, tokenizer, autoencoder = tiny_latent_parts(recipe, pictures)
    return LatentDiffusionObjective(stage_recipe(recipe, "unet"), pictures, clip, tokenizer,
                                    autoencoder, encode(autoencoder, pictures), init)


def tiny_latent_pipeline(*settings):
    """Return a `TextToImage` on latents that answers every prompt, seed and step differently."""
    objective = tiny_latent_objective(*settings)
    return objective.pipeline(wake(objective.model))


def tiny_pipeline(*settings, pooled=True):
    """Return a `TextToImage` that answers every prompt, seed and step differently.

    The text reaches the U-Net through its tokens and, if `pooled`, beside the time as well.
    """
    recipe = tiny_recipe(*settings)
    if not pooled:
        del recipe["unet"]["class_embed_type"]
    pipe = new_pipeline(recipe, tiny_pictures())
    wake(pipe.unet)
    wake(pipe.text_encoder)
    return pipe


def same(a, b):
    """Say whether two dicts of arrays are equal bit for bit."""
    return a.keys() == b.keys() and all(
        a[k].dtype == b[k].dtype and a[k].tobytes() == b[k].tobytes() for k in a)
