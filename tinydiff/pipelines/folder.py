"""A pipeline on the disk: ``model_index.json`` names the parts, each a folder beside it."""
from pathlib import Path

from tinydiff.atomic import write_folder
from tinydiff.jsonfile import read_object, write_json
from tinydiff.scheduler_config import SchedulerConfig

INDEX_FILE, SCHEDULER_FILE = "model_index.json", "scheduler_config.json"


def parts_named(folder, unused=()):
    """Return the names of the parts in a folder's index, but for those in `unused`.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no index, or it is damaged.
    """
    index = read_object(Path(folder) / INDEX_FILE)
    return [part for part, value in index.items()
            if not part.startswith("_") and isinstance(value, list) and any(value)
            and part not in unused]


def check_parts(folder, named, known, optional, what):
    """Raise ValueError naming the first part that is missing, or that there is and cannot be used.

    Parameters
    ----------
    folder : path-like
    named : list of str
        See `parts_named`.
    known, optional : container of str
        The parts that `what` has, and which of them it may lack.
    what : str
        Such as "a text-to-image model".
    """
    strange = [part for part in known if part not in (*named, *optional)] + [
        part for part in named if part not in known]
    if strange:
        raise ValueError(f"{Path(folder) / INDEX_FILE}: {strange[0]} is "
                         f"{'not supported' if strange[0] in named else 'missing'}; "
                         f"{what} has {', '.join(known)}")


def read_scheduler(folder):
    """Read the part "scheduler" of a pipeline's folder."""
    return SchedulerConfig.from_config(read_object(Path(folder) / "scheduler" / SCHEDULER_FILE))


def write_parts(folder, index, known, models, scheduler, dtype, others=None):
    """Write a pipeline's folder, all or nothing.

    Parameters
    ----------
    folder : path-like
    index : dict
        What ``model_index.json`` says.
    known : container of str
        All parts that such a pipeline may have: what the folder may hold already.
    models : dict of str to Module
        Each is written to the part's folder, its weights in `dtype`.
    scheduler : SchedulerConfig
    dtype : str
    others : dict, optional
        Further parts, written by their ``save_pretrained``.

    Raises
    ------
    ValueError
        If the folder holds anything else, which replacing it would lose.
    OSError
        If it cannot be written; what was there is intact then.
    """
    folder = Path(folder)
    here = sorted(p.name for p in folder.iterdir()) if folder.is_dir() else []
    strange = [name for name in here if name not in (*known, INDEX_FILE)]
    if strange:
        raise ValueError(f"{folder} also holds {strange[0]}: name a new folder")

    def fill(new):
        for part, model in models.items():
            model.save_pretrained(new / part, dtype)
        for part, other in (others or {}).items():
            other.save_pretrained(new / part)
        (new / "scheduler").mkdir()
        write_json(new / "scheduler" / SCHEDULER_FILE, scheduler.to_config())
        write_json(new / INDEX_FILE, {**index, "scheduler": ["diffusers", scheduler.class_name]})
    write_folder(folder, fill)
