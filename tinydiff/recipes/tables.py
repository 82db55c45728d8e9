"""What may stand in a recipe: tables, keys, and what each value may be."""
from math import inf

# What a value may be: in words, and as a test of one value.
COUNT = "a whole number from 1", lambda v: type(v) is int and v >= 1
WHOLE = "a whole number from 0", lambda v: type(v) is int and v >= 0
NUMBER = "a number from 0", lambda v: type(v) in (int, float) and 0 <= v < inf
POSITIVE = "a number above 0", lambda v: type(v) in (int, float) and 0 < v < inf
SHARE = "a number from 0 to 1", lambda v: type(v) in (int, float) and 0 <= v <= 1
SHARES = "two numbers from 0 to below 1", lambda v: (
    isinstance(v, list) and len(v) == 2 and all(SHARE[1](x) and x < 1 for x in v))
FLAG = "true or false", lambda v: isinstance(v, bool)
TEXT = "a text", lambda v: isinstance(v, str) and v != ""
TEXTS = "a list of texts", lambda v: isinstance(v, list) and v and all(TEXT[1](x) for x in v)

PUBLISHED = None                        # a table of a model's published fields: the model checks it

DATA = {"dataset": TEXT, "size": COUNT, "styles": TEXTS, "tones": FLAG, "folder": TEXT}
TOKENIZER = {"vocab_size": COUNT, "max_length": COUNT}
TRAIN = {"steps": COUNT, "batch_size": COUNT, "shards": COUNT, "lr": NUMBER,
         "lr_end": NUMBER, "warm_up": WHOLE, "betas": SHARES, "weight_decay": NUMBER,
         "clip_norm": NUMBER, "ema_decay": SHARE, "seed": WHOLE}
SAMPLES = {"every": COUNT, "steps": COUNT, "guidance": NUMBER, "prompts": TEXTS}
CLASS_SAMPLES = {"every": COUNT, "steps": COUNT, "guidance": NUMBER, "count": COUNT}
DENOISING = {"min_snr_gamma": NUMBER, "time_power": POSITIVE, "caption_dropout": SHARE}

# One entry a kind of recipe.  A table of tables is a stage: a run of its own.
KINDS = {
    "text_to_image": {
        "data": DATA, "tokenizer": TOKENIZER,
        "text_encoder": PUBLISHED, "unet": PUBLISHED, "scheduler": PUBLISHED,
        "loss": DENOISING, "train": TRAIN, "samples": SAMPLES,
    },
    "latent_diffusion": {
        "data": DATA, "tokenizer": TOKENIZER,
        "clip": {
            "text_encoder": PUBLISHED, "image_encoder": PUBLISHED,
            "loss": {"projection_dim": COUNT, "augment": FLAG},
            "train": TRAIN, "samples": {"every": COUNT, "prompts": TEXTS},
        },
        "autoencoder": {
            "model": PUBLISHED,
            "loss": {"mse": NUMBER, "l1": NUMBER, "gradient": NUMBER, "kl": NUMBER,
                     "perceptual": NUMBER, "adversarial": NUMBER, "augment": FLAG},
            "train": TRAIN, "samples": {"every": COUNT, "count": COUNT},
        },
        "unet": {
            "model": PUBLISHED, "scheduler": PUBLISHED,
            "loss": DENOISING, "train": TRAIN, "samples": SAMPLES,
        },
    },
    "class_to_image": {
        "data": DATA, "denoiser": PUBLISHED, "scheduler": PUBLISHED,
        "loss": {"min_snr_gamma": NUMBER, "time_power": POSITIVE, "label_dropout": SHARE},
        "train": TRAIN, "samples": CLASS_SAMPLES,
    },
    "classifier": {
        "data": DATA, "model": PUBLISHED, "scheduler": PUBLISHED,
        "loss": {"augment": FLAG, "noisy": SHARE}, "train": TRAIN,
        "samples": {"every": COUNT, "count": COUNT},
    },
}
STAGES = ("clip", "autoencoder", "unet")                # of "latent_diffusion", in order

SIZES = {"sample_size", "in_channels", "out_channels"}
DERIVED = {                             # fields that follow from the data and the other parts
    "text_encoder": {"vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id"},
    "unet": SIZES,
    "denoiser": SIZES | {"num_class_embeds", "num_embeds_ada_norm"},
    "model": {"in_channels", "num_classes"},
    "clip.text_encoder": {"vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id",
                          "pad_token_id", "projection_dim", "architectures"},
    "clip.image_encoder": {"image_size", "num_channels", "projection_dim", "architectures"},
    "autoencoder.model": SIZES | {"scaling_factor"},
    "unet.model": SIZES | {"cross_attention_dim"},
}
REQUIRED = {"data": {"size"}, "train": {"steps"}}       # of the other tables, every key


def check_recipe(recipe, where):
    """Refuse by name what is unknown, missing, or of the wrong kind.

    Parameters
    ----------
    recipe : dict
    where : object
        What to call it in the message.

    Raises
    ------
    ValueError
        Naming `where`, the key and what it should be.
    """
    tables = {k: v for k, v in recipe.items() if k not in ("name", "kind")}
    for key in ("name", "kind"):
        if key not in recipe:
            raise ValueError(f"{where}: {key} is missing")
    kind = recipe["kind"]
    if kind not in KINDS or not TEXT[1](recipe["name"]):
        known = " or ".join(map(repr, KINDS))
        raise ValueError(f"{where}: kind={kind!r}, name={recipe['name']!r}: the kind "
                         f"should be {known}, the name a text")
    _check_table(tables, KINDS[kind], "", where)


def _check_table(values, known, path, where):
    """Check one table, and the tables in it; `path` is its name with a dot, "" for the whole."""
    for key, value in values.items():
        name = path + key
        if key not in known:
            raise ValueError(f"{where}: unknown table [{name}]; known: {', '.join(known)}"
                             if _of_tables(known) else
                             f"{where}: unknown key {name}; [{path[:-1]}] has "
                             f"{', '.join(sorted(known))}")
        if _of_tables(known):
            if not isinstance(value, dict):
                raise ValueError(f"{where}: {name}={value!r} should be a table, [{name}]")
            for field in sorted(DERIVED.get(name, set()) & value.keys()):
                raise ValueError(f"{where}: {name}.{field} follows from the data: leave it out")
            if known[key] is not PUBLISHED:
                _check_table(value, known[key], name + ".", where)
        else:
            words, fits = known[key]
            if not fits(value):
                raise ValueError(f"{where}: {name}={value!r} should be {words}")
    needed = REQUIRED.get(path[:-1].rpartition(".")[2], known)
    for key in (k for k in known if k in needed and k not in values):
        raise ValueError(f"{where}: {path + key} is missing")


def _of_tables(known):
    return not any(isinstance(spec, tuple) for spec in known.values())
