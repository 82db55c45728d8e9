"""The command line: ``tinydiff generate | train | evaluate | bench | info``.

Every error that a user can cause is one line on stderr, with exit code 2.
"""
import argparse
import sys
from pathlib import Path

GUIDANCE, STEPS = 3.0, 50
BATCH = 32                              # pictures drawn at once
ENDINGS = (".png", ".jpg", ".jpeg", ".webp")


def main(arguments=None):
    """Run one command; `arguments` defaults to the program's own."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError, FloatingPointError) as fault:
        sys.exit(_fail(f"tinydiff: error: {' '.join(str(fault).split())}"))
    except KeyboardInterrupt:
        sys.exit(_fail("tinydiff: interrupted", 130))


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors, too, are one line."""

    def error(self, message):
        """Print `message` and end with exit code 2."""
        sys.exit(_fail(f"tinydiff: error: {message}; see {self.prog} --help"))


def _fail(line, code=2):
    print(line, file=sys.stderr)
    return code


def build_parser():
    """Return the parser of all commands, with their help texts."""
    parser = Parser(
        prog="tinydiff", description="Diffusion models from scratch: draw, train, look inside.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_generate(commands)
    _add_train(commands)
    _add_evaluate(commands)
    _add_bench(commands)
    _add_info(commands)
    return parser


def _add_generate(commands):
    p = commands.add_parser(
        "generate", help="draw pictures from prompts",
        description="Draw pictures from one or several prompts, and write them as PNG files.")
    p.add_argument("prompts", nargs="+", metavar="PROMPT",
                   help='what to draw, e.g. "red heart, noto style"')
    p.add_argument("--model", default="emoji-pixel",
                   help="a shipped model's name or a folder (default: %(default)s)")
    p.add_argument("--steps", type=int, default=STEPS,
                   help="denoising steps, 1 to 1000 (default: %(default)s)")
    p.add_argument("--sampler", default="ddim", help="ddim or ddpm (default: %(default)s)")
    p.add_argument("--eta", type=float, help="ddim only: 0 is deterministic, 1 is DDPM")
    p.add_argument("--guidance", type=float, default=GUIDANCE,
                   help="0 ignores the prompt, 1 follows it, more exaggerates it "
                        "(default: %(default)s)")
    p.add_argument("--seed", type=int, default=0, help="the same seed draws the same picture")
    p.add_argument("--count", type=int, default=1, help="pictures per prompt (default: 1)")
    p.add_argument("--out", default="out.png", metavar="FILE",
                   help="PNG file; several pictures become a sheet in it (default: %(default)s)")
    p.add_argument("--each", metavar="FOLDER", help="also write every picture to its own file")
    p.add_argument("--strip", metavar="FILE",
                   help="also write the denoising of the first picture, from noise to picture")
    p.add_argument("--scale", type=int, default=4, metavar="N",
                   help="draw each pixel N x N large (default: %(default)s)")
    p.set_defaults(run=_generate)


def _add_train(commands):
    p = commands.add_parser(
        "train", help="train a model by a recipe",
        description="Train by a recipe: a name that comes with tinydiff, or a TOML file. The run "
                    "(log, checkpoints, sample sheets, finished model) lives in a folder of its "
                    "own; Ctrl-C saves it, --resume goes on bit for bit.")
    p.add_argument("recipe", metavar="RECIPE", help="a recipe's name or a .toml file")
    p.add_argument("--set", action="append", default=[], metavar="TABLE.KEY=VALUE",
                   help="change a value of the recipe, e.g. train.steps=500 (repeatable)")
    p.add_argument("--run", dest="folder", metavar="FOLDER",
                   help="where the run lives (default: ~/tinydiff-runs/NAME, or under "
                        "$TINYDIFF_RUNS)")
    p.add_argument("--resume", action="store_true", help="go on from the run's last checkpoint")
    p.add_argument("--init", metavar="MODEL",
                   help="start from this model's weights (a name or a folder): a further leg")
    p.add_argument("--data", metavar="FOLDER",
                   help="train on your own pictures instead: a folder with captions.jsonl, or "
                        "one .txt per picture")
    p.add_argument("--checkpoint-every", type=int, default=500, metavar="N",
                   help="updates between checkpoints (default: %(default)s)")
    p.set_defaults(run=_train)


def _add_evaluate(commands):
    p = commands.add_parser(
        "evaluate", help="measure whether a model draws what its captions say",
        description="Draw pictures from captions, and look each up among all real pictures: how "
                    "often is the true one the nearest, or one of the five nearest?")
    p.add_argument("model", metavar="MODEL", help="a shipped model's name or a folder")
    p.add_argument("--count", type=int, default=200,
                   help="captions of each kind (default: %(default)s)")
    p.add_argument("--steps", type=int, default=STEPS)
    p.add_argument("--sampler", default="ddim")
    p.add_argument("--guidance", type=float, default=GUIDANCE)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--json", metavar="FILE", help="also write the table as JSON")
    p.add_argument("--sheet", metavar="FILE", help="also write what was drawn, as a picture")
    p.set_defaults(run=_evaluate)


def _add_bench(commands):
    p = commands.add_parser(
        "bench", help="time tinydiff beside PyTorch",
        description="Time tinydiff and PyTorch in turns, each in a process of its own: (a) a "
                    "training step, (b) the same for the autoencoder, (c) prompt to picture, "
                    "(d) Stable Diffusion's U-Net, (e) each hot operation, (f) peak memory, "
                    "(g) start-up.  Takes about a quarter of an hour; close other programs.")
    p.add_argument("device", choices=["cpu"], help="what it runs on")
    p.add_argument("--only", metavar="LETTERS", default="a,b,c,d,e,f,g",
                   help="workloads, such as a,c (default: all)")
    p.add_argument("--rounds", type=int, default=5, metavar="N",
                   help="turns of each side (default: %(default)s)")
    p.add_argument("--threads", type=int, metavar="N", help="of either side (default: all cores)")
    p.add_argument("--torch-python", metavar="PATH", default=sys.executable,
                   help="a Python with torch, diffusers, transformers (default: this one)")
    p.add_argument("--quick", action="store_true", help="two short rounds, without (d)")
    p.add_argument("--json", metavar="FILE", help="also write all figures as JSON")
    p.set_defaults(run=_bench)


def _add_info(commands):
    p = commands.add_parser("info", help="print versions, models, and what runs where")
    p.add_argument("--json", metavar="FILE", help="also write it as JSON")
    p.set_defaults(run=_info)


def _generate(args):
    import numpy as np
    from tqdm import tqdm

    from tinydiff.backends.compiling import remind
    from tinydiff.pictures import sheet, to_image
    from tinydiff.pipelines import check_prompts, load
    from tinydiff.viz.strips import denoising_strip

    if args.scale < 1 or args.count < 1:
        raise ValueError(f"--scale {args.scale} and --count {args.count} must be at least 1")
    _check_endings(args.out, args.strip)
    check_prompts(args.prompts)
    own = {} if args.eta is None else {"eta": args.eta}
    remind()
    pipe = load(args.model)
    jobs = [(prompt, k) for prompt in args.prompts for k in range(args.count)]
    batches = [jobs[i:i + BATCH] for i in range(0, len(jobs), BATCH)]
    pictures, first = [], []
    with tqdm(total=len(batches) * args.steps, unit="step", delay=1) as bar:
        for batch in batches:
            prompts, numbers = zip(*batch, strict=True)
            for step in pipe.steps(list(prompts), pictures=numbers, steps=args.steps,
                                   sampler=args.sampler, guidance=args.guidance,
                                   seed=args.seed, **own):
                bar.update()
                if args.strip and not pictures:
                    first.append(step)
            pictures.append(step.x_s)
    x = np.concatenate(pictures)                                      # (B, C, H, W)

    columns = args.count if len(args.prompts) > 1 and args.count > 1 else min(len(x), 8)
    _save(sheet(x, columns, args.scale), args.out)
    if args.each:
        for k, x_k in enumerate(x):
            prompt = args.prompts[k // args.count]
            name = "".join(c if c.isalnum() else "-" for c in prompt.lower())[:60].strip("-")
            _save(to_image(x_k, args.scale), Path(args.each) / f"{k:02d}-{name}.png")
    if args.strip:
        _save(denoising_strip(first), args.strip)


def _check_endings(*paths):
    """Refuse a name that no picture can have, before an hour is spent on drawing it."""
    for path in paths:
        if path and Path(path).suffix.lower() not in ENDINGS:
            raise ValueError(f"{path}: not a picture's name; it should end in "
                             f"{', '.join(ENDINGS)}")


def _save(image, path):
    """Write a picture, making its folder; say where it is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    print(path)


def _train(args):
    from tqdm import tqdm

    from tinydiff.backends.compiling import compile_first
    from tinydiff.pipelines import load
    from tinydiff.recipes import load_recipe
    from tinydiff.recipes.text_to_image import TextToImageObjective, training_pictures
    from tinydiff.runs import Run, default_folder, recipe_of
    from tinydiff.train import TrainConfig, Trainer
    from tinydiff.viz import training_curve

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
    config = TrainConfig(**recipe["train"])
    run = Run(folder, recipe, args.init)
    pictures = training_pictures(recipe["data"])
    tokenizer = run.tokenizer() if args.resume else None
    objective = TextToImageObjective(recipe, pictures, tokenizer=tokenizer,
                                     init=load(args.init) if args.init else None)
    compile_first()
    trainer = Trainer(objective, config)
    if args.resume:
        run.resume(trainer)
    else:
        run.start()

    print(f"{recipe['name']}: {len(pictures)} pictures, {objective.model.count():,} parameters; "
          f"the run lives in {run.folder}")
    with tqdm(total=config.steps, initial=trainer.step, unit="step", smoothing=0.05,
              delay=1) as bar:
        average = None
        for step in run.steps(trainer, args.checkpoint_every):
            average = step.loss if average is None else 0.98 * average + 0.02 * step.loss
            bar.set_postfix_str(f"loss {average:.4f}, {config.batch_size / step.seconds:.0f} "
                                "pictures/s")
            bar.update()
    training_curve(run.folder / "log.csv", run.folder / "curve.png")
    print(f"finished: {run.folder / 'model'}")


def _evaluate(args):
    import numpy as np
    from tqdm import tqdm

    from tinydiff.backends.compiling import remind
    from tinydiff.evaluate import evaluate
    from tinydiff.jsonfile import write_json
    from tinydiff.pictures import sheet
    from tinydiff.pipelines import load

    if args.count < 1:
        raise ValueError(f"--count {args.count} must be at least 1")
    _check_endings(args.sheet)
    remind()
    options = {"steps": args.steps, "sampler": args.sampler, "guidance": args.guidance,
               "seed": args.seed}
    rows, samples = evaluate(load(args.model), args.count,
                             progress=lambda work: tqdm(work, unit="batch", delay=1), **options)
    print(f"{'captions':20} {'n':>5} {'among':>6} {'at 1':>6} {'at 5':>6}")
    for row in rows:
        print(f"{row.what:20} {row.n:5} {row.among:6} {row.at_1:6.3f} {row.at_5:6.3f}")
    if args.json:
        write_json(args.json, {"model": args.model, **options,
                               "rows": [row._asdict() for row in rows]})
    if args.sheet:
        _save(sheet(np.concatenate(list(samples.values())), 20), args.sheet)


def _bench(args):
    from tinydiff.bench import run, table
    from tinydiff.jsonfile import write_json

    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise ValueError(f"--json {args.json}: there is no such folder")
    results = run([letter.strip() for letter in args.only.split(",")], rounds=args.rounds,
                  threads=args.threads, torch_python=args.torch_python, quick=args.quick,
                  say=lambda line: print(line, file=sys.stderr))
    width = max(map(len, results.facts))
    for name, value in results.facts.items():
        print(f"{name:{width}}  {value}")
    print(*(["", table(results.records)] if results.records else []), *results.notes, sep="\n")
    if args.json:
        write_json(args.json, results.to_json())
    if results.faults:
        raise ValueError("; ".join(results.faults))


def _info(args):
    from tinydiff.info import info

    facts = info()
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:{width}}  {value}")
    if args.json:
        from tinydiff.jsonfile import write_json
        write_json(args.json, facts)
