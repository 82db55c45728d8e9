"""Files and folders that are written whole or not at all.

Whatever stops a write (a full disk, a kill, a power cut), what was there before is still there:
the new version is made beside it under another name, forced to the disk, and only then renamed.
"""

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path):
    """Open a binary file that takes the name `path` only when it is complete and on the disk.

    Parameters
    ----------
    path : path-like

    Yields
    ------
    file : binary file
        A temporary file in the same folder; if anything is raised it is removed, and what was
        at `path` stays.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise _not_saved(path, error) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
    _sync_folder(path.parent)


def write_folder(folder, fill):
    """Write a whole folder atomically; the folder that was there is replaced, not merged.

    Parameters
    ----------
    folder : path-like
    fill : callable
        ``fill(new)`` writes the files into the empty folder `new`, a sibling of `folder`.

    Raises
    ------
    OSError
        If it cannot be written; the old folder is intact then.

    Notes
    -----
    A folder cannot be renamed over another one, so two renames swap them::

        folder -> .folder.old,    .folder.new -> folder

    A process that dies before the second leaves `.folder.old`, complete; `recover_folder`
    gives it its name back.
    """
    folder = recover_folder(folder)
    new, old = _siblings(folder)
    try:
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        fill(new)
        _sync_tree(new)
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
            _sync_folder(folder.parent)
        finally:
            recover_folder(folder)
    except OSError as error:
        raise _not_saved(folder, error) from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def recover_folder(folder):
    """Undo what a `write_folder` that died left half done; call it before reading `folder`.

    Parameters
    ----------
    folder : path-like

    Returns
    -------
    folder : Path
        Absolute.
    """
    folder = Path(os.path.abspath(folder))
    _, old = _siblings(folder)
    if old.exists():
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, folder)
    return folder


def _siblings(folder):
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _sync_tree(folder):
    """Force a folder's files to the disk: a rename must not arrive before what it names."""
    for parent, _, files in os.walk(folder):
        for file in files:
            _sync(os.path.join(parent, file))
        _sync_folder(parent)


def _sync_folder(folder):
    with suppress(OSError):              # some network file systems cannot
        _sync(folder)


def _sync(path):
    if os.name != "posix":
        return                           # Windows opens no folder, and syncs no file it only reads
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _not_saved(path, error):
    fate = "what was there before is intact" if os.path.exists(path) else "nothing was left there"
    reason = os.strerror(error.errno) if error.errno else error
    return one_line(error, f"{path}: not saved: {reason}; {fate}")


def not_read(path, error):
    """Build the one-line error of a file that cannot be read.

    Parameters
    ----------
    path : path-like
    error : OSError

    Returns
    -------
    again : OSError
    """
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(f"{path}: no such file")
    return one_line(error, f"{path}: cannot be read: {error.strerror or error}")


def one_line(error, message):
    """Build an OSError of the same class and number that prints as `message` alone.

    Parameters
    ----------
    error : OSError
    message : str

    Returns
    -------
    again : OSError
    """
    again = type(error)(message)
    again.errno = error.errno
    return again
