"""CIFAR-10, as published or as torchvision leaves it."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Literal

import torch

from gancore.data import Dataset
from gancore.data.cifar_pickle import pixels, unpickled
from gancore.data.fetch import fetch
from gancore.errors import DataError
from gancore.files.reading import expanded, is_there, opened, unreadable
from gancore.text import shown

FOLDER = "cifar-10-batches-py"
ARCHIVE = "cifar-10-python.tar.gz"
ARCHIVE_MD5 = "c58f30108f718f92721af3b95e74349a"
URL = f"https://www.cs.toronto.edu/~kriz/{ARCHIVE}"
BATCHES = {
    "train": {
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    },
    "test": {"test_batch": "40351d587109b95175f43aff81a1287e"},
}
"""The files of each split and their published MD5s."""
IMAGES = 10_000
"""Images in a published file."""
LARGEST = 64 << 20
"""Bytes in a batch file; the published ones have 31 million."""


def cifar10(*, path: str = "data", split: Literal["train", "test"] = "train") -> Dataset:
    """Return CIFAR-10 (Krizhevsky, 2009): 50,000 or 10,000 images of 3×32×32 in 10 classes.

    path: has the folder `cifar-10-batches-py`, as torchvision leaves it, or else the published
        `cifar-10-python.tar.gz`, which is downloaded if it is not there.
    split: train or test.

    The archive must have the published MD5, and is read in memory, never unpacked. The published
    files are pickles: they are read by a reader that can build lists and bytes, and calls nothing
    that a file names. A file with all 10,000 images must have the published MD5; one with fewer is
    taken as it is.
    Raises DataError.
    """
    root = expanded(path).absolute()
    samples, labels = [], []
    for where, content in _batches(root, split):
        images, classes = _parse(content, where)
        samples.append(images)
        labels.append(classes)
    return Dataset("cifar10", torch.cat(samples), torch.cat(labels), split)


def _batches(root: Path, split: str) -> Iterator[tuple[str, bytes]]:
    """Yield where each file is, and its content, in the published order."""
    names = BATCHES[split]
    for folder in (root / FOLDER, root):
        if folder is root and not any(is_there(root / name) for name in names):
            continue
        if folder.is_dir():
            for name in names:
                yield str(folder / name), _read(folder / name, len(names))
            return
    archive = root / ARCHIVE
    if not is_there(archive):
        fetch([URL], archive, ARCHIVE_MD5)
    found = _unpack(archive, names)
    for name in names:
        yield f"{archive}: {name}", found.pop(name)


def _read(file: Path, count: int) -> bytes:
    try:
        with opened(file) as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise DataError(unreadable(error, file)) from error
        raise DataError(
            f"{file}: {error.strerror}; expected all {count} files of this split. "
            f"Unpack {ARCHIVE} again, or delete the folder to have it downloaded"
        ) from error
    if len(content) > LARGEST:
        raise DataError(f"{file}: over {LARGEST >> 20} MiB, not a file of CIFAR-10")
    return content


def _unpack(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """Return the files of those names, read in memory, of the published archive.

    Any other is refused before it is opened: its first header may ask for any amount of memory.
    """
    again = f"Delete it to have it downloaded again, or get it from {URL}"
    found: dict[str, bytes] = {}
    try:
        with opened(archive) as file:
            md5 = hashlib.file_digest(file, _md5).hexdigest()
            if md5 != ARCHIVE_MD5:
                raise DataError(
                    f"{archive}: damaged, incomplete, or not the published archive: its MD5 is "
                    f"{md5}, expected {ARCHIVE_MD5}. {again}"
                )
            file.seek(0)
            with tarfile.open(fileobj=file, mode="r:gz") as tar:
                for member in tar:
                    name = member.name.removeprefix(f"{FOLDER}/")
                    if name in names and (stream := tar.extractfile(member)):
                        found[name] = stream.read()
    except OSError as error:
        if error.errno:  # else it is damaged
            raise DataError(unreadable(error, archive)) from error
        raise DataError(f"{archive}: can't be read ({error}). {again}") from error
    return found


def _parse(content: bytes, where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return images (n, 3, 32, 32) and labels (n,) of one file."""
    expected = "expected CIFAR-10's pickle of data (n, 3072) and labels (n)"
    try:
        table = unpickled(content)
        fields = {_text(key): value for key, value in table.items()}
        images, labels = pixels(fields["data"]), fields["labels"]
        good = all(type(label) is int and 0 <= label < 10 for label in labels)
        if not good or not isinstance(labels, list) or images.shape != (len(labels), 3072):
            raise ValueError(f"data of shape {images.shape} and {len(labels)} labels 0 … 9")
    except Exception as error:  # a damaged pickle may raise anything
        reason = shown(f"no {error}" if isinstance(error, KeyError) else str(error), 200)
        raise DataError(f"{where}: {expected}, found: {reason}. Get it from {URL}") from error
    if len(images) == IMAGES:
        published = BATCHES["train"] | BATCHES["test"]
        if _md5(content).hexdigest() not in published.values():
            raise DataError(
                f"{where}: {IMAGES:,} images, but not the published ones: its MD5 differs. "
                f"Get it from {URL}, or use your own images by data.name = 'folder'"
            )
    return torch.from_numpy(images.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels)


def _md5(content: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(content, usedforsecurity=False)


def _text(key: str | bytes) -> str:
    return key.decode("ascii") if isinstance(key, bytes) else key
