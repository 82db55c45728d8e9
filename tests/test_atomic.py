"""Claim: whatever stops a save, the old version or the new one is there, whole."""

import errno
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tinydiff import atomic
from tinydiff.atomic import recover_folder, write_folder
from tinydiff.jsonfile import read_json, write_json
from tinydiff.safetensors import read_safetensors, write_safetensors

ROOT = Path(__file__).parents[1]
ONE_THREAD = {**os.environ, "OPENBLAS_NUM_THREADS": "1"}       # a fork does not copy threads


def disk_full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_bit_for_bit(tmp_path, monkeypatch, where):
    path = tmp_path / "a"
    write_safetensors(path, {"x": np.arange(5)})
    before = path.read_bytes()
    monkeypatch.setattr(atomic.os, where, disk_full)
    with pytest.raises(OSError, match=r"No space left.*was there before is intact") as full:
        write_safetensors(path, {"x": np.zeros(10)})
    assert full.value.errno == errno.ENOSPC and str(full.value).startswith(str(path))
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a"]


def test_a_folder_that_is_missing_or_a_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"not saved: .*; nothing was left there"):
        write_safetensors(tmp_path / "no" / "a", {})
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError, match=r"not saved: .*; nothing was left there"):
        write_safetensors(tmp_path / "file" / "a", {})


def run_python(code, *arguments):
    return subprocess.run([sys.executable, "-c", code, *map(str, arguments)], timeout=120,
                          cwd=ROOT, env=ONE_THREAD, capture_output=True, text=True)


LIMITED = """
import resource, sys, numpy as np
from tinydiff.atomic import write_folder
from tinydiff.safetensors import write_safetensors
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
write = lambda path: write_safetensors(path, {"x": np.ones(10_000)})
try:
    if sys.argv[2] == "file":
        write(sys.argv[1])
    else:
        write_folder(sys.argv[1], lambda new: write(new / "x"))
except OSError as error:
    sys.exit(str(error))
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no RLIMIT_FSIZE")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_write_that_the_system_cuts_short_leaves_the_old_one(tmp_path, kind):
    target = tmp_path / "old"
    if kind == "folder":
        target.mkdir()
    file = target / "x" if kind == "folder" else target
    write_safetensors(file, {"x": np.arange(5)})
    before = file.read_bytes()
    done = run_python(LIMITED, target, kind)
    assert done.returncode == 1
    assert done.stderr == f"{target}: not saved: File too large; what was there before is intact\n"
    assert file.read_bytes() == before and os.listdir(tmp_path) == ["old"]


def fill_with(value):
    """Fill a folder with two files that agree on `value`."""
    def fill(new):
        write_safetensors(new / "weights", {"x": np.full(1000, value)})
        (new / "state").mkdir()
        write_json(new / "state" / "step.json", value)
    return fill


def value_in(folder):
    """Return the value that the whole folder agrees on."""
    folder = recover_folder(folder)
    x = read_safetensors(folder / "weights")["x"]
    assert (x == read_json(folder / "state" / "step.json")).all()
    return x[0]


def test_a_folder_is_replaced_not_merged(tmp_path):
    write_folder(tmp_path / "parents" / "run", fill_with(1))
    (tmp_path / "parents" / "run" / "stray").touch()
    write_folder(tmp_path / "parents" / "run", fill_with(2))
    assert value_in(tmp_path / "parents" / "run") == 2
    assert os.listdir(tmp_path / "parents") == ["run"]
    assert sorted(os.listdir(tmp_path / "parents" / "run")) == ["state", "weights"]


def test_a_relative_folder_is_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_folder("run", fill_with(1))
    write_folder("run/", fill_with(2))
    assert value_in("run") == 2 and os.listdir(tmp_path) == ["run"]


def test_a_fill_that_fails_leaves_the_old_folder(tmp_path):
    def fail(new):
        fill_with(2)(new)
        raise KeyError("bug")
    write_folder(tmp_path / "run", fill_with(1))
    with pytest.raises(KeyError):
        write_folder(tmp_path / "run", fail)
    assert value_in(tmp_path / "run") == 1 and os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("failing", [1, 2])
def test_a_rename_that_fails_leaves_the_old_folder(tmp_path, monkeypatch, failing):
    calls, rename = [], os.rename

    def fail_once(*paths):
        calls.append(paths)
        if len(calls) == failing:
            disk_full()
        rename(*paths)

    write_folder(tmp_path / "run", fill_with(1))
    monkeypatch.setattr(atomic.os, "rename", fail_once)
    with pytest.raises(OSError, match=r"run: not saved: No space left.*is intact"):
        write_folder(tmp_path / "run", fill_with(2))
    assert value_in(tmp_path / "run") == 1 and os.listdir(tmp_path) == ["run"]


@pytest.mark.skipif(os.name != "posix", reason="Windows syncs a file only as it is written")
def test_every_file_is_on_the_disk_before_the_folder_takes_its_name(tmp_path, monkeypatch):
    # A power cut cannot be had in a test; the order of the calls can.
    calls, fsync, rename = [], os.fsync, os.rename

    def spy_fsync(descriptor):
        calls.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def spy_rename(*paths):
        calls.append("rename")
        rename(*paths)

    monkeypatch.setattr(atomic.os, "fsync", spy_fsync)
    monkeypatch.setattr(atomic.os, "rename", spy_rename)
    write_folder(tmp_path / "run", lambda new: (new / "plain").write_text("x"))
    written = [tmp_path / "run" / "plain", tmp_path / "run"]
    assert calls[:3] == [*(path.stat().st_ino for path in written), "rename"]


KILLED_AT_EACH_CALL = """
import os, signal, sys
sys.path.insert(0, "tests")
from pathlib import Path
from test_atomic import atomic, fill_with, value_in, write_folder

