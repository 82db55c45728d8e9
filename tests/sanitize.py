"""Run every kernel under NVIDIA's compute-sanitizer: memcheck, racecheck, initcheck, synccheck.

    python tests/sanitize.py                 # all four tools; skips, with the reason, where refused
    python tests/sanitize.py --work          # what they watch: each kernel's own check, small sizes
"""
import argparse
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
PLACES = ("/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
LIMIT = 240                             # seconds for all tools together
FOUND, REFUSED = 99, ("Device not supported", "not supported on this", "Unable to find injection")


def work():
    """Check every version of every kernel on the device, each array in memory of its own."""
    import cupy
    from device_checks import check, modules

    cupy.cuda.set_allocator(None)                    # a pool hides what lies out of bounds
    for name in modules():
        check(name, cupy)
        print(f"checked {name}", flush=True)


def sanitizer():
    """Return the tool's path, or None."""
    return shutil.which("compute-sanitizer") or next(
        (str(Path(place, "compute-sanitizer")) for place in PLACES
         if Path(place, "compute-sanitizer").is_file()), None)


def verdict(returncode, output):
    """Say what came of one tool: "clean", "skipped: why" or "found: what"."""
    refused = next((line.strip() for line in output.splitlines()
                    if any(words in line for words in REFUSED)), None)
    if refused:
        return f"skipped: {refused}"
    summary = next((line.strip("= ") for line in reversed(output.splitlines())
                    if "SUMMARY" in line), output.strip()[-200:])
    return "clean" if returncode == 0 else f"found: {summary}"


def run(report, command=None):
    """Run the tools one after the other; return how many found something."""
    tool = sanitizer() if command is None else command
    if tool is None:
        print("compute-sanitizer: skipped: there is none on PATH or in /usr/local/cuda")
        return 0
    end, texts, faults = time.monotonic() + LIMIT, [], 0
    for name in TOOLS:
        try:
            done = subprocess.run(
                [tool, "--tool", name, "--error-exitcode", str(FOUND), "--print-limit", "20",
                 sys.executable, __file__, "--work"], cwd=ROOT, text=True, stderr=subprocess.STDOUT,
                stdout=subprocess.PIPE, timeout=max(end - time.monotonic(), 1))
            said, text = verdict(done.returncode, done.stdout), done.stdout
        except subprocess.TimeoutExpired as fault:
            said, text = "skipped: the time was up", str(fault.output or "")
        faults += said.startswith("found")
        texts.append(f"==== {name}: {said}\n{text[-200_000:]}")
        print(f"{name}: {said}", flush=True)
    if report:
        Path(report).write_text("\n".join(texts), encoding="utf-8")
    return faults


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", action="store_true")
    parser.add_argument("--report", metavar="FILE")
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    sys.exit(work() if args.work else min(run(args.report), 1))
