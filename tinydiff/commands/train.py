"""``tinydiff train``: a run, or one in stages, with progress, resumed where it stopped."""
import sys
from pathlib import Path

from tqdm import tqdm

from tinydiff.backends.compiling import compile_first
from tinydiff.backends.options import announce, start
from tinydiff.jsonfile import write_json
from tinydiff.loss_scale import LossScale
from tinydiff.pipelines import ClassToImage, TextToImage, load
from tinydiff.recipes import load_recipe
from tinydiff.recipes.class_to_image import ClassToImageObjective
from tinydiff.recipes.classifier import ClassifierObjective
from tinydiff.recipes.data import held_out_pictures, training_pictures
from tinydiff.recipes.tables import STAGES
from tinydiff.recipes.text_to_image import TextToImageObjective
from tinydiff.runs import Run, default_folder, recipe_of
from tinydiff.stages import StagedRun
from tinydiff.train import TrainConfig, Trainer
from tinydiff.viz import training_curve

AT_REST = ("clip", "autoencoder", "vision")      # networks of an objective that it does not train


def run(args):
    """Train by a recipe."""
    if args.checkpoint_every < 1:
        raise ValueError(f"--checkpoint-every {args.checkpoint_every} must be at least 1")
    if args.resume and args.init:
        raise ValueError("--resume goes on from the run's own weights: leave --init out")
    recipe = load_recipe(args.recipe, args.set)
    if args.data:
        recipe["data"]["folder"] = str(Path(args.data).resolve())
    folder = args.folder or default_folder(recipe["name"])
    if args.resume and not (args.set or args.data):                   # as it was started
        recipe = recipe_of(folder, recipe["name"])
    init = _start_from(args.init, recipe["kind"])
    args.where = start(args)
    if recipe["kind"] != "latent_diffusion":
        _train_alone(args, recipe, folder, init)
        return

    stages = (args.stage,) if args.stage else STAGES if init is None else ("unet",)
    staged = StagedRun(folder, recipe, init, args.init,
                       lambda work: tqdm(work, "latents", unit="batch", delay=1), args.where)
    if args.resume:
        staged.check_present()
    staged.check(stages)
    if not args.resume:
        staged.start(stages)
    for stage in stages:
        if staged.finished(stage):
            print(f"{stage}: finished before, {staged.folder / stage / 'model'}")
            continue
        _prepare(args)
        objective = staged.objective(stage)
        _train_run(args, staged.run(stage), objective)


def _prepare(args):
    """Compile what the processor needs for a long run."""
    if args.where == "cpu":
        compile_first()


def _start_from(name, kind):
    """Open the model that a further leg starts from, of the kind that the recipe trains."""
    if name is None:
        return None
    if kind == "classifier":
        raise ValueError("a classifier is trained from nothing: leave --init out")
    return load(name, ClassToImage if kind == "class_to_image" else TextToImage)


def _train_alone(args, recipe, folder, init):
    """Train a model of one stage."""
    run = Run(folder, recipe, args.init)
    if args.resume:
        run.check_present()
    pictures = training_pictures(recipe["data"])
    if recipe["kind"] == "text_to_image":
        tokenizer = run.tokenizer() if args.resume else None
        objective = TextToImageObjective(recipe, pictures, init=init, tokenizer=tokenizer)
    elif recipe["kind"] == "class_to_image":
        objective = ClassToImageObjective(recipe, pictures, init=init)
    else:
        objective = ClassifierObjective(recipe, pictures,
                                        held_out=held_out_pictures(recipe["data"]))
    _prepare(args)
    _train_run(args, run, objective)


def _train_run(args, run, objective):
    """Train one run to its end, with a progress bar; draw its curve, measure what it made."""
    config = TrainConfig(**run.recipe["train"])
    if args.where == "cuda":
        for part in (objective.model, *(getattr(objective, name, None) for name in AT_REST)):
            if part is not None:
                part.to("cuda")
    objective.noise_there = args.noise == "device"
    graph = args.graph and args.where == "cuda"
    scale = LossScale() if args.precision == "float16" else None
    trainer = Trainer(objective, config, scale, graph)
    if graph and trainer.why_no_graph:
        print(f"no CUDA graph: {trainer.why_no_graph}", file=sys.stderr)
    if args.resume and run.checkpoint().exists():
        run.resume(trainer)
    else:
        run.start()
    announce(args)
    print(f"{run.recipe['name']}: {objective.size} pictures, {objective.model.count():,} "
          f"parameters; the run lives in {run.folder}")
    with tqdm(total=config.steps, initial=trainer.step, unit="step", smoothing=0.05,
              delay=1) as bar:
        average = None
        for step in run.steps(trainer, args.checkpoint_every):
            average = step.loss if average is None else 0.98 * average + 0.02 * step.loss
            bar.set_postfix_str(f"loss {average:.4f}, {config.batch_size / step.seconds:.0f} "
                                "pictures/s")
            bar.update()
    training_curve(run.folder / "log.csv", run.folder / "curve.png")
    if hasattr(objective, "metrics"):
        metrics = objective.metrics(trainer.ema.model)
        write_json(run.folder / "metrics.json", metrics)
        for name, value in metrics.items():
            print(f"{name}: {value:.4g}")
    print(f"finished: {run.folder / 'model'}")
