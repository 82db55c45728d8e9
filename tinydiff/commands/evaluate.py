"""``tinydiff evaluate``: whether a model draws what its captions say, and as real pictures look."""
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinydiff.backends.compiling import remind
from tinydiff.backends.options import announce, start
from tinydiff.commands.files import check_endings, save
from tinydiff.datasets import data_folder, load_fashion_mnist, load_folder
from tinydiff.evaluate import Setting, evaluate
from tinydiff.evaluate_classes import Walk, evaluate_classes, sweep
from tinydiff.jsonfile import write_json
from tinydiff.models import Classifier
from tinydiff.pictures import sheet
from tinydiff.pipelines import TextToImage, load

SWEEP_STEPS, SWEEP_GUIDANCE = (5, 10, 20, 50), (1.0, 1.5, 2.0, 3.0, 4.0)
GUIDANCE = 3.0                          # for prompts, unless another is asked for


def run(args):
    """Measure, print the table, and write what was asked for."""
    for name in ("batch", "count"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name} {value} must be at least 1")
    check_endings(args.sheet)
    pipe = load(args.model)
    classifier = None if isinstance(pipe, TextToImage) else _classifier(args.classifier)
    if start(args) == "cuda":
        pipe.to("cuda", args.graph)
        if classifier:
            classifier.to("cuda")
    else:
        remind()
    began = time.perf_counter()
    measured = _by_class(args, pipe, classifier) if classifier else _by_prompt(args, pipe)
    settings, rows, samples, facts = measured
    announce(args)
    print(table(rows, settings))
    if args.json:
        write_json(args.json, {
            "model": args.model, "sampler": args.sampler, "seed": args.seed, **facts,
            "seconds": round(time.perf_counter() - began),
            "rows": [{**row._asdict(), "setting": row.setting and row.setting._asdict()}
                     for row in rows]})
    if args.sheet:
        save(sheet(samples, 20), args.sheet)


def _by_prompt(args, pipe):
    """Evaluate a text-to-image model; return settings, rows, pictures of the first setting."""
    steps, guidance = args.steps, GUIDANCE if args.guidance is None else args.guidance
    settings = [Setting(steps, guidance)]
    if args.sweep:
        settings = [*(Setting(steps, guidance) for steps in SWEEP_STEPS),
                    *(Setting(steps, w) for w in SWEEP_GUIDANCE)]
        settings = list(dict.fromkeys(settings))                      # each once
    library = load_folder(args.data, pipe.size) if args.data else None
    rows, samples = evaluate(pipe, settings, args.count or 200, library, args.seed,
                             args.batch or 25, progress=_progress, sampler=args.sampler)
    return settings, rows, np.concatenate(list(samples[settings[0]].values())), {}


def _by_class(args, pipe, classifier):
    """Evaluate a model of classes; return the same."""
    if args.bits < 0:
        raise ValueError(f"--bits {args.bits} must be at least 0")
    count, guidance = args.count or 2000, 1.0 if args.guidance is None else args.guidance
    walks = (sweep(guidance, count) if args.sweep else
             [Walk(args.sampler, Setting(args.steps, guidance), count)])
    real = load_fashion_mnist("test", args.data, pipe.size)
    rows, samples = evaluate_classes(pipe, classifier, real, walks, args.bits, args.seed,
                                     args.batch or 250, _progress)
    settings = list(dict.fromkeys(walk.setting for walk in walks))
    return settings, rows, samples[walks[0]][:200], {"classifier": args.classifier}


def _classifier(name):
    """Open a classifier by its shipped name, or a folder."""
    folder = data_folder() / "models" / name
    folder = folder if folder.is_dir() else Path(name)
    if not folder.is_dir():
        raise ValueError(f"no classifier {name!r}: name the folder of one with --classifier; "
                         "tinydiff train fashion-classifier makes it")
    return Classifier.from_pretrained(folder).freeze()


def _progress(work):
    return tqdm(work, unit="batch", delay=1)


def table(rows, settings):
    """Lay rows out in Markdown: a line for each metric and kind of captions, a column a setting.

    Parameters
    ----------
    rows : list of Row
    settings : list of Setting

    Returns
    -------
    str
    """
    lines = {}
    for row in rows:
        line = lines.setdefault((row.metric, row.of), {"n": row.n, "among": row.among,
                                                       "real": row.real})
        line[row.setting] = row
    heads = ["metric", "of", "n", "among", "real pictures",
             *(f"{s.steps} steps, w = {s.guidance:g}" for s in settings)]
    cells = [[metric, of, str(line["n"]), str(line["among"] or ""), _number(line["real"]),
              *(_value(line.get(s, line.get(None))) for s in settings)]
             for (metric, of), line in lines.items()]
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    rows = [heads, ["-" * w for w in widths], *cells]
    return "\n".join("| " + " | ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True))
                     + " |" for row in rows)


def _value(row):
    if row is None:
        return ""
    margin = "" if row.margin is None else f" ± {_number(row.margin)}"
    return _number(row.value) + margin


def _number(value):
    return "" if value is None else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
