"""``make bench-gpu``: every kernel version beside cuDNN and PyTorch, and the shipped model's steps.

    python -m tinydiff.bench.gpu --json results.json --table table.md
    python -m tinydiff.bench.gpu --dry-run       # tiny sizes on the processor: does it all run?

One process on one GPU; nothing is fetched, and what is missing there (PyTorch, a kernel) is a note
and not an error.  Equal precisions stand side by side: float32 is PyTorch with TF32 switched off
for cuDNN and for cuBLAS, tf32 with both on, float16 on tensors of float16.  A figure is the median
of several turns, each long enough to wait for the device once at its end.
"""
import argparse
import sys
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from tinydiff.backends import device
from tinydiff.bench import gpu_kernels, gpu_networks, gpu_sides
from tinydiff.bench.report import amount

LIMIT = 480                             # seconds for everything; `make bench-gpu` may take 600
TURNS, TURN = 5, 0.05                   # of a figure; seconds in each


class Row(NamedTuple):
    """One figure.

    Attributes
    ----------
    what : str
        The operation and its sizes, or the network.
    precision : {"float32", "tf32", "float16"}
    who : str
        A version of ours, or PyTorch.
    seconds : float or None
    rate : float or None
        Floating-point operations or bytes in a second.
    share : float or None
        Of the rate that this machine was seen to reach.
    of_torch : float or None
        PyTorch's seconds over ours, both in this precision.
    difference : float or None
        How far our result lies from PyTorch's, as a share of the largest entry.
    note : str or None
    """

    what: str
    precision: str
    who: str
    seconds: float | None
    rate: float | None = None
    share: float | None = None
    of_torch: float | None = None
    difference: float | None = None
    note: str | None = None


class Bench:
    """Times functions on one machine until the time is up.

    Parameters
    ----------
    where : {"cuda", "cpu"}
    torch : module or None
    limit : float
        Seconds for everything.
    say : callable, optional
        Takes a line after each row.
    """

    def __init__(self, where, torch=None, limit=LIMIT, say=None):
        self.where, self.torch, self.say = where, torch, say or (lambda line: None)
        self.end = time.perf_counter() + limit
        self.rows, self.notes, self.limits = [], [], {}

    @property
    def left(self):
        """Seconds that are left."""
        return self.end - time.perf_counter()

    def wait(self):
        """Wait until the device has done all that was launched."""
        if self.where == "cuda":
            device.synchronize()
            if self.torch is not None:
                self.torch.cuda.synchronize()

    def seconds(self, function):
        """Return the median time of one call, after one that does not count."""
        if self.where == "cpu":                           # a dry run: is there an answer at all?
            start = time.perf_counter()
            function()
            return time.perf_counter() - start
        function()
        self.wait()
        start = time.perf_counter()
        function()
        self.wait()
        calls = max(1, min(1000, int(TURN / max(time.perf_counter() - start, 1e-6))))
        turns = []
        for _ in range(TURNS):
            start = time.perf_counter()
            for _ in range(calls):
                function()
            self.wait()
            turns.append((time.perf_counter() - start) / calls)
        return median(turns)

    def contest(self, what, precision, ours, theirs, work=(0.0, "")):
        """Time some functions that compute the same, ours and PyTorch's.

        Parameters
        ----------
        what, precision : str
        ours, theirs : dict of str to callable
            Each returns its result; the first of `theirs` is what ours are compared with.
        work : (float, str)
            How much one call does, in the unit of one of `limits`: its key.
        """
        results, seconds = {}, {}
        for who, function in {**theirs, **ours}.items():
            if self.left < 0:
                self.notes.append(f"{what}, {precision}, {who}: not run, the time was up")
                continue
            try:
                results[who] = gpu_sides.on_host(function())
                seconds[who] = self.seconds(function)
            except Exception as fault:                    # the other figures are still worth it
                line = f"{type(fault).__name__}: {' '.join(str(fault).split()):.200}"
                self.rows.append(Row(what, precision, who, None, note=line))
                self.say(f"{what}, {precision}, {who}: {line}")
        reference = next((who for who in theirs if who in seconds), None)
        amount_done, key = work
        for who, took in seconds.items():
            rate = amount_done / took if amount_done else None
            top = self.limits.get(key)
            row = Row(what, precision, who, took, rate, rate / top if rate and top else None)
            if reference and who in ours:
                row = row._replace(of_torch=seconds[reference] / took,
                                   difference=gpu_sides.difference(results[who],
                                                                     results[reference]))
            self.rows.append(row)
            self.say(line_of(row))


