"""MNIST and Fashion-MNIST, from IDX files."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, cast

import numpy as np
import torch

from gancore.data import Dataset
from gancore.data.fetch import fetch
from gancore.errors import DataError
from gancore.files.reading import expanded, is_there, opened, unreadable

LARGEST = 1 << 30
"""Bytes in an IDX file; the published ones have 47 million."""
DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist puts its files."""


@dataclass(frozen=True)
class _Published:
    name: str
    folder: str  # torchvision's
    mirrors: tuple[str, ...]
    md5: dict[str, str]


MNIST = _Published(
    "mnist",
    "MNIST",
    ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
    {
        "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
        "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
        "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
        "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
    },
)
FASHION = _Published(
    "fashion_mnist",
    "FashionMNIST",
    ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
    {
        "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
    },
)


def mnist(
    *,
    path: str = "data",
    split: Literal["train", "test"] = "train",
    size: Literal[28, 32] = 32,
) -> Dataset:
    """Return MNIST (LeCun et al., 1998): 60,000 or 10,000 grey images in 10 classes.

    path: has IDX files, plain or .gz, or torchvision's folder `MNIST/raw` with them; they are
        downloaded to that folder if they are not there.
    split: train or test.
    size: 32 pads the 28×28 images with two zeros on each side; 28 leaves them.

    Raises DataError.
    """
    return _load(MNIST, expanded(path), split, size)


def fashion_mnist(
    *,
    path: str = "data",
    split: Literal["train", "test"] = "train",
    size: Literal[28, 32] = 32,
) -> Dataset:
    """Return Fashion-MNIST (Xiao et al., 2017): 60,000 or 10,000 grey images in 10 classes.

    path: has IDX files, plain or .gz, or torchvision's folder `FashionMNIST/raw` with them. If
        neither is there, those of Debian's package dataset-fashion-mnist are taken if installed,
        else they are downloaded to that folder.
    split: train or test.
    size: 32 pads the 28×28 images with two zeros on each side; 28 leaves them.

    Raises DataError.
    """
    return _load(FASHION, expanded(path), split, size, DEBIAN)


def _load(published: _Published, path: Path, split: str, size: int, *others: Path) -> Dataset:
    root = path.absolute()
    raw = root / published.folder / "raw"
    prefix = "train" if split == "train" else "t10k"
    stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    for folder in (raw, root / "raw", root, *others):
        files = [_find(folder, stem) for stem in stems]
        if None not in files:
            break
        if files != [None, None] and folder is not raw:  # there a download was interrupted
            have, lack = stems if files[1] is None else reversed(stems)
            raise DataError(f"{folder} has {have} but not {lack}: put both there, plain or .gz")
    else:
        for stem in stems:
            if _find(raw, stem) is None:
                name = f"{stem}.gz"
                urls = [f"{mirror}{name}" for mirror in published.mirrors]
                fetch(urls, raw / name, published.md5[name])
        files = [_find(raw, stem) for stem in stems]
    image_file, label_file = cast(list[Path], files)
    images, labels = read_idx(image_file, 3), read_idx(label_file, 1)
    if images.shape[1:] != (28, 28) or len(images) != len(labels) or labels.max(initial=0) > 9:
        raise DataError(
            f"{image_file} and {label_file.name} have {images.shape} and {labels.shape}: expected "
            "(n, 28, 28) and (n,), labels 0 … 9"
        )
    margin = (size - 28) // 2
    samples = np.zeros((len(images), 1, size, size), np.uint8)
    samples[:, 0, margin : size - margin, margin : size - margin] = images
    return Dataset(
        published.name, torch.from_numpy(samples), torch.from_numpy(labels.astype(np.int64)), split
    )


def _find(folder: Path, stem: str) -> Path | None:
    """Return the IDX file of that name in a folder, in any of its usual spellings."""
    head, _, tail = stem.partition("-idx")
    for name in (stem, f"{head}.idx{tail}"):
        for file in (folder / name, folder / f"{name}.gz"):
            if is_there(file):
                return file
    return None


def read_idx(file: Path, dimensions: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the uint8 array in an IDX file (yann.lecun.com's format), plain or .gz.

    Raises DataError for another type or number of dimensions, and for a file that is too short
    or too long.
    """
    try:
        with _open(file) as stream:
            header = stream.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes((0, 0, 8, dimensions)):
                raise DataError(f"{file}: expected an IDX file of {dimensions}-dimensional uint8")
            shape = np.frombuffer(header, ">u4", offset=4).tolist()
            count = math.prod(shape)
            if count > LARGEST:
                raise DataError(f"{file}: says {shape}, over the limit of {LARGEST >> 20} MiB")
            content = stream.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno:  # else it is damaged
            raise DataError(unreadable(error, file)) from error
        raise DataError(f"{file}: can't be read ({error}). Delete it and get it again") from error
    if len(content) != count:
        more = "more" if len(content) > count else f"{len(content):,}"
        raise DataError(f"{file}: says {shape}, {count:,} bytes, but has {more}. Get it again")
    return np.frombuffer(content, np.uint8).reshape(shape)


@contextmanager
def _open(file: Path) -> Iterator[IO[bytes]]:
    with opened(file) as stream:
        yield cast(IO[bytes], gzip.GzipFile(fileobj=stream)) if file.suffix == ".gz" else stream
