"""Freed arrays stay with the process once that was asked for, and nobody asks on import."""
import ctypes
import platform
import subprocess
import sys

import pytest
from tiny import tiny_pipeline, tiny_trainer

from tinydiff.backends import memory
from tinydiff.train import train

RESIDENT = """
import sys
import numpy as np
import tinydiff.train, tinydiff.pipelines
from tinydiff.backends.memory import keep_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20     # MiB

assert keep_freed_memory.cache_info().misses == 0                     # importing asks for nothing
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = resident()
for _ in range(3):
    array = np.ones(160 * 2**20, np.uint8)
    del array
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="no glibc here")
@pytest.mark.parametrize("wish, least, most", [("keep", 150, 170), ("leave", -10, 10)])
def test_what_is_freed_stays_once_that_was_asked_for_and_is_used_again(wish, least, most):
    done = subprocess.run([sys.executable, "-c", RESIDENT, wish], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert least < float(done.stdout) < most


@pytest.mark.parametrize("library", [OSError("no such file"), object()], ids=["none", "another"])
def test_without_glibc_it_does_nothing(monkeypatch, library):
    def load(_):
        if isinstance(library, OSError):
            raise library
        return library

    monkeypatch.setattr(ctypes, "CDLL", load)
    assert memory.keep_freed_memory.__wrapped__() is False


@pytest.mark.parametrize("where", ["tinydiff.train", "tinydiff.pipelines.text_to_image"])
def test_training_and_sampling_ask_for_it(monkeypatch, where):
    asked = []
    monkeypatch.setattr(f"{where}.keep_freed_memory", lambda: asked.append(where))
    if where == "tinydiff.train":
        next(train(tiny_trainer()))
    else:
        tiny_pipeline()("red heart", steps=1)
    assert asked == [where]
