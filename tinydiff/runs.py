"""A run on disk: its recipe, log, checkpoints, sample sheets, and the finished model.

::

    RUN/recipe.json               the recipe, with all --set applied, and what --init named
    RUN/log.csv                   step, loss, grad_norm, lr, seconds
    RUN/checkpoint/               the whole state: resuming from it is bit-exact
        state.safetensors         weights, their average, the optimiser's two moments
        state.json                the step reached, and the recipe it belongs to
        tokenizer/                so that a resumed run reads captions the same way
    RUN/samples/000500.png        what the average draws, while it trains
    RUN/curve.png                 the log, drawn by the command line when it has finished
    RUN/model/                    the average in the published layout, ready for `tinydiff.load`
"""
import csv
import io
import os
from pathlib import Path

from tinydiff.atomic import recover_folder, replacing, write_folder
from tinydiff.jsonfile import read_object, write_json
from tinydiff.recipes.tables import check_recipe
from tinydiff.safetensors import read_safetensors, write_safetensors
from tinydiff.text import Tokenizer
from tinydiff.train import train


def default_folder(name):
    """Where a run of recipe `name` lives unless told otherwise: outside any checkout.

    ``$TINYDIFF_RUNS/name`` if that variable is set, else ``~/tinydiff-runs/name``.
    """
    root = os.environ.get("TINYDIFF_RUNS") or Path.home() / "tinydiff-runs"
    return Path(root) / name


def recipe_of(folder, name):
    """Read the recipe that the run in `folder` was started with, named `name`.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no run, or it is another recipe's, or the file was damaged.
    """
    path = Path(folder) / "recipe.json"
    recipe = read_object(path)
    recipe.pop("init", None)
    check_recipe(recipe, path)
    if recipe["name"] != name:
        raise ValueError(f"{folder} is a run of {recipe['name']}, not of {name}")
    return recipe


class Run:
    """The folder of one training run.

    Parameters
    ----------
    folder : path-like
    recipe : dict
        As `tinydiff.recipes.load_recipe` returns it.
    init : str, optional
        The model whose weights this run starts from; it is written down beside the recipe.
    """

    def __init__(self, folder, recipe, init=None):
        self.folder = Path(folder)
        self.recipe = recipe
        self.init = init

    def checkpoint(self):
        """Return the folder of the newest checkpoint, whether it exists or not.

        A save that died half-way is undone first.
        """
        return recover_folder(self.folder / "checkpoint")

    def tokenizer(self):
        """Read the tokenizer of the newest checkpoint.

        Raises
        ------
        FileNotFoundError
            If there is no checkpoint.
        """
        self.check_present()
        return Tokenizer.from_pretrained(self.checkpoint() / "tokenizer")

    def check_present(self):
        """Raise FileNotFoundError if the folder holds no checkpoint."""
        if not self.checkpoint().exists():
            raise FileNotFoundError(f"{self.folder} holds no checkpoint to resume from")

    def check_absent(self):
        """Raise ValueError if the folder holds a run: resume it, or name another folder."""
        if self.checkpoint().exists():
            raise ValueError(f"{self.folder} holds a run already: add --resume to go on with it, "
                             "or name another folder with --run")

    def start(self):
        """Make the folder; it must not hold a run already, see `check_absent`."""
        self.check_absent()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(self.folder / "recipe.json", {**self.recipe, "init": self.init})
        self._write_log([])

    def resume(self, trainer):
        """Load the newest checkpoint into `trainer`, and cut the log back to it.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no checkpoint, or it belongs to another recipe.
        """
        state = read_object(self.checkpoint() / "state.json")
        if not {"step", "recipe"} <= state.keys():
            raise ValueError(f"{self.checkpoint() / 'state.json'}: step or recipe is missing")
        changed = sorted(t for t in self.recipe if t != "samples"
                         and self.recipe[t] != state["recipe"].get(t))
        if changed:
            raise ValueError(f"{self.folder} was trained by another recipe: [{changed[0]}] "
                             "differs; repeat its --set and --data, or give none")
        trainer.load_state(read_safetensors(self.checkpoint() / "state.safetensors"), state["step"])
        self._write_log([row for row in self._read_log() if int(row[0]) <= state["step"]])

    def save(self, trainer):
        """Write a checkpoint, all or nothing: the old one survives a full disk."""
        arrays, step = trainer.state()

        def fill(new):
            write_safetensors(new / "state.safetensors", arrays)
            write_json(new / "state.json", {"step": step, "recipe": self.recipe})
            if hasattr(trainer.objective, "tokenizer"):
                trainer.objective.tokenizer.save_pretrained(new / "tokenizer")
        write_folder(self.checkpoint(), fill)

    def steps(self, trainer, checkpoint_every=500):
        """Train, and keep the folder: the same steps as `train`, logged and saved.

        Parameters
        ----------
        trainer : Trainer
        checkpoint_every : int, default 500
            Updates between two checkpoints; one is also written when the steps end, and
            when they are interrupted (but for the moment in which the weights change).

        Yields
        ------
        TrainStep
        """
        objective, samples = trainer.objective, self.recipe["samples"]
        rows, saved = [], trainer.step
        try:
            for step in train(trainer):
                rows.append([step.step, f"{step.loss:.6f}", f"{step.grad_norm:.5f}",
                             f"{step.lr:.3e}", f"{step.seconds:.3f}"])
                if step.step % samples["every"] == 0:
                    self._save_sheet(objective.sample_sheet(trainer.ema.model, samples), step.step)
                if step.step % checkpoint_every == 0:
                    self._append_log(rows)
                    rows = []
                    self.save(trainer)
                    saved = trainer.step
                yield step
        finally:
            self._append_log(rows)
            if trainer.step > saved and trainer.sound:
                self.save(trainer)
        objective.pipeline(trainer.ema.model).save_pretrained(self.folder / "model")

    def _save_sheet(self, image, step):
        (self.folder / "samples").mkdir(exist_ok=True)
        image.save(self.folder / "samples" / f"{step:06d}.png")

    # ---- the log ----

    def _read_log(self):
        with open(self.folder / "log.csv", newline="", encoding="utf-8") as file:
            return list(csv.reader(file))[1:]

    def _write_log(self, rows):
        text = io.StringIO(newline="")
        csv.writer(text).writerows([["step", "loss", "grad_norm", "lr", "seconds"], *rows])
        with replacing(self.folder / "log.csv") as file:
            file.write(text.getvalue().encode())

    def _append_log(self, rows):
        with open(self.folder / "log.csv", "a", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows(rows)
