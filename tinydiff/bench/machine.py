"""What computer this is: processor, cores, free memory."""
import os
import platform
import re
from math import inf
from pathlib import Path


def processor():
    """Return the processor's name, as far as the system tells."""
    found = re.search(r"model name\s*: (.+)", _text("/proc/cpuinfo"))
    return found[1] if found else platform.processor() or platform.machine()


def cores():
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory():
    """Return the bytes that programs can still take; infinity where the system does not tell."""
    found = re.search(r"MemAvailable:\s*(\d+) kB", _text("/proc/meminfo"))
    return int(found[1]) * 1024 if found else inf


def _text(path):
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:                                       # another system than Linux
        return ""
