"""``tinydiff generate``: pictures from prompts."""
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinydiff.backends.compiling import remind
from tinydiff.backends.device import to_host
from tinydiff.backends.options import announce, start
from tinydiff.commands.files import check_endings, save
from tinydiff.pictures import sheet, to_image
from tinydiff.pipelines import check_prompts, load
from tinydiff.viz.strips import denoising_strip


def run(args):
    """Draw, and write what was drawn."""
    if min(args.scale, args.count, args.batch) < 1:
        raise ValueError(f"--scale {args.scale}, --batch {args.batch} and --count {args.count} "
                         "must be at least 1")
    check_endings(args.out, args.strip)
    check_prompts(args.prompts)
    own = {} if args.eta is None else {"eta": args.eta}
    pipe = load(args.model)
    if start(args) == "cuda":
        pipe.to("cuda", args.graph)
    else:
        remind()
    jobs = [(prompt, k) for prompt in args.prompts for k in range(args.count)]
    batches = [jobs[i:i + args.batch] for i in range(0, len(jobs), args.batch)]
    pictures, first = [], []
    with tqdm(total=len(batches) * args.steps, unit="step", delay=1) as bar:
        for batch in batches:
            prompts, numbers = zip(*batch, strict=True)
            for step in pipe.steps(list(prompts), pictures=numbers, steps=args.steps,
                                   sampler=args.sampler, guidance=args.guidance,
                                   seed=args.seed, **own):
                bar.update()
                announce(args)
                if args.strip and not pictures:
                    seen = pipe.decoded(step)
                    first.append(seen._replace(x_t=to_host(seen.x_t), x0_hat=to_host(seen.x0_hat)))
            pictures.append(to_host(pipe.decode(step.x_s)))
    x = np.concatenate(pictures)                                      # (B, C, H, W)

    columns = args.count if len(args.prompts) > 1 and args.count > 1 else min(len(x), 8)
    save(sheet(x, columns, args.scale), args.out)
    if args.each:
        for k, x_k in enumerate(x):
            prompt = args.prompts[k // args.count]
            name = "".join(c if c.isalnum() else "-" for c in prompt.lower())[:60].strip("-")
            save(to_image(x_k, args.scale), Path(args.each) / f"{k:02d}-{name}.png")
    if args.strip:
        save(denoising_strip(first), args.strip)
