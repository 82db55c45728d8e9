"""The folder of a text-to-image model, as the field has it: read, and written all or nothing."""
from tinydiff.atomic import write_folder
from tinydiff.jsonfile import read_object, write_json
from tinydiff.models.autoencoder import Autoencoder
from tinydiff.models.clip_text import CLIPText
from tinydiff.models.clip_vision import CLIPVision
from tinydiff.models.unet import UNet
from tinydiff.scheduler_config import SchedulerConfig
from tinydiff.text import Tokenizer

PARTS = {                               # the published index: part, library, class
    "vae": ["diffusers", "AutoencoderKL"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
}
OPTIONAL = {"vae", "image_encoder"}
UNUSED = {"safety_checker", "feature_extractor"}      # in published folders; not needed to draw
SCHEDULER_FILE = "scheduler_config.json"


def read_parts(folder):
    """Read all parts of a model.

    Returns
    -------
    parts : dict
        The arguments of `TextToImage`.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the part that is missing or damaged.
    """
    index = read_object(folder / "model_index.json")
    named = [part for part, value in index.items()
             if not part.startswith("_") and isinstance(value, list) and any(value)
             and part not in UNUSED]
    strange = [part for part in PARTS if part not in (*named, *OPTIONAL)] + [
        part for part in named if part not in PARTS]
    if strange:
        raise ValueError(f"{folder / 'model_index.json'}: {strange[0]} is "
                         f"{'not supported' if strange[0] in named else 'missing'}; "
                         f"a text-to-image model has {', '.join(PARTS)}")
    return {
        "unet": UNet.from_pretrained(folder / "unet"),
        "text_encoder": CLIPText.from_pretrained(folder / "text_encoder"),
        "tokenizer": Tokenizer.from_pretrained(folder / "tokenizer"),
        "scheduler": SchedulerConfig.from_config(
            read_object(folder / "scheduler" / SCHEDULER_FILE)),
        **{part: model.from_pretrained(folder / part)
           for part, model in (("vae", Autoencoder), ("image_encoder", CLIPVision))
           if part in named}}


def write_parts(pipe, folder, dtype):
    """Write all parts of a `TextToImage`, or leave the folder as it was.

    Raises
    ------
    ValueError
        If the folder holds anything else, which replacing it would lose.
    OSError
        If it cannot be written.
    """
    here = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    others = [name for name in here if name not in (*PARTS, "model_index.json")]
    if others:
        raise ValueError(f"{folder} also holds {others[0]}: name a new folder")

    def fill(new):
        models = {"vae": pipe.vae, "unet": pipe.unet, "text_encoder": pipe.text_encoder,
                  "image_encoder": pipe.image_encoder}
        models = {part: model for part, model in models.items() if model is not None}
        for part, model in models.items():
            model.save_pretrained(new / part, dtype)
        pipe.tokenizer.save_pretrained(new / "tokenizer")
        (new / "scheduler").mkdir()
        write_json(new / "scheduler" / SCHEDULER_FILE, pipe.scheduler.to_config())
        classes = {**PARTS, "scheduler": ["diffusers", pipe.scheduler.class_name]}
        index = {part: name for part, name in classes.items()
                 if part in models or part not in OPTIONAL}
        write_json(new / "model_index.json", {
            "_class_name": "TextToImage" if pipe.vae is None else "StableDiffusionPipeline",
            **index})
    write_folder(folder, fill)
