"""A folder or zip of images."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from gancore.data import Dataset
from gancore.data.cache import Cache
from gancore.data.decoding import decoder
from gancore.data.listing import SUFFIXES, File, Listing, listing
from gancore.data.progress import Progress
from gancore.errors import DataError
from gancore.files.reading import expanded
from gancore.text import shown

LARGEST = 64 << 30
"""Bytes of all images, decoded."""
SMALL = 16_000
"""Bytes of an image file, up to which one thread reads as fast as two."""
CHUNK = 16
NAMED = 10
"""Files or folders that a line names, at most."""
VERSION = 2
"""Of what is made of an image; part of the cache's key."""


def folder(
    *,
    path: str,
    size: Annotated[int, Ge(4), Le(1024)] = 32,
    channels: Literal[1, 3] = 3,
) -> Dataset:
    """Return the images in a folder or zip file as uint8 (N, channels, size, size).

    path: a folder or zip file with .png, .jpg, .jpeg, .bmp or .webp files, directly or in one
        folder a class. Links are followed, and each folder is read once.
    size: of the side: the central square is cut out and resized with Pillow's bicubic filter
        (antialiased when it shrinks); an image of this size already is left as it is.
    channels: 3 for colour, 1 for grey (ITU-R 601 luma).

    Images come in the order of their names. Labels count the class folders in the order of their
    names; there are none without class folders. Folders around all of the images are skipped.
    Images deeper than one class folder, or beside class folders, are an error, as it would be a
    guess what they are. Other files are passed over and counted by their endings (`about`), hidden
    ones and `__MACOSX` are ignored. Class folders whose names are those of a split or of masks are
    in `doubts`, but for one alone among many (a train among vehicles), and masks that are worn. Of
    an animation the first frame is taken; transparency is laid over white, but for a BMP whose
    alpha is 0 everywhere; EXIF rotation is applied; 16 bits are scaled to 8, rounded.
    Decoded images are cached (`gancore.data.cache`) until a name, size, time of change or inode
    differs. Raises DataError, which names the images that can't be read, and what they are.
    """
    place = Path(os.path.realpath(expanded(path)))
    source = listing(place)
    try:
        cache = Cache("images", json.dumps([str(place), size, channels]), _key(source))
        tensors = cache.load()
        if tensors is None:
            files = source.files()
            classes = _classes([file.name for file in files], place)
            tensors = {"samples": _decoded(source, files, size, channels)}
            names = sorted(set(classes or ()))
            if classes is not None:
                number = {name: k for k, name in enumerate(names)}
                tensors["labels"] = torch.tensor([number[name] for name in classes])
            doubts = _doubts(place, files[0].name, names)
            cache.note = json.dumps([len(names), source.others, doubts])
            cache.save(tensors)
    finally:
        source.close()
    count, others, doubts = json.loads(cache.note)
    about = _about(place, count, others if source.others is None else source.others)
    samples, labels = tensors["samples"], tensors.get("labels")
    return Dataset("folder", samples, labels, about=about, doubts=tuple(doubts))


def _key(source: Listing) -> str:
    import PIL

    return f"{VERSION} pillow {PIL.__version__} {source.stamp()}"


def _classes(names: Sequence[str], place: Path) -> list[str] | None:
    """Return the class folder of each image, or None if they are in no class folders."""
    parents = [name.split("/")[:-1] for name in names]
    pairs = zip(min(parents), max(parents), strict=False)
    around = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    classes = {name: parent[around:] for name, parent in zip(names, parents, strict=True)}
    for name, folders in classes.items():
        if len(folders) > 1:
            raise DataError(
                f"{place}: {name!r} is {len(folders)} folders deep; expected images directly or in "
                "one folder a class. Set data.path to the folder that has the class folders"
            )
    loose = [name for name, folders in classes.items() if not folders]
    if len(loose) == len(names):
        return None
    if loose:
        inside = next(name for name, folders in classes.items() if folders)
        raise DataError(
            f"{place}: {inside!r} is in a class folder, {loose[0]!r} is not. Put all images into "
            "class folders, or none"
        )
    return [name for (name,) in classes.values()]


def _about(place: Path, classes: int, others: str) -> str:
    """Return how the images are ordered, where they are, and what is passed over beside them."""
    ordered = f"in {classes:,} class folders, " if classes else ""
    passed = ""
    if others:
        read = f"only {', '.join(SUFFIXES)} are read: convert what belongs to the data"
        passed = f"; passed over: {others} ({read})"
    return f"{ordered}from {shown(str(place), 4096)}{passed}"


