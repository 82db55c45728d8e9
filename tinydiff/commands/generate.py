"""``tinydiff generate``: pictures from prompts, or of classes."""
from pathlib import Path

import numpy as np
from tqdm import tqdm

from tinydiff.backends.compiling import remind
from tinydiff.backends.device import to_host
from tinydiff.backends.options import announce, start
from tinydiff.commands.files import check_endings, save
from tinydiff.pictures import sheet, to_image
from tinydiff.pipelines import TextToImage, attention_maps, check_prompts, load
from tinydiff.viz import denoising_strip, word_strip


def run(args):
    """Draw, and write what was drawn."""
    if min(args.scale, args.count, args.batch) < 1:
        raise ValueError(f"--scale {args.scale}, --batch {args.batch} and --count {args.count} "
                         "must be at least 1")
    check_endings(args.out, args.strip, args.attention)
    check_prompts(args.prompts)
    own = {} if args.eta is None else {"eta": args.eta}
    own |= {"rescale": args.rescale, "interval": args.interval, "threshold": args.threshold}
    own |= {} if args.guidance is None else {"guidance": args.guidance}
    own |= {"clip_guidance": args.clip_guidance} if args.clip_guidance else {}
    pipe = load(args.model)
    if args.attention and not isinstance(pipe, TextToImage):
        raise ValueError("--attention shows which word drew what: it needs a model of prompts, "
                         f"and {args.model} is one of classes")
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
                                   sampler=args.sampler, seed=args.seed, **own):
                bar.update()
                announce(args)
                if (args.strip or args.attention) and not pictures:
                    first.append(_of_first(step))
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
        save(denoising_strip([_shown(pipe.decoded(step)) for step in first]), args.strip)
    if args.attention:
        save(word_strip(x[0], attention_maps(pipe, args.prompts[0], first), args.scale),
             args.attention)


def _of_first(step):
    """Return the step of the first picture alone: neither strip nor maps show the others."""
    return step._replace(**{name: getattr(step, name)[:1]
                            for name in ("x_t", "x0_hat", "eps_hat", "x_s")})


def _shown(step):
    """Return the step with what a strip shows of it in the computer's own memory."""
    return step._replace(**{name: to_host(getattr(step, name))
                            for name in ("x_t", "x0_hat", "x_s")})