def line_of(row):
    """Write a row for whoever waits."""
    parts = [row.what, row.precision, row.who, amount(row.seconds, "s")]
    if row.of_torch:
        parts.append(f"{row.of_torch:.2f} of PyTorch's speed")
    if row.share:
        parts.append(f"{row.share:.0%} of the machine's rate")
    return ", ".join(parts)


def table(rows):
    """Write the rows as a Markdown table, for kernels/README.md.

    Examples
    --------
    >>> print(table([Row("conv", "tf32", "v4", 2e-3, 1e12, 0.5, 0.8, 1e-3)]))
    | what | precision | who | time | of the machine's rate | of PyTorch's speed |
    |---|---|---|---|---|---|
    | conv | tf32 | v4 | 2.00 ms | 50 % | 0.80 |
    """
    lines = ["| what | precision | who | time | of the machine's rate | of PyTorch's speed |",
             "|---|---|---|---|---|---|"]
    for row in rows:
        cells = [row.what, row.precision, row.who,
                 row.note or amount(row.seconds, "s"),
                 f"{100 * row.share:.0f} %" if row.share else "-",
                 f"{row.of_torch:.2f}" if row.of_torch else "-"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def run(where="cuda", limit=LIMIT, say=None):
    """Measure everything; on "cpu" with tiny sizes, to see that it runs.

    Returns
    -------
    facts : dict of str to str
    bench : Bench
        Its `rows`, `notes` and `limits`.

    Raises
    ------
    ValueError
        If there is no GPU.
    """
    device.choose(where)
    try:
        import torch
    except ImportError:
        torch = None
    bench = Bench(where, torch, limit, say)
    if torch is None:
        bench.notes.append("PyTorch is not installed: no comparison")
    facts = {**(device.facts() if where == "cuda" else {"device": "none: a dry run"}),
             "torch": "missing" if torch is None else torch.__version__,
             "cudnn": str(torch.backends.cudnn.version()) if torch else "missing"}
    gpu_sides.measure_limits(bench)
    gpu_networks.measure(bench)                           # the figures that matter most come first
    gpu_kernels.measure(bench)
    gpu_networks.measure_compiled(bench)                  # torch.compile takes a minute
    return facts, bench


def main(arguments=None):
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tinydiff.bench.gpu", description=__doc__)
    parser.add_argument("--json", metavar="FILE", help="write all figures as JSON")
    parser.add_argument("--table", metavar="FILE", help="write the Markdown table")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS",
                        help="for everything (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true",
                        help="tiny sizes on the processor; its times mean nothing")
    args = parser.parse_args(arguments)
    try:
        report(args.json, args.table, "cpu" if args.dry_run else "cuda", args.limit)
    except ValueError as fault:
        sys.exit(f"bench-gpu: {fault}")


def report(json=None, markdown=None, where="cuda", limit=LIMIT):
    """Measure everything; print it, and write it to the files that are named.

    Raises
    ------
    ValueError
        If there is no GPU.
    """
    from tinydiff.jsonfile import write_json

    facts, bench = run(where, limit, lambda line: print(line, file=sys.stderr))
    text = "\n".join([*(f"{name}: {value}" for name, value in facts.items()),
                      *(f"{key}: {rate:.3g} a second" for key, rate in bench.limits.items()),
                      "", table(bench.rows), "", *bench.notes])
    print(text)
    if markdown:
        Path(markdown).write_text(text + "\n", encoding="utf-8")
    if json:
        write_json(json, {"facts": facts, "limits": bench.limits, "notes": bench.notes,
                          "rows": [row._asdict() for row in bench.rows]})


if __name__ == "__main__":
    main()
