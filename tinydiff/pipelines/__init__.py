"""From a prompt or a class to a picture: models, samplers and schedules put together."""
from tinydiff.atomic import recover_folder
from tinydiff.datasets import data_folder
from tinydiff.jsonfile import read_object
from tinydiff.pipelines.attention_maps import WordMaps, attention_maps
from tinydiff.pipelines.class_to_image import CLASS_NAMES, ClassToImage
from tinydiff.pipelines.clip import ClipEncoder
from tinydiff.pipelines.clip_guidance import ClipGuidance
from tinydiff.pipelines.denoiser import Denoiser, guided, network_timestep
from tinydiff.pipelines.folder import INDEX_FILE
from tinydiff.pipelines.prompts import check_prompts
from tinydiff.pipelines.text_to_image import TextToImage

__all__ = ["ClassToImage", "ClipEncoder", "ClipGuidance", "Denoiser", "TextToImage", "WordMaps",
           "attention_maps", "check_prompts", "guided", "load", "network_timestep", "shipped"]


def shipped():
    """Return the names of the models that come with the package."""
    folder = data_folder() / "models"
    return sorted(p.parent.name for p in folder.glob("*/model_index.json"))


def load(name_or_folder, kind=None):
    """Open a model.

    Parameters
    ----------
    name_or_folder : str or path
        A name of `shipped`, which comes first, or a folder in the published layout.
    kind : {TextToImage, ClassToImage}, optional
        What it has to be.

    Returns
    -------
    TextToImage or ClassToImage
        As the folder's ``model_index.json`` says.

    Raises
    ------
    ValueError, FileNotFoundError
        If there is no such model, it is of the other kind, or its files are damaged.

    Examples
    --------
    >>> pipe = load("emoji")                                            # doctest: +SKIP
    """
    if str(name_or_folder) in shipped():
        folder = data_folder() / "models" / name_or_folder
    else:
        folder = recover_folder(name_or_folder)
        if not folder.is_dir():
            raise ValueError(f"unknown model {str(name_or_folder)!r}; shipped: "
                             f"{', '.join(shipped()) or 'none'}; or name a folder")
    by_class = read_object(folder / INDEX_FILE).get("_class_name") in CLASS_NAMES
    found = ClassToImage if by_class else TextToImage
    if kind not in (None, found):
        raise ValueError(f"{name_or_folder} is a model of {'classes' if by_class else 'prompts'}; "
                         f"here one of {'prompts' if by_class else 'classes'} is needed")
    return found.from_pretrained(folder)
