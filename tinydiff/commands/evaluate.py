"""``tinydiff evaluate``: whether a model draws what its captions say."""
import numpy as np
from tqdm import tqdm

from tinydiff.backends.compiling import remind
from tinydiff.commands.files import check_endings, save
from tinydiff.evaluate import evaluate
from tinydiff.jsonfile import write_json
from tinydiff.pictures import sheet
from tinydiff.pipelines import load


def run(args):
    """Measure, print the table, and write what was asked for."""
    if args.count < 1:
        raise ValueError(f"--count {args.count} must be at least 1")
    check_endings(args.sheet)
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
        save(sheet(np.concatenate(list(samples.values())), 20), args.sheet)
