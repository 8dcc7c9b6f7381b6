"""CIFAR-10, as published or as torchvision leaves it."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from gancore.data import Dataset
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
LARGEST = 64 << 20
"""Bytes in a batch file; the published ones have 31 million."""
AGAIN = f"Unpack {ARCHIVE} again, or delete the folder to have it downloaded"


def cifar10(*, path: str = "data", split: Literal["train", "test"] = "train") -> Dataset:
    """Return CIFAR-10 (Krizhevsky, 2009): 50,000 or 10,000 images of 3×32×32 in 10 classes.

    path: has the folder `cifar-10-batches-py`, as torchvision leaves it, or else the published
        `cifar-10-python.tar.gz`, which is downloaded if it is not there.
    split: train or test.

    Archive and files must have their published MD5s. The archive is read in memory and never
    unpacked. The files are pickles: they are read by an unpickler that knows the three names that
    a pickled array needs and refuses all others.
    Raises DataError.
    """
    samples, labels = [], []
    for content in _contents(expanded(path).absolute(), split):
        table = _Unpickler(io.BytesIO(content), encoding="latin1").load()
        samples.append(torch.from_numpy(table["data"]).view(-1, 3, 32, 32))
        labels.append(torch.tensor(table["labels"]))
    return Dataset("cifar10", torch.cat(samples), torch.cat(labels), split)


def _contents(root: Path, split: str) -> Iterator[bytes]:
    """Yield the content of each file of a split, in the published order."""
    batches = BATCHES[split]
    for folder in (root / FOLDER, root):
        if folder is root and not any(is_there(root / name) for name in batches):
            continue
        if folder.is_dir():
            for name, md5 in batches.items():
                yield _checked(_read(folder / name, len(batches)), md5, folder / name)
            return
    archive = root / ARCHIVE
    if not is_there(archive):
        fetch([URL], archive, ARCHIVE_MD5)
    members = _unpack(archive, batches)
    for name, md5 in batches.items():
        yield _checked(members.pop(name), md5, f"{archive}: {name}")


def _checked(content: bytes, expected: str, where: object) -> bytes:
    """Return the content of a file of CIFAR-10. Raises DataError for any but the published one."""
    md5 = _md5(content).hexdigest()
    if md5 != expected:
        raise DataError(
            f"{where}: damaged, incomplete, or not the published file: its MD5 is {md5}, expected "
            f"{expected}. {AGAIN}, or use your own images by data.name = 'folder'"
        )
    return content


def _read(file: Path, count: int) -> bytes:
    try:
        with opened(file) as stream:
            content = stream.read(LARGEST + 1)
    except FileNotFoundError as error:
        raise DataError(
            f"{file}: {error.strerror}; expected all {count} files of this split. {AGAIN}"
        ) from error
    except OSError as error:
        raise DataError(unreadable(error, file)) from error
    if len(content) > LARGEST:
        raise DataError(f"{file}: over {LARGEST >> 20} MiB, not a file of CIFAR-10. {AGAIN}")
    return content


def _unpack(archive: Path, names: Collection[str]) -> dict[str, bytes]:
    """Return the files of those names, read in memory, of the published archive.

    Any other is refused before it is opened: its first header may ask for any amount of memory.
    """
    again = f"Delete it to have it downloaded again, or get it from {URL}"
    members: dict[str, bytes] = {}
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
                        members[name] = stream.read()
    except OSError as error:
        if error.errno:  # else it is damaged
            raise DataError(unreadable(error, archive)) from error
        raise DataError(f"{archive}: can't be read ({error}). {again}") from error
    return members


def _md5(content: bytes = b"") -> hashlib._Hash:
    return hashlib.md5(content, usedforsecurity=False)


def _bytes_dtype(name: str, *_: int) -> np.dtype[np.uint8]:
    """Return uint8 for its names in pickles, which today's np.dtype takes only with a warning."""
    if name not in ("u1", "|u1"):
        raise DataError(f"a pickled array of {shown(name)}: CIFAR-10's are of uint8")
    return np.dtype(np.uint8)


class _Unpickler(pickle.Unpickler):
    """Reads tables of lists, texts, numbers and arrays of uint8. It imports nothing."""

    names: ClassVar = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): _bytes_dtype,
    }
    """What the published files name, and what stands for it."""

    def find_class(self, module: str, name: str) -> Any:
        """Return what a file of CIFAR-10 may name. Raises DataError for anything else."""
        if (module, name) not in self.names:
            raise DataError(f"a pickle names {shown(f'{module}.{name}')}, which is refused")
        return self.names[module, name]
