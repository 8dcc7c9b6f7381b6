"""What can happen to a run's folder: two runs in it, a full disk."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gancore.errors import InputError, of_file, told_of_files

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep a run's folder to this process.

    The kernel takes the lock back however the process ends, so that none is ever stale: a file that
    a killed one left locks nothing. Raises InputError when another process has it, and where no
    folder can be.
    """
    path = folder / LOCK
    with told_of_files():
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquired(path)
    try:
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(handle)


def refuse_taken(folder: Path) -> None:
    """Raise InputError for a run folder that has anything in it but a lock."""
    if folder.is_dir() and any(path.name != LOCK for path in folder.iterdir()):
        raise InputError(
            f"{folder} is not empty: go on with it by --resume, or choose another --out"
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
        except InputError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.2)


def _acquired(path: Path) -> int:
    """Return a handle that holds the lock. Raises InputError."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(handle), path.stat()):
                return handle
        except BlockingIOError as error:
            holder = os.read(handle, 200).decode(errors="replace").strip()
            os.close(handle)
            raise InputError(
                f"{path.parent} is in use by {holder or 'another process'}: wait until that ends, "
                "or choose another --out"
            ) from error
        os.close(handle)  # its holder has just ended, and deleted it


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
    found = re.search(r"\(os error (\d+)\)|code: (\d+)", text)
    return int(found[1] or found[2]) if found else None
