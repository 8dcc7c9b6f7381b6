"""The files in a folder or zip of images: found, named and read, without trusting them."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path
from typing import BinaryIO, Protocol

from gancore.errors import DataError
from gancore.files.reading import is_there, opened, unreadable
from gancore.text import shown

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")
MOST_FILES = 5_000_000
MOST_FOLDERS = 200_000
LARGEST_FILE = 64 << 20
LARGEST_TOTAL = 256 << 30
DEEPEST = 16
TAIL = 64 << 20
"""Bytes at the end of an archive that tell of its content."""
ENDINGS = 8
"""How many endings of other files are named."""


@dataclass(frozen=True, slots=True)
class File:
    """One image: its name inside (with /), its size in bytes, and what the listing knows of it."""

    name: str
    size: int
    at: object


class Listing(Protocol):
    """The images in one place. Making one raises DataError.

    path    the folder or archive
    others  how many files of which endings are passed over: "12 .tif, 3 .gif", or ""; None where
            that is not known before `files` is called
    """

    path: Path
    others: str | None

    def stamp(self) -> str:
        """Return what changes whenever the images do, without reading them."""

    def files(self) -> list[File]:
        """Return the images, sorted by name. Raises DataError."""

    def read(self, file: File) -> bytes:
        """Return the content of an image; may be called in threads. Raises DataError."""

    def where(self, file: File) -> str:
        """Return how to name an image to the user."""

    def close(self) -> None:
        """Let go of the place."""


def listing(path: Path) -> Listing:
    """Return the listing of a folder or zip file. Raises DataError."""
    if path.is_dir():
        return Folder(path)
    if is_there(path):
        return Zip(path)
    raise DataError(f"{path}: no such folder or zip file. Set data.path to one with images")


class Folder:
    """A folder on disk. Links are followed, and each folder is read once, whatever leads to it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._left_out: list[str] = []
        self.others: str | None
        try:
            self._files, self.others = _chosen(self._walk(), path)
        except FileNotFoundError as error:
            raise DataError(
                f"{_shown(str(error.filename or path))}: gone while {_shown(str(path))} was "
                "listed. Set data.path to a folder that stays as it is"
            ) from error
        except OSError as error:
            raise DataError(unreadable(error, error.filename or path)) from error
        if self._left_out:
            first = _shown(str(path / min(self._left_out)))
            warnings.warn(
                f"{_shown(str(path))}: folders that are read under another name, or are over "
                f"{DEEPEST} deep, are left out: {len(self._left_out):,}, the first is {first}",
                stacklevel=2,
            )

    def _walk(self) -> Iterator[File]:
        """Yield the files of all folders: those that are here first, then what links lead to.

        So a folder has its own name here if it has one, else that of the first link to it.
        """
        read: set[tuple[int, int]] = set()
        here, links, count = [""], list[str](), 1
        while here or links:
            prefix = here.pop() if here else heappop(links)
            folder = self.path / prefix
            about = folder.stat()
            place = (about.st_dev, about.st_ino)
            if place in read or prefix.count("/") > DEEPEST:
                self._left_out.append(prefix)
                continue
            read.add(place)
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    name = f"{prefix}{entry.name}"
                    if entry.is_dir():
                        count += 1
                        if count > MOST_FOLDERS:
                            raise DataError(
                                f"{_shown(str(self.path))}: over the limit of {MOST_FOLDERS:,} "
                                "folders and links to folders. Set data.path to the one with the "
                                "class folders"
                            )
                        if entry.is_symlink():
                            heappush(links, f"{name}/")
                        else:
                            here.append(f"{name}/")
                    elif entry.is_file():
                        about = entry.stat()
                        yield File(name, about.st_size, _state(about))
                    elif name.lower().endswith(SUFFIXES):
                        _refuse_odd(folder / entry.name)

    def stamp(self) -> str:
        """Return a hash of all names, sizes, times of change and inodes."""
        digest = hashlib.sha256()
        for file in self._files:
            digest.update(f"{file.name}\0{file.size}\0{file.at}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def files(self) -> list[File]:
        """Return the images, sorted by name."""
        return self._files

    def read(self, file: File) -> bytes:
        """Return the content of an image."""
        try:
            with opened(self.path / file.name) as stream:
                content = stream.read(LARGEST_FILE + 1)
        except OSError as error:
            raise DataError(unreadable(error, self.where(file))) from error
        if len(content) > LARGEST_FILE:
            raise DataError(_too_large(self.where(file)))
        return content

    def where(self, file: File) -> str:
        """Return the image's path."""
        return _shown(str(self.path / file.name))

    def close(self) -> None:
        """Do nothing."""


class Zip:
    """A zip file: nothing is extracted, names are only labels, and no size that it says is trusted.

    The entries are held to the limits by the sizes they declare, then read no further than those;
    one that has other content than declared is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.others: str | None = None
        self._file: BinaryIO | None = None
        self._zip: zipfile.ZipFile | None = None

    def stamp(self) -> str:
        """Return a hash of size, times of change, inode and the last 64 MiB.

        Those have the central directory with the entries' CRCs; of a smaller file, everything.
        """
        try:
            with opened(self.path) as stream:
                about = os.fstat(stream.fileno())
                digest = hashlib.sha256(f"{about.st_size} {_state(about)}\n".encode())
                stream.seek(max(0, about.st_size - TAIL))
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise DataError(unreadable(error, self.path)) from error
        return digest.hexdigest()

    def files(self) -> list[File]:
        """Return the images, sorted by name; refuse the archive if any entry is suspicious."""
        try:
            self._file = opened(self.path)
        except OSError as error:
            raise DataError(unreadable(error, self.path)) from error
        try:
            self._zip = zipfile.ZipFile(self._file)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{self.path}: not a folder, and not a zip file that can be read ({error})"
            ) from error
        entries = self._zip.infolist()
        if len(entries) > MOST_FILES:  # before anything is made of them
            raise DataError(_too_many(self.path))
        files, self.others = _chosen(self._entries(entries), self.path)
        return files

    def _entries(self, entries: Sequence[zipfile.ZipInfo]) -> Iterator[File]:
        seen = set()
        for entry in entries:
            name = entry.filename.replace("\\", "/")
            where = f"{self.path}: {_shown(name)}"
            parts = name.split("/")
            if name.startswith("/") or ".." in parts or re.match("[A-Za-z]:", name):
                raise DataError(f"{where} points outside the archive. Make it anew, names inside")
            if entry.is_dir() or name.endswith("/") or _hidden(parts):
                continue
            if entry.flag_bits & 0x1:
                raise DataError(f"{where} is encrypted. Make the archive anew without a password")
            if name in seen:
                raise DataError(f"{where} is there twice. Make the archive anew")
            seen.add(name)
            if not name.lower().endswith(SUFFIXES):
                yield File(name, 0, None)
                continue
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(
                    f"{where} is compressed by method {entry.compress_type}. Make the archive "
                    "anew, stored or deflated"
                )
            if stat.S_ISLNK(entry.external_attr >> 16):
                raise DataError(f"{where} is a link. Make the archive anew with the files")
            yield File(name, entry.file_size, entry)

    def read(self, file: File) -> bytes:
        """Return the content of an image."""
        assert self._zip is not None
        assert isinstance(file.at, zipfile.ZipInfo)
        try:
            # never more than the declared size, which the limits hold for; then the CRC is checked
            with self._zip.open(file.at) as stream:
                content = stream.read(file.size + 1)
        except (
            zipfile.BadZipFile,
            zlib.error,
            OSError,
            EOFError,
            RuntimeError,
            ValueError,
        ) as error:
            raise DataError(
                f"{self.where(file)}: can't be read from the archive ({error}). Make it anew"
            ) from error
        if len(content) != file.size:
            raise DataError(f"{self.where(file)}: shorter than it says. Make the archive anew")
        return content

    def where(self, file: File) -> str:
        """Return the archive's path and the image's name in it."""
        return f"{self.path}: {_shown(file.name)}"

    def close(self) -> None:
        """Close the file."""
        for stream in (self._zip, self._file):
            if stream is not None:
                stream.close()


def _state(about: os.stat_result) -> tuple[int, int, int]:
    """Return what tells that a file of the same name and size is another, or was written to.

    The time of change of the inode, and its number, as the other time can be set to any.
    """
    return about.st_mtime_ns, about.st_ctime_ns, about.st_ino


def _chosen(listed: Iterator[File], path: Path) -> tuple[list[File], str]:
    """Return the images among the files, sorted, within the limits; and what the others are."""
    files: list[File] = []
    others: Counter[str] = Counter()
    total = 0
    for count, file in enumerate(listed, 1):
        if count > MOST_FILES:
            raise DataError(_too_many(path))
        if not file.name.lower().endswith(SUFFIXES):
            others[os.path.splitext(file.name)[1].lower()] += 1
            continue
        if file.size > LARGEST_FILE:
            raise DataError(_too_large(f"{path}: {_shown(file.name)}"))
        total += file.size
        if total > LARGEST_TOTAL:
            raise DataError(f"{path}: over the limit of {LARGEST_TOTAL >> 30} GiB of images")
        files.append(file)
    if not files:
        instead = f"; found {_counted(others)}" if others else ""
        raise DataError(
            f"{path}: no images in it; expected {', '.join(SUFFIXES)} files, directly or in one "
            f"folder a class{instead}"
        )
    return sorted(files, key=lambda file: file.name), _counted(others)


def _counted(others: Counter[str]) -> str:
    """Return how many files there are of each ending, the most frequent first: 12 .tif, 3 .gif."""
    endings = sorted(others.items(), key=lambda item: (-item[1], item[0]))
    parts = [
        f"{count:,} {shown(ending, 20) or 'without an ending'}"
        for ending, count in endings[:ENDINGS]
    ]
    if rest := sum(count for _, count in endings[ENDINGS:]):
        parts.append(f"{rest:,} of other endings")
    return ", ".join(parts)


def _refuse_odd(path: Path) -> None:
    """Raise DataError for what has an image's name, and is no file."""
    try:
        opened(path).close()
    except FileNotFoundError as error:
        if path.is_symlink():
            raise DataError(f"{path}: a link to nothing. Remove it") from error
    except OSError as error:
        raise DataError(f"{unreadable(error, path)}. Remove it") from error


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _shown(name: str) -> str:
    """Return a name without what could control a terminal."""
    return name if name.isprintable() else repr(name)[1:-1]


def _too_many(path: Path) -> str:
    return f"{path}: over the limit of {MOST_FILES:,} files. Use fewer"


def _too_large(where: str) -> str:
    return f"{where}: over the limit of {LARGEST_FILE >> 20} MiB for an image. Make it smaller"