SPLIT = re.compile(
    r"(train(ing|val)?|trn|val(id(ation)?)?|dev|test(ing)?|eval(uation)?|images?|imgs?)"
    r"([-_ ]?(\d+|a|b|tr|ts|set|data|images?|imgs?))*",
    re.IGNORECASE,
)
MASKS = re.compile(
    r"(.*[-_ ])?(masks?|labels?|annotations?|seg(mentation)?s?|gt|ground[-_ ]?truths?|depth)"
    r"([-_ ]?(\d+|a|b|tr|ts|train|val|test))?",
    re.IGNORECASE,
)
"""Names of folders that are parts of a data set, or pictures about its images, not classes."""
PLURAL = re.compile(r".*(masks|labels|annotations|truths?)([-_ ]?\d+)?", re.IGNORECASE)
"""Those of pictures about images that are no class even beside many others."""
WORN = re.compile(r"(.*[-_ ])?(with(out)?|no|not|non)[-_ ]?masks?", re.IGNORECASE)
"""Classes of faces, which tell that other masks there are worn as well."""


def _doubts(place: Path, first: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Return a line on class folders that are none by their names.

    first: the name of an image in one of them

    A name of one thing alone among many is a class: a train among vehicles, a ski mask.
    """
    worn = any(map(WORN.fullmatch, classes))
    split = [name for name in classes if SPLIT.fullmatch(name)]
    about = [
        name for name in classes if MASKS.fullmatch(name) and not (worn and "mask" in name.lower())
    ]
    doubted = sorted({*split, *about})
    if not doubted or (
        2 * len(doubted) < len(classes) and len(split) < 2 and not any(map(PLURAL.fullmatch, about))
    ):
        return ()
    meant = min(
        classes,
        key=lambda name: (not name.lower().startswith("train"), bool(MASKS.fullmatch(name))),
    )
    inside = place.joinpath(*first.split("/")[:-2], meant)
    remedy = "unpack it, and set data.path to that folder"
    if place.is_dir():
        remedy = f"set data.path = {str(inside)!r}"
    more = f" and {len(doubted) - NAMED} more" if len(doubted) > NAMED else ""
    line = (
        f"data: the folders {', '.join(doubted[:NAMED])}{more} in {inside.parent} are taken for "
        f"classes, and images of all {len(classes)} class folders are in the data; if one alone "
        f"is meant, {remedy}"
    )
    return (shown(line, 4096),)


def _decoded(source: Listing, files: Sequence[File], size: int, channels: int) -> Tensor:
    """Return the images as one tensor, which is all that is held of them."""
    shape = (len(files), channels, size, size)
    if np.prod(shape, dtype=np.int64) > LARGEST:
        raise DataError(
            f"{len(files):,} images of {shape[1:]} take over {LARGEST >> 30} GiB. Set data.size "
            "smaller, or use fewer"
        )
    try:
        samples = torch.empty(shape, dtype=torch.uint8)
    except RuntimeError as error:
        raise DataError(f"{len(files):,} images of {shape[1:]} don't fit into memory") from error
    pixels = samples.numpy()
    decode = decoder(size, channels)

    def work(start: int) -> list[tuple[File, str]]:
        faults: list[tuple[File, str]] = []
        for k, file in enumerate(files[start : start + CHUNK], start):
            try:
                pixels[k] = decode(source.read(file))
            except Exception as error:  # a damaged image may raise anything in Pillow
                faults.append((file, str(error) or type(error).__name__))
        return faults

    # Pillow decodes without the GIL, but small images are mostly Python: a second thread slows them
    large = sum(file.size for file in files) > SMALL * len(files)
    pool = ThreadPoolExecutor(2 if large else 1)
    first: list[tuple[File, str]] = []
    count = 0
    try:
        with Progress(f"reading {len(files):,} images", len(files)) as progress:
            for faults in pool.map(work, range(0, len(files), CHUNK)):
                progress.advance(CHUNK)
                count += len(faults)
                first += faults[: NAMED - len(first)]
    finally:
        pool.shutdown(cancel_futures=True)
    if first:
        raise _refusal(source, first, count, len(files))
    return samples


def _refusal(
    source: Listing, first: Sequence[tuple[File, str]], count: int, total: int
) -> DataError:
    """Return the error that names the first of `count` files that can't be read, and why."""
    (file, reason), *others = first
    if not others:
        where = source.where(file)
        if reason.startswith(f"{where}: "):  # the listing's own, with its remedy
            return DataError(reason)
        reason = f"not an image that can be read ({shown(reason, 300)}). Remove or replace it"
        return DataError(f"{where}: {reason}")
    alike: dict[str, list[str]] = {}
    for file, reason in first:
        reason = shown(reason.removeprefix(f"{source.where(file)}: "), 300)
        alike.setdefault(reason, []).append(shown(file.name, 200))
    named = [f"{', '.join(names)} ({reason})" for reason, names in alike.items()]
    if count > len(first):
        named.append(f"and {count - len(first):,} more")
    return DataError(
        f"{shown(str(source.path), 4096)}: {count:,} of {total:,} files are not images that can be "
        f"read: {'; '.join(named)}. Remove or replace them"
    )
