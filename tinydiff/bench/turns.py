"""Two processes that take turns: one works while the other sleeps."""
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from threading import Timer
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
PATIENCE = 300.0                        # seconds for an answer, beyond those asked for
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class WorkerError(ValueError):
    """What a worker could not do, in one line."""


class Worker:
    """The referee's end of a process that runs `tinydiff.bench.worker`.

    Parameters
    ----------
    side : {"tinydiff_side", "torch_side"}
        Which jobs it knows.
    python : path-like
        The interpreter that runs it.
    threads : int
        How many threads its libraries may use.
    log : path-like
        Where what it prints goes.
    environment : dict, optional
        Further variables.

    Raises
    ------
    WorkerError
        If the interpreter does not start.
    """

    def __init__(self, side, python=sys.executable, *, threads, log, environment=None):
        self.side = side
        self.log = Path(log)
        own = worker_environment(threads, environment)
        command = [str(python), str(HERE / "worker.py"), side]
        if side == "tinydiff_side":                       # found where this process found it
            own["PYTHONPATH"] = os.pathsep.join([str(HERE.parents[1]), own.get("PYTHONPATH", "")])
        else:
            own.pop("PYTHONPATH", None)
        with open(self.log, "wb") as output:
            try:
                self.process = subprocess.Popen(
                    command, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=output, text=True, encoding="utf-8")
            except OSError as fault:
                raise WorkerError(f"{python}: cannot be started ({fault.strerror})") from fault

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        self.close()

    def ask(self, do, **request):
        """Send one request, wait for the answer, and then until the process is asleep.

        A process that does not answer is ended: after PATIENCE, and the seconds that the request
        itself asks for.

        Returns
        -------
        answer : dict

        Raises
        ------
        WorkerError
            Saying what went wrong over there.
        """
        patience, late = PATIENCE + request.get("seconds", 0), []
        alarm = Timer(patience, lambda: (late.append(True), self.process.kill()))
        alarm.start()
        try:
            self.process.stdin.write(json.dumps({"do": do, **request}) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except OSError:
            line = ""
        alarm.cancel()
        if late:
            raise WorkerError(f"{self.side}: no answer to {do!r} in {patience:g} s: it was ended")
        if not line:
            said = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            last = next((s.strip() for s in reversed(said) if s.strip()), "it said nothing")
            raise WorkerError(f"{self.side}: the process ended: {last[:300]}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(f"{self.side}: {answer['error']}")
        self._rest()
        return answer

    def _rest(self, look=0.05, patience=10.0):
        """Wait until the process takes no more time: its idle threads spin for a while first."""
        used, end = self.busy(), time.monotonic() + patience
        while time.monotonic() < end:
            time.sleep(look)
            before, used = used, self.busy()
            if used == before:
                return
        raise WorkerError(f"{self.side}: still busy {patience:g} s after its work was done")

    def busy(self):
        """Return the processor time used so far, in seconds of all threads; 0 where unknown."""
        try:
            stat = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii")
        except OSError:
            return 0.0
        user, system = stat.rpartition(")")[2].split()[11:13]         # fields 14 and 15
        return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")

    def close(self):
        """End the process."""
        for pipe in (self.process.stdin, self.process.stdout):
            try:
                pipe.close()
            except OSError:                                           # it is gone already
                pass
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def worker_environment(threads, further=None):
    """Return the environment that both sides measure in.

    Parameters
    ----------
    threads : int
    further : dict, optional

    Returns
    -------
    environment : dict of str to str
        This process's own, without the variable that would fix OpenBLAS's kernel: it shall
        choose by the processor; and with no downloads by diffusers.
    """
    own = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    return {**own, **dict.fromkeys(THREADS, str(threads)), "HF_HUB_OFFLINE": "1",
            **(further or {})}


class Contestant(NamedTuple):
    """One way of doing a workload: its name in the record, where it runs, what it is given."""

    who: str
    worker: Worker
    kind: str
    spec: dict

    def prepare(self):
        """Build the job, unless it stands already."""
        self.worker.ask("prepare", key=self.who, kind=self.kind, spec=self.spec)

    def drop(self):
        """Give the job's memory back."""
        self.worker.ask("drop", key=self.who)


def take_turns(contestants, rounds, seconds, *, keep=True, tick=lambda: None):
    """Time all contestants, one after the other, in each of some rounds.

    Parameters
    ----------
    contestants : list of Contestant
    rounds : int
        In each, every contestant has one turn; who begins changes from round to round.
    seconds : float
        How long a turn lasts; a single call may last longer.
    keep : bool, default True
        Keep all jobs in memory.  If not, each is built anew for its turn.  The first call of a
        new job is never counted.
    tick : callable
        Called after each turn.

    Returns
    -------
    values : dict of str to list of float
        The median time of a call, for each round.
    idle : float
        The largest share of a turn for which another process was busy.
    """
    values = {c.who: [] for c in contestants}
    workers = {id(c.worker): c.worker for c in contestants}.values()
    idle = 0.0
    for k in range(rounds):
        first = k % len(contestants)
        for c in contestants[first:] + contestants[:first]:
            c.prepare()
            if not keep or k == 0:
                c.worker.ask("time", key=c.who, seconds=0)
            others = [w for w in workers if w is not c.worker]
            before, start = sum(w.busy() for w in others), time.monotonic()
            times = c.worker.ask("time", key=c.who, seconds=seconds)["times"]
            busy = sum(w.busy() for w in others) - before
            idle = max(idle, busy / (time.monotonic() - start))
            values[c.who].append(median(times))
            if not keep:
                c.drop()
            tick()
    return values, idle
