"""What can happen to a run's folder: two runs in it, a full disk."""

from __future__ import annotations

import errno
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock, Timeout
from safetensors import SafetensorError

from gancore.errors import InputError, of_file, told_of_files
from gancore.files.reading import opened
from gancore.files.writing import delete, growing, refuse_shared
from gancore.text import shown

LOCK = ".lock"

OF_RUNS = frozenset({"environment.json", "expected.json", "checkpoints"})
"""Names of which a run's folder has one before anything in it is to be replaced."""

REPLACED = ("recipe.toml", "metrics.jsonl", "scores.json", "curves.png")
"""Names of what a run replaces or deletes as it begins."""

LOCKLESS = frozenset({errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP})
"""What the system says where files can't be locked."""


class InUseError(InputError):
    """Another process has a run's folder."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run's folder to this process.

    The kernel takes the lock back however the process ends, so that none is ever stale: a file that
    a killed one left locks nothing. Raises InputError when another process has it, and where no
    folder or lock can be.
    """
    path = folder / LOCK
    with told_of_files():
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(path)
    mine = os.getpid()
    try:
        yield
    finally:
        if os.getpid() == mine:  # not where a fork of this process ends
            with suppress(OSError):  # Windows deletes nothing that is open
                delete(path)
            lock.release()


def refuse_taken(folder: Path, *, resume: bool) -> None:
    """Raise InputError for a run folder that has anything in it but a lock.

    resume: a run's may have; then for one that is no run's, with what a run would replace
    """
    names = {path.name for path in folder.iterdir()} - {LOCK} if folder.is_dir() else set()
    if names and not resume:
        raise InputError(
            f"{folder} is not empty: go on with it by --resume, or choose another --out"
        )
    taken = [name for name in REPLACED if name in names]
    if taken and not names & OF_RUNS:
        raise InputError(
            f"{folder} is no run's folder, and has a {taken[0]}, which a run would replace: choose "
            "another --out"
        )


def refuse_unwritable(folder: Path) -> None:
    """Raise InputError, before anything slow, for a folder that can't be written to, or made."""
    there = folder.absolute()
    with told_of_files(folder):
        while not _is_there(there):
            there = there.parent
        if not there.is_dir():
            raise OSError(errno.EEXIST, "", str(there))
        if not os.access(there, os.W_OK | os.X_OK):
            raise OSError(errno.EACCES, "", str(there))


def _is_there(path: Path) -> bool:
    """Whether there is anything of this name. Raises OSError for what can never be a name."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def wait_until_free(folder: Path, seconds: float) -> None:
    """Wait until no process has a run's folder. Raises InputError when one has it for so long."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with locked(folder):
                return
        except InUseError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _acquired(path: Path) -> BaseFileLock:
    """Return the lock, held, with who holds it in its file. Raises InputError."""
    refuse_shared(path)  # filelock itself opens no link, but empties what has another name too
    # not at once: a holder that has just ended may have deleted the file in between
    lock = FileLock(path, timeout=0.1, fallback_to_soft=False)
    try:
        lock.acquire()
    except Timeout as error:
        holder = shown(_holder(path), 200)
        raise InUseError(
            f"{path.parent} is in use by {holder or 'another process'}: wait until that "
            "ends, or choose another --out"
        ) from error
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise
        raise InputError(
            f"{path.parent}: its file system has no locks. Choose another --out"
        ) from error
    try:
        with suppress(PermissionError), growing(path) as file:  # Windows lets nobody write there
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    except BaseException:
        lock.release()
        raise
    return lock


def _holder(path: Path) -> str:
    """Return what the process that holds a lock has written of itself, if that can be read."""
    try:
        with opened(path) as file:
            return file.read(200).decode(errors="replace").strip()
    except OSError:
        return ""


@contextmanager
def told_when_full(folder: Path) -> Iterator[None]:
    """Turn a write that failed, for want of room most often, into an error that says what to do."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = getattr(error, "errno", None) or _errno(str(error))
        remedy = "What was saved before is whole: make room, and go on with --resume"
        if told := of_file(error, number, folder, remedy):
            raise told from error
        raise


def _errno(text: str) -> int | None:
    """Return the error number that safetensors names in its text."""
    match = re.search(r"\(os error (\d+)\)|code: (\d+)", text)
    return int(match[1] or match[2]) if match else None
