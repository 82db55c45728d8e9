"""A process that measures: it reads a line of JSON, does what it says, answers with a line.

    python tinydiff/bench/worker.py torch_side

It runs as a plain file, so that a Python without tinydiff, and without what tinydiff needs, can
run it.  Between two requests it is blocked on its input and takes nothing from the other process.

=====================  =================================================================
request                answer
=====================  =================================================================
do: hello              versions, threads, what is missing
do: prepare            key, kind, spec: build a job, unless there is one under this key
do: check              key, file: what the job computes, into an .npz file
do: time               key, seconds: ``times``, the seconds of each call
do: drop               key: forget the job
=====================  =================================================================

Every answer also says how long the process has been ``alive`` and the most memory that it has held.
"""
import gc
import json
import os
import re
import sys
import time
import traceback
import types
from importlib import import_module
from pathlib import Path


def main():
    """Serve requests until the input ends."""
    start = time.perf_counter()
    answers = _private_output()
    folder = str(Path(__file__).resolve().parent)
    sys.path = [place for place in sys.path if place != folder]       # its files are no libraries
    # A package in sys.modules is not looked for: neither its __init__ nor its parent's is run.
    sys.modules["tinydiff.bench"] = package = types.ModuleType("tinydiff.bench")
    package.__path__ = [folder]
    side = import_module(f"tinydiff.bench.{sys.argv[1]}")

    jobs = {}
    for line in sys.stdin:
        try:
            answer = respond(json.loads(line), side, jobs)
        except Exception as fault:                        # whatever it is, the other end is told
            traceback.print_exc()
            answer = {"error": f"{type(fault).__name__}: {' '.join(str(fault).split())}"[:400]}
        answer |= {"alive": time.perf_counter() - start, "peak": peak_memory()}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def respond(request, side, jobs):
    """Do what one request says.

    Parameters
    ----------
    request : dict
    side : module
        Has ``hello()`` and ``JOBS``, ``{kind: class}``; an object of the class is called to do
        the work once, ``check()`` returns ``{name: ndarray}``, and ``before()``, where there is
        one, makes ready for a call without being timed.
    jobs : dict
        The prepared ones, by key; changed in place.

    Returns
    -------
    answer : dict
    """
    do, key = request["do"], request.get("key")
    if do == "hello":
        return side.hello()
    if do == "prepare":
        if key not in jobs:
            jobs[key] = side.JOBS[request["kind"]](request["spec"])
    elif do == "check":
        import numpy as np
        np.savez(request["file"], **jobs[key].check())
    elif do == "time":
        return {"times": timed(jobs[key], request["seconds"])}
    elif do == "drop":
        jobs.pop(key, None)
        gc.collect()
    else:
        raise ValueError(f"unknown request {do!r}")
    return {}


def timed(job, seconds):
    """Call `job` until `seconds` have passed; return the seconds that each call took.

    The first call finds the caches as the other process left them: where there is time for
    more than one call, it is not counted.
    """
    times = []
    before = getattr(job, "before", None)
    end = time.perf_counter() + seconds
    while not times or time.perf_counter() < end:
        if before:
            before()
        start = time.perf_counter()
        job()
        times.append(time.perf_counter() - start)
    return times[1:] or times


def peak_memory():
    """Return the largest resident set so far, in bytes: interpreter, libraries and arrays."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(re.search(r"VmHWM:\s*(\d+) kB", status)[1]) * 1024
    except (OSError, TypeError):
        pass
    try:
        from resource import RUSAGE_SELF, getrusage
    except ImportError:                                   # Windows
        return None
    return getrusage(RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _private_output():
    """Keep the way back for answers; what libraries print goes to stderr instead."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return answers


if __name__ == "__main__":
    main()
