"""The referee: same results first, then turns; memory and start-up in fresh processes."""
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager

import numpy as np
from tqdm import tqdm

from tinydiff.backends.compiling import compile_first
from tinydiff.bench.machine import free_memory
from tinydiff.bench.report import TORCH, Record
from tinydiff.bench.turns import Contestant, Worker, take_turns

NEEDS = {"train": {"torch", "diffusers"}, "autoencoder": {"torch", "diffusers"},
         "forward": {"torch", "diffusers"}, "op": {"torch"},
         "sample": {"torch", "diffusers", "transformers"}}
COLD = {                                # with an empty kernel cache: what is chosen in TINYDIFF_USE
    "not compiled: readable path": "",
    "compiling on the way": "fast",
}
SPARE = 1.2                             # a job may need this much more memory than it says


class Referee:
    """What all workloads of one run share.

    Parameters
    ----------
    rounds, threads : int
        As for `tinydiff.bench.run`.
    seconds : float
        How long a turn lasts.
    torch_python : path-like
    scratch : Path
        A folder for files in passing.
    say : callable or None
        Takes a line after each workload.

    Attributes
    ----------
    notes : list of str
        What was not run, and why.
    has : set of str
        Those of torch, diffusers and transformers that can be imported; see `introductions`.
    compiles : bool
        Whether tinydiff's side runs compiled kernels.
    """

    def __init__(self, rounds, threads, seconds, torch_python, scratch, say=None):
        self.rounds, self.threads, self.seconds = rounds, threads, seconds
        self.torch_python, self.scratch, self.say = torch_python, scratch, say
        self.notes = []
        self.has = set()
        self.compiles = False

    def introductions(self):
        """Ask both sides who they are; fill `has`, and note what is missing.

        Returns
        -------
        ours, theirs : dict
            Answers to "hello", see `tinydiff_side` and `torch_side`.
        """
        with self.worker("torch") as other:
            theirs = other.ask("hello")
        compile_first()
        with self.worker("tinydiff") as own:
            ours = own.ask("hello")
        self.compiles = ours["mode"] != "reference"
        missing = theirs["missing"]
        self.has = {"torch", "diffusers", "transformers"} - set(missing)
        if "torch" in missing:
            self.has = set()
            self.notes.append(f"torch is missing in {self.torch_python}: tinydiff is timed alone; "
                              "--torch-python names a Python that has it")
        elif missing:
            self.notes.append(f"{' and '.join(missing)} missing in {self.torch_python}: tinydiff "
                              "is timed alone where PyTorch would need it")
        elif theirs["threads"] != self.threads:
            self.notes.append(f"PyTorch took {theirs['threads']} threads, not {self.threads}")
        return ours, theirs

    def compare(self, letter, chosen, environment=None, seconds=None):
        """Compare the results of some workloads, then time them.

        Parameters
        ----------
        letter : str
        chosen : list of Workload
        environment : dict, optional
            Further variables for tinydiff's side.
        seconds : float, optional
            Of a turn, where another length than usual is wanted.

        Returns
        -------
        records : list of Record
        """
        records = []
        what = chosen[0].what if len(chosen) == 1 else f"{len(chosen)} operations"
        turns = self.rounds * sum(len(self.contestants(w)) for w in chosen)
        with self.clock(letter, what, turns) as bar, ExitStack() as stack:
            own = stack.enter_context(self.worker("tinydiff", environment))
            other = stack.enter_context(self.worker("torch")) if self.has else None
            for w in filter(self._fits, chosen):
                contestants = [contestant(own if who == "tinydiff" else other, w, who)
                               for who in self.contestants(w)]
                keep = free_memory() > SPARE * 1e9 * w.gigabytes * len(contestants)
                apart = self._apart(contestants, keep)
                note, values, idle = None, {}, 0.0
                if apart is not None and not apart <= w.bound:        # NaN, too
                    note = f"not compared: results differ by {apart:.1e}, bound {w.bound:.0e}"
                    bar.update(self.rounds * len(contestants))
                else:
                    values, idle = take_turns(contestants, self.rounds, seconds or self.seconds,
                                              keep=keep, tick=bar.update)
                records.append(Record(letter, w.what, "s", values, apart, note, idle))
                for c in contestants:
                    c.drop()
        return records

    def memory(self, letter, chosen):
        """Record the peak resident memory of fresh processes that do a workload twice.

        It counts all that the process held in memory at its fullest: the interpreter, the
        libraries, the weights, and what the workload itself took.

        Returns
        -------
        records : list of Record
        """
        records = []
        for w in filter(self._fits, chosen):
            values, whos = {}, self.contestants(w)
            with self.clock(letter, f"peak memory, {w.what}", len(whos)) as bar:
                self.fresh(w, "tinydiff")                 # compiles, where that is still to do
                for who in whos:
                    values[who] = [self.fresh(w, who)["peak"]]
                    bar.update()
            records.append(Record(letter, f"peak memory, {w.what}", "bytes", values))
        return records

    def start_up(self, letter, w, times):
        """Record the seconds from a fresh process's first line to the end of its first job.

        Parameters
        ----------
        letter : str
        w : Workload
        times : int
            Fresh processes for each figure.

        Returns
        -------
        records : list of Record
            With the kernels compiled before; with an empty kernel cache, as after installation;
            and from there, compiling what it needs.
        """
        warm, whos = {}, self.contestants(w)[:2]
        records = [Record(letter, w.what, "s", warm)]
        with self.clock(letter, w.what, times * len(whos)) as bar:
            for who in whos:
                self.fresh(w, who)                        # files are read, kernels compiled
                warm[who] = []
                for _ in range(times):
                    warm[who].append(self.fresh(w, who)["alive"])
                    bar.update()
        for what, chosen in COLD.items() if self.compiles else ():
            cold = []
            with self.clock(letter, f"{w.what}, {what}", times) as bar:
                for _ in range(times):
                    with tempfile.TemporaryDirectory(dir=self.scratch) as cache:
                        cold.append(self.fresh(w, "tinydiff", {
                            "TINYDIFF_USE": chosen, "TINYDIFF_CACHE": cache})["alive"])
                    bar.update()
            records.append(Record(letter, f"{w.what}, {what}", "s", {**warm, "tinydiff": cold}))
        return records

    def fresh(self, w, who, environment=None):
        """Do a workload twice over in a new process; return its last answer.

        Its field ``alive`` is the process's age after the first time.
        """
        with self.worker(who, environment) as worker:
            contestant(worker, w, who).prepare()
            first = worker.ask("time", key=who, seconds=0)
            return worker.ask("time", key=who, seconds=0) | {"alive": first["alive"]}

    def contestants(self, w):
        """Name who can do a workload: "tinydiff", and PyTorch's layouts if nothing is missing."""
        if not NEEDS[w.kind] <= self.has:
            return ["tinydiff"]
        return ["tinydiff", *(TORCH if w.pictures else TORCH[:1])]

    def worker(self, who, environment=None):
        """Start the process that a contestant runs in."""
        side, python = (("tinydiff_side", sys.executable) if who == "tinydiff" else
                        ("torch_side", self.torch_python))
        return Worker(side, python, threads=self.threads, log=self.scratch / f"{side}.log",
                      environment=environment)

    @contextmanager
    def clock(self, letter, what, total):
        """Show a bar; at the end, say how long the workload took."""
        start = time.monotonic()
        with tqdm(total=total, desc=f"({letter}) {what}", leave=False, delay=1,
                  disable=None if self.say else True) as bar:   # None: only on a terminal
            yield bar
        if self.say:
            self.say(f"({letter}) {what}: measured in {time.monotonic() - start:.0f} s")

    def _apart(self, contestants, keep):
        """Return how far the two sides' results lie apart; None where there is one side."""
        results = []
        path = self.scratch / "check.npz"
        for c in contestants:
            c.prepare()
            c.worker.ask("check", key=c.who, file=str(path))
            with np.load(path, allow_pickle=False) as file:
                results.append(dict(file))
            path.unlink()
            if not keep:
                c.drop()
        ours, *theirs = results
        return float(np.max([difference(ours, other) for other in theirs])) if theirs else None

    def _fits(self, w):
        """Say whether there is memory for one side of `w`, and note it if not."""
        free = free_memory()
        if free > SPARE * 1e9 * w.gigabytes:
            return True
        self.notes.append(f"{w.what}: not run, it needs {SPARE * w.gigabytes:.1f} GB of memory, "
                          f"{free / 1e9:.1f} are free")
        return False


def contestant(worker, w, who):
    """Enter `who` for a workload, in the process `worker`."""
    spec = w.spec if who == "tinydiff" else {**w.spec, "layout": who}
    return Contestant(who, worker, w.kind, spec)


def difference(ours, theirs):
    """Return the largest difference of two results, as a share of the largest entry.

    Parameters
    ----------
    ours, theirs : dict of str to ndarray

    Returns
    -------
    float
        Of the worst array; infinite where names or shapes differ, NaN where a number is NaN.

    Examples
    --------
    >>> difference({"y": np.array([1.0, 4.0])}, {"y": np.array([1.5, 4.0])})
    0.125
    """
    shapes = [{name: x.shape for name, x in side.items()} for side in (ours, theirs)]
    if shapes[0] != shapes[1]:
        return float("inf")
    # np.max, and not max: that one drops a NaN.
    return float(np.max([np.abs(ours[name] - x).max() / (np.abs(x).max() or 1)
                         for name, x in theirs.items()]))
