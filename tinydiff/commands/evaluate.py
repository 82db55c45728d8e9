"""``tinydiff evaluate``: whether a model draws what its captions say, and as real pictures look."""
import numpy as np
from tqdm import tqdm

from tinydiff.backends.compiling import remind
from tinydiff.backends.options import announce, start
from tinydiff.commands.files import check_endings, save
from tinydiff.datasets import load_folder
from tinydiff.evaluate import Setting, evaluate
from tinydiff.jsonfile import write_json
from tinydiff.pictures import sheet
from tinydiff.pipelines import load

SWEEP_STEPS, SWEEP_GUIDANCE = (5, 10, 20, 50), (1.0, 1.5, 2.0, 3.0, 4.0)


def run(args):
    """Measure, print the table, and write what was asked for."""
    if min(args.count, args.batch) < 1:
        raise ValueError(f"--batch {args.batch} and --count {args.count} must be at least 1")
    check_endings(args.sheet)
    pipe = load(args.model)
    if start(args) == "cuda":
        pipe.to("cuda", args.graph)
    else:
        remind()
    settings = [Setting(args.steps, args.guidance)]
    if args.sweep:
        settings = [*(Setting(steps, args.guidance) for steps in SWEEP_STEPS),
                    *(Setting(args.steps, w) for w in SWEEP_GUIDANCE)]
        settings = list(dict.fromkeys(settings))                      # each once
    library = load_folder(args.data, pipe.size) if args.data else None
    rows, samples = evaluate(pipe, settings, args.count, library, args.seed, args.batch,
                             progress=lambda work: tqdm(work, unit="batch", delay=1),
                             sampler=args.sampler)
    announce(args)
    print(table(rows, settings))
    if args.json:
        write_json(args.json, {
            "model": args.model, "sampler": args.sampler, "seed": args.seed,
            "rows": [{**row._asdict(), "setting": row.setting and row.setting._asdict()}
                     for row in rows]})
    if args.sheet:
        save(sheet(np.concatenate(list(samples[settings[0]].values())), 20), args.sheet)


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
    margin = "" if row.margin is None else f" ± {_number(row.margin)}"
    return _number(row.value) + margin


def _number(value):
    return "" if value is None else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