def counted(f, moment, calls=[]):
    def call(*arguments, **options):
        calls.append(f)
        if len(calls) == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return f(*arguments, **options)
    return call

for moment in range(1, 200):
    folder = Path(sys.argv[1], str(moment), "run")
    write_folder(folder, fill_with(1))
    child = os.fork()
    if not child:
        for module, name in [(os, "rename"), (os, "replace"), (os, "fsync"), (os, "open"),
                             (os, "unlink"), (os, "rmdir"), (os, "mkdir"), (os, "scandir")]:
            setattr(module, name, counted(getattr(module, name), moment))
        write_folder(folder, fill_with(2))
        os._exit(0)
    killed = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    print(int(killed), value_in(folder))
    write_folder(folder, fill_with(3))                  # what is left stands in nobody's way
    assert value_in(folder) == 3 and os.listdir(folder.parent) == ["run"]
    if not killed:
        break
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no fork and no SIGKILL")
def test_a_kill_at_any_moment_leaves_the_old_folder_or_the_new(tmp_path):
    # One child for each system call that the save makes, killed just before it.
    done = run_python(KILLED_AT_EACH_CALL, tmp_path)
    assert done.returncode == 0, done.stderr
    killed, values = np.array([line.split() for line in done.stdout.splitlines()], float).T
    assert (killed[:-1] == 1).all() and killed[-1] == 0 and len(killed) > 20
    assert {*values} == {1, 2} and (np.diff(values) >= 0).all() and (values[:-1] == 2).sum() > 3


ENDLESS = """
import sys
sys.path.insert(0, "tests")
from test_atomic import fill_with, write_folder
for value in range(2, 10**9):
    write_folder(sys.argv[1], fill_with(value))
    print(value, flush=True)
"""


@pytest.mark.skipif(os.name != "posix", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("delay", [0.0, 0.002])
def test_a_kill_from_outside_leaves_a_whole_folder(tmp_path, delay):
    write_folder(tmp_path / "run", fill_with(1))
    with subprocess.Popen([sys.executable, "-c", ENDLESS, tmp_path / "run"], cwd=ROOT,
                          env=ONE_THREAD, stdout=subprocess.PIPE, text=True) as saving:
        saving.stdout.readline()
        time.sleep(delay)
        saving.kill()
        saved = [2, *map(int, saving.stdout.read().split())]
    assert value_in(tmp_path / "run") in (saved[-1], saved[-1] + 1)
