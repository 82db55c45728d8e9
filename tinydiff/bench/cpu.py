"""``tinydiff bench cpu``: the workloads in order, and the machine that they ran on."""
import sys
import tempfile
from math import gcd
from pathlib import Path
from typing import NamedTuple

from tinydiff.bench import workloads
from tinydiff.bench.machine import cores, processor
from tinydiff.bench.referee import Referee
from tinydiff.bench.turns import WorkerError

LETTERS = "abcdefg"
FRESH = 3                               # processes for the figure of start-up


class Results(NamedTuple):
    """What `run` returns.

    Attributes
    ----------
    facts : dict of str to str
        Processor, threads, versions, and which libraries multiply the matrices.
    records : list of Record
    notes : list of str
        What was not run, and why.
    faults : list of str
        What broke on the way, if anything did.
    """

    facts: dict
    records: list
    notes: list
    faults: list

    def to_json(self):
        """Return all of it, as JSON takes it."""
        return {"facts": self.facts, "records": [r.to_json() for r in self.records],
                "notes": self.notes, "faults": self.faults}


def run(only=LETTERS, *, rounds=5, threads=None, torch_python=sys.executable, quick=False,
        ops="", say=None):
    """Time tinydiff beside PyTorch on this computer's processor.

    Parameters
    ----------
    only : iterable of str, default "abcdefg"
        Letters of the workloads, see `tinydiff.bench.workloads`.
    rounds : int, default 5
        Turns that each side has in each workload.
    threads : int, optional
        Threads of either side; all cores by default.
    torch_python : path-like
        A Python that has torch, diffusers and transformers; tinydiff is not needed there.
    quick : bool, default False
        Two rounds of short turns, and nothing of the size of Stable Diffusion.
    ops : str, default ""
        Of workload (e), the operations whose name contains this, such as "3x3" or "d: attention".
    say : callable, optional
        Takes a line after each workload, such as ``print``; a bar is then shown meanwhile.

    Returns
    -------
    Results

    Raises
    ------
    ValueError
        Naming the argument that is wrong, or the Python that does not start.
    """
    check_arguments(only, rounds, threads, ops)
    threads = threads or cores()
    with tempfile.TemporaryDirectory(prefix="tinydiff-bench-") as scratch:
        referee = Referee(min(rounds, 2) if quick else rounds, threads, 0.3 if quick else 1.0,
                          torch_python, Path(scratch), say)
        facts = _facts(threads, *referee.introductions())
        large = not quick
        if quick:
            referee.notes.append("--quick: nothing of the size of Stable Diffusion, (d), was run")
        records, faults = [], []
        for letter in sorted(set(only)):
            try:
                records += _measure(referee, letter, large, ops)
            except WorkerError as fault:                  # the other workloads are still worth it
                faults.append(f"({letter}) {fault}")
        notes = [*referee.notes, *(
            f"{r.what}: another process was busy for {r.idle:.0%} of a turn: its figures are "
            "doubtful" for r in records if r.idle > 0.05)]
        return Results(facts, records, notes, faults)


def check_arguments(only, rounds, threads, ops=""):
    """Refuse what `run` cannot do, naming it.

    Parameters
    ----------
    only : iterable of str
    rounds : int
    threads : int or None
    ops : str
    """
    if not set(only) or not set(only) <= set(LETTERS):
        raise ValueError(f"workloads {','.join(only)!r}: name some of {','.join(LETTERS)}")
    names = [w.what for w in workloads.operations(large=True)]
    if not any(ops in name for name in names):
        raise ValueError(f"ops {ops!r}: no operation has that in its name; there is {names[0]!r}")
    for name, number in (("rounds", rounds), ("threads", 1 if threads is None else threads)):
        if not isinstance(number, int) or number < 1:
            raise ValueError(f"{name}={number!r}: a whole number from 1 is needed")


def _measure(referee, letter, large, ops):
    """Run one workload; return its records."""
    if letter == "a":
        step = workloads.train_step()
        in_shards = workloads.train_step(gcd(workloads.BATCH, referee.threads))
        if not referee.compiles:
            return referee.compare("a", [in_shards])
        numpy_only = in_shards._replace(what=f"{step.what}, NumPy only, a shard for each thread")
        return [*referee.compare("a", [step]),
                *referee.compare("a", [numpy_only], {"TINYDIFF_USE": "reference"})]
    if letter == "b":
        return referee.compare("b", [workloads.autoencoder_step()])
    if letter == "c":
        return referee.compare("c", [workloads.sample(referee.scratch)])
    if letter == "d":
        return referee.compare("d", [workloads.forward()]) if large else []
    if letter == "e":
        return referee.compare("e", [
            w for w in workloads.operations(large) if ops in w.what], seconds=referee.seconds / 4)
    if letter == "f":
        networks = [workloads.train_step()] + ([workloads.forward()] if large else [])
        return referee.memory("f", networks)
    first = workloads.sample(referee.scratch)._replace(what="from import to the first picture")
    return referee.start_up("g", first, FRESH)


def _facts(threads, ours, theirs):
    """Say what ran where."""
    facts = {"processor": processor(), "threads of either side": str(threads),
             "python": ours["python"], "numpy": ours["numpy"],
             "numba": ours["numba"] or "missing: every operation runs in NumPy",
             "operations": ours["mode"], "matrix products": ours["blas"]}
    if "torch" not in theirs["missing"]:
        facts |= {name: theirs[name] for name in ("torch", "diffusers", "transformers")
                  if theirs[name]}
        facts["torch's libraries"] = theirs["blas"]
    return facts
