"""From a prompt to a picture: models, samplers and schedules put together."""
from tinydiff.atomic import recover_folder
from tinydiff.datasets import data_folder
from tinydiff.pipelines.attention_maps import WordMaps, attention_maps
from tinydiff.pipelines.clip import ClipEncoder
from tinydiff.pipelines.clip_guidance import ClipGuidance
from tinydiff.pipelines.denoiser import Denoiser, guided, network_timestep
from tinydiff.pipelines.prompts import check_prompts
from tinydiff.pipelines.text_to_image import TextToImage

__all__ = ["ClipEncoder", "ClipGuidance", "Denoiser", "TextToImage", "WordMaps", "attention_maps",
           "check_prompts", "guided", "load", "network_timestep", "shipped"]


def shipped():
    """Return the names of the models that come with the package."""
    folder = data_folder() / "models"
    return sorted(p.parent.name for p in folder.glob("*/model_index.json"))


def load(name_or_folder):
    """Open a model.

    Parameters
    ----------
    name_or_folder : str or path
        A name of `shipped`, which comes first, or a folder in the published layout.

    Returns
    -------
    TextToImage

    Raises
    ------
    ValueError, FileNotFoundError
        If there is no such model, or its files are damaged.

    Examples
    --------
    >>> pipe = load("emoji")                                            # doctest: +SKIP
    """
    if str(name_or_folder) in shipped():
        return TextToImage.from_pretrained(data_folder() / "models" / name_or_folder)
    folder = recover_folder(name_or_folder)
    if not folder.is_dir():
        raise ValueError(f"unknown model {str(name_or_folder)!r}; shipped: "
                         f"{', '.join(shipped()) or 'none'}; or name a folder")
    return TextToImage.from_pretrained(folder)
