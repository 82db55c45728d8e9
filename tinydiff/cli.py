"""The command line: ``tinydiff generate | train | evaluate | bench | info``.

Every error that a user can cause is one line on stderr, with exit code 2.
"""
import argparse
import sys
from pathlib import Path

from tinydiff.backends.options import add_options, memory_fault

GUIDANCE, STEPS = 3.0, 50
SAMPLER_NAMES = ("ddim, ddpm, dpm_solver, dpmpp_2m, dpmpp_3m, dpmpp_2s, dpmpp_sde, unipc, euler, "
                 "heun, euler_ancestral, lms, pndm or flow")


def main(arguments=None):
    """Run one command; `arguments` defaults to the program's own."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        args.run(args)
    except (ValueError, OSError, FloatingPointError) as fault:
        sys.exit(_fail(f"tinydiff: error: {' '.join(str(fault).split())}"))
    except (MemoryError, RuntimeError) as fault:
        line = memory_fault(fault, args)
        if line is None:
            raise
        sys.exit(_fail(f"tinydiff: error: {line}"))
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
    _add_edit(commands)
    _add_interpolate(commands)
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
                   help='what to draw, e.g. "red heart, noto style"; with a model of classes, '
                        'their names, e.g. sneaker')
    _add_walk(p, None, f"{GUIDANCE:g} for prompts, 1.5 for classes")
    p.add_argument("--eta", type=float, help="ddim only: 0 is deterministic, 1 is DDPM")
    p.add_argument("--rescale", type=float, default=0.0, metavar="PHI",
                   help="take back the contrast that guidance adds, 0 (off) to 1")
    p.add_argument("--interval", type=float, nargs=2, metavar=("LOW", "HIGH"),
                   help="guide only where sigma = noise / signal lies between these")
    p.add_argument("--clip-guidance", type=float, default=0.0, metavar="WEIGHT",
                   help="also follow the gradient of CLIP's similarity to the prompt, of models "
                        "with an image encoder: about 100, 0 is off")
    p.add_argument("--threshold", type=float, metavar="RATIO",
                   help="squeeze pixels outside [-1, 1] back into it, but for this share "
                        "(0.995) that keeps its proportions")
    p.add_argument("--count", type=int, default=1, help="pictures per prompt (default: 1)")
    p.add_argument("--out", default="out.png", metavar="FILE",
                   help="PNG file; several pictures become a sheet in it (default: %(default)s)")
    p.add_argument("--each", metavar="FOLDER", help="also write every picture to its own file")
    p.add_argument("--strip", metavar="FILE",
                   help="also write the denoising of the first picture, from noise to picture")
    p.add_argument("--attention", metavar="FILE",
                   help="also write which word drew which pixels of the first picture")
    p.add_argument("--batch", type=int, default=32, metavar="N",
                   help="pictures drawn at once (default: %(default)s)")
    add_options(p, lower="--batch, 32 pictures at once by default")
    p.set_defaults(run=_generate)


def _add_walk(p, guidance=GUIDANCE, default="%(default)s"):
    """Add what every walk from noise to picture can be told."""
    p.add_argument("--model", default="emoji",
                   help="a shipped model's name or a folder (default: %(default)s)")
    p.add_argument("--steps", type=int, default=STEPS,
                   help="denoising steps, 1 to 1000 (default: %(default)s)")
    p.add_argument("--sampler", metavar="NAME", help=f"{SAMPLER_NAMES} (default: what the model "
                   "was published with; ddim for those trained here)")
    p.add_argument("--guidance", type=float, default=guidance,
                   help="0 ignores the prompt, 1 follows it, more exaggerates it "
                        f"(default: {default})")
    p.add_argument("--seed", type=int, default=0, help="the same seed draws the same picture")
    p.add_argument("--scale", type=int, default=4, metavar="N",
                   help="draw each pixel N x N large (default: %(default)s)")


def _add_edit(commands):
    p = commands.add_parser(
        "edit", help="draw a prompt over a picture, or into its holes",
        description="Start from a picture: with --mask draw what is missing of it, else draw the "
                    "prompt over it and keep as much as --strength leaves.")
    p.add_argument("prompt", metavar="PROMPT", help="what the result shows")
    p.add_argument("--image", required=True, metavar="FILE", help="the picture to start from")
    p.add_argument("--mask", metavar="FILE",
                   help="a picture as large as the other: white (or transparent) is drawn "
                        "anew, black is kept exactly")
    p.add_argument("--strength", type=float, default=0.6,
                   help="without --mask: near 0 keeps the picture, 1 forgets it "
                        "(default: %(default)s)")
    p.add_argument("--repeat", type=int, default=1, metavar="N",
                   help="with --mask: RePaint's repetitions of each step (default: %(default)s)")
    p.add_argument("--count", type=int, default=1, help="pictures to draw (default: 1)")
    _add_drawing(p)
    p.set_defaults(run=_edit)


def _add_interpolate(commands):
    p = commands.add_parser(
        "interpolate", help="draw the pictures between two prompts",
        description="Draw the frames between two prompts, two seeds, or both: a sheet, or a "
                    "moving picture if --out ends in .gif.")
    p.add_argument("prompt", metavar="PROMPT", help="the first frame")
    p.add_argument("to", metavar="PROMPT", help="the last frame")
    p.add_argument("--frames", type=int, default=8, metavar="N",
                   help="frames in all (default: %(default)s)")
    p.add_argument("--to-seed", type=int, metavar="SEED",
                   help="the last frame's noise (default: that of the first)")
    _add_drawing(p)
    p.set_defaults(run=_interpolate)


def _add_drawing(p):
    """Add what edit and interpolate have in common."""
    _add_walk(p)
    p.add_argument("--out", default="out.png", metavar="FILE",
                   help="where the result goes (default: %(default)s)")
    add_options(p, lower="--count or --frames")


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
                        "one .txt per picture; for the fashion recipes, where their files lie")
    p.add_argument("--stage", choices=["clip", "autoencoder", "unet"],
                   help="train this stage of the recipe alone (default: all, in this order; "
                        "what is finished is not trained again)")
    p.add_argument("--checkpoint-every", type=int, default=500, metavar="N",
                   help="updates between checkpoints (default: %(default)s)")
    p.add_argument("--noise", choices=["host", "device"], default="host",
                   help="where training draws its noise: on the host it is the same noise "
                        "wherever the run is; on a GPU it is faster there (default: %(default)s)")
    add_options(p, lower="the batch, with --set train.batch_size=N")
    p.set_defaults(run=_train)


def _add_evaluate(commands):
    p = commands.add_parser(
        "evaluate", help="measure whether a model draws what its captions say",
        description="Draw pictures from captions and measure them: reconstruction, retrieval by "
                    "pixels and by CLIP of trained and held-out captions, Fréchet and kernel "
                    "distance beside their real-against-real floor, colours and shapes that never "
                    "existed, copies of training pictures.  A model of classes: both distances in "
                    "a classifier's features, and bits per dimension.")
    p.add_argument("model", metavar="MODEL", help="a shipped model's name or a folder")
    p.add_argument("--count", type=int, metavar="N",
                   help="captions of each kind, at most (default: 200); pictures of classes "
                        "(default: 2000)")
    p.add_argument("--steps", type=int, default=STEPS)
    p.add_argument("--sampler", default="ddim")
    p.add_argument("--guidance", type=float, metavar="W",
                   help=f"(default: {GUIDANCE:g} for prompts, 1 for classes)")
    p.add_argument("--sweep", action="store_true",
                   help="5, 10, 20 and 50 steps, and guidance weights from 1 to 4, as well; of a "
                        "model of classes, these steps by five samplers, and DDPM's 1000 with N/4 "
                        "pictures")
    p.add_argument("--classifier", metavar="FOLDER", default="fashion-classifier",
                   help="whose features the pictures of classes are compared in: a shipped name or "
                        "a folder (default: %(default)s)")
    p.add_argument("--bits", type=int, default=100, metavar="N",
                   help="real pictures of classes whose bits are bounded, the first 100 by all "
                        "terms, the others by 20 drawn ones (default: %(default)s)")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--data", metavar="FOLDER",
                   help="captioned pictures of your own that it was trained on, not the emoji; of "
                        "a model of classes, where Fashion-MNIST's test split lies")
    p.add_argument("--json", metavar="FILE", help="also write the table as JSON")
    p.add_argument("--sheet", metavar="FILE", help="also write what was drawn, as a picture")
    p.add_argument("--batch", type=int, metavar="N",
                   help="pictures drawn at once (default: 25; of classes 250)")
    add_options(p, lower="--batch, 25 pictures at once by default")
    p.set_defaults(run=_evaluate)


def _add_bench(commands):
    p = commands.add_parser(
        "bench", help="time tinydiff beside PyTorch",
        description="Time tinydiff and PyTorch in turns, each in a process of its own: (a) a "
                    "training step, (b) the same for the autoencoder, (c) prompt to picture, "
                    "(d) Stable Diffusion's U-Net, (e) each hot operation, (f) peak memory, "
                    "(g) start-up.  Takes about a quarter of an hour; close other programs.  On a "
                    "gpu: each kernel version, and the shipped model's steps, in under ten "
                    "minutes; of the options only --json counts there.")
    p.add_argument("device", choices=["cpu", "gpu"], help="what it runs on")
    p.add_argument("--only", metavar="LETTERS", default="a,b,c,d,e,f,g",
                   help="workloads, such as a,c (default: all)")
    p.add_argument("--rounds", type=int, default=5, metavar="N",
                   help="turns of each side (default: %(default)s)")
    p.add_argument("--threads", type=int, metavar="N", help="of either side (default: all cores)")
    p.add_argument("--ops", metavar="TEXT", default="",
                   help="of (e), the operations with this in their name, such as 3x3")
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
    from tinydiff.commands.generate import run
    run(args)


def _edit(args):
    from tinydiff.commands.edit import run_edit
    run_edit(args)


def _interpolate(args):
    from tinydiff.commands.edit import run_interpolate
    run_interpolate(args)


def _train(args):
    from tinydiff.commands.train import run
    run(args)


def _evaluate(args):
    from tinydiff.commands.evaluate import run
    run(args)


def _bench(args):
    from tinydiff.bench import gpu, run, table
    from tinydiff.jsonfile import write_json

    if args.json and not Path(args.json).resolve().parent.is_dir():
        raise ValueError(f"--json {args.json}: there is no such folder")
    if args.device == "gpu":
        gpu.report(args.json)
        return
    results = run([letter.strip() for letter in args.only.split(",")], rounds=args.rounds,
                  threads=args.threads, torch_python=args.torch_python, quick=args.quick,
                  ops=args.ops, say=lambda line: print(line, file=sys.stderr))
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
