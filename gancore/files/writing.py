"""The one part that writes and deletes files, so that no link leads it astray.

A stranger's folder may hold links wherever files will be written. None is followed: a file is
written under a fresh name beside its own, brought to the disk, and renamed over whatever is there.
"""

from __future__ import annotations

import errno
import math
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

from gancore.errors import InputError

TEMPORARY = ".writing-"
"""How the fresh names begin."""

REPLACED = ".replaced-"
"""How the name of a folder begins that another is just taking the place of."""

LEFT = re.compile(r"\.writing-[0-9a-f]{16}")
OLD = 3600.0
"""Seconds after which what has a fresh name was left there by a process that was killed."""

NOT_FOLLOWED = getattr(os, "O_NOFOLLOW", 0)
PLAIN = NOT_FOLLOWED | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
"""Flags by which no link is followed, and no FIFO waited for; Windows has but the last."""

UNSYNCED = frozenset({errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP})
"""What the system says of a folder that it can't sync: on Windows, on some networks, unreadable."""


@contextmanager
def replacing(path: Path, *, synced: bool = True) -> Iterator[BinaryIO]:
    """Yield a file that takes the place of `path`, whole, where the block ends well.

    Its `name` is for libraries that want a path. A link at `path` is replaced, not followed. The
    file's rights are the umask's.

    synced: whether it is on the disk then; False for many files that are soon made again
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path.parent.absolute())
    with _fresh(path) as fresh:
        with open(fresh, "xb", opener=_opened) as file:
            rights = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            yield file
        if stat.S_IMODE(fresh.stat().st_mode) != rights:
            fresh.chmod(rights)  # safetensors had one that only its owner may read in its place
        if synced:
            sync(fresh)
        fresh.replace(path)
    if synced:
        sync(path.parent)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a fresh folder that takes the place of `path`, whatever is there, as `replacing`.

    What is written in it comes to the disk by the functions that write it. A process that is killed
    in between leaves what was there under its name with REPLACED before it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _fresh(path) as fresh:
        fresh.mkdir()
        yield fresh
        before = path.with_name(f"{REPLACED}{path.name}")
        is_there = os.path.lexists(path)
        if is_there:
            delete(before)
            path.rename(before)
        try:
            fresh.rename(path)
        except BaseException:
            if is_there:
                before.rename(path)
            raise
    sync(path.parent)
    with suppress(OSError):  # what is another's, say, may be renamed and not deleted
        delete(before)


@contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Yield a fresh folder within another, which is gone afterwards."""
    _sweep(folder.absolute())
    with _fresh(folder / "scratch") as fresh:
        fresh.mkdir()
        yield fresh
    delete(fresh)


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all; see `replacing`."""
    write_bytes(path, text.encode())


def growing(path: Path, *, anew: bool = False) -> BinaryIO:
    """Open a file to write at its end, or one in its place.

    Raises InputError where it is no plain file.
    """
    if anew:
        path.unlink(missing_ok=True)
    elif os.path.lexists(path):
        _refuse_odd(path, path.lstat())
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | PLAIN, 0o666)
    try:
        _refuse_odd(path, os.fstat(handle))
    except InputError:
        os.close(handle)
        raise
    return os.fdopen(handle, "ab")


def refuse_shared(path: Path) -> None:
    """Raise InputError for what is no plain file, or one that has another name (a hard link)."""
    if os.path.lexists(path):
        _refuse_odd(path, path.lstat(), names=1)


def _refuse_odd(path: Path, about: os.stat_result, *, names: float = math.inf) -> None:
    if not stat.S_ISREG(about.st_mode) or about.st_nlink > names:
        raise InputError(
            f"{path} is a link, or no plain file, so nothing is written there. Delete it, or "
            "choose another folder"
        )


def make_folder(path: Path, inside: Path) -> None:
    """Make a folder inside another, if it isn't there. Raises InputError as `refuse_leaving`."""
    refuse_leaving(path, inside)
    path.mkdir(parents=True, exist_ok=True)


def refuse_leaving(path: Path, inside: Path) -> None:
    """Raise InputError for a path that links lead out of the folder it is in.

    That folder may be a link itself, and so may those above it.
    """
    parts = path.relative_to(inside).parts
    for count in range(1, len(parts) + 1):
        part = inside.joinpath(*parts[:count])
        if not Path(os.path.realpath(part)).is_relative_to(os.path.realpath(inside)):
            raise InputError(
                f"{part} is a link that leads out of {inside}, so nothing is written there. Delete "
                "it, or put the folder that it leads to in its place"
            )


def refuse_links_out(folder: Path) -> None:
    """Raise InputError where a folder in this one is a link that leads out of it."""
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and path.is_dir():
            refuse_leaving(path, folder)


def delete(path: Path) -> None:
    """Delete a folder, or whatever has its name: a file, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk; the latter where the system can."""
    is_folder = path.is_dir()
    try:
        handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR | PLAIN)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if not is_folder or error.errno not in UNSYNCED:
            raise


@contextmanager
def _fresh(path: Path) -> Iterator[Path]:
    """Yield a name beside a path; what has it is deleted, and errors name the path, if any come."""
    fresh = _named_afresh(path)
    try:
        yield fresh
    except BaseException as error:
        with suppress(OSError):
            delete(fresh)
        if isinstance(error, OSError) and error.filename == str(fresh):
            error.filename = str(path)
        raise


def _named_afresh(path: Path) -> Path:
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")


def _opened(path: str, flags: int) -> int:
    return os.open(path, flags | NOT_FOLLOWED, 0o666)


def sweep(folder: Path) -> None:
    """Delete what killed processes left in a folder that no other process writes in."""
    for leftover in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):  # it is in nobody's way
            delete(leftover)


@cache
def _sweep(folder: Path) -> None:
    """Delete what killed processes left in a folder: once in a process, as a look takes time."""
    for path in folder.glob(f"{TEMPORARY}*"):
        with suppress(OSError):
            if LEFT.fullmatch(path.name) and time.time() - path.lstat().st_mtime > OLD:
                delete(path)
