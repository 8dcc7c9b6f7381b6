"""A folder or zip of images."""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from gancore.data import Dataset
from gancore.data.cache import Cache
from gancore.data.listing import File, Listing, listing
from gancore.data.progress import Progress
from gancore.errors import DataError
from gancore.reading import expanded

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

    Pixels = np.ndarray[Any, np.dtype[np.uint8]]

FORMATS = ("PNG", "JPEG", "BMP", "WEBP")
MOST_PIXELS = 1 << 26
"""In one image, before it is decoded."""
LARGEST = 64 << 30
"""Bytes of all images, decoded."""
SMALL = 16_000
"""Bytes of an image file, up to which one thread reads as fast as two."""
CHUNK = 16
VERSION = 1
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
    guess what they are. Other files, hidden ones and `__MACOSX` are ignored. Of an animation the
    first frame is taken; transparency is laid over white; EXIF rotation is applied; 16 bits are
    scaled to 8. Decoded images are cached (`gancore.data.cache`) until a name, size or time of
    change differs. Raises DataError: the first image that can't be read is named.
    """
    place = Path(os.path.realpath(expanded(path)))
    source = listing(place)
    try:
        cache = Cache("images", json.dumps([str(place), size, channels]), _key(source))
        if (found := cache.load()) is not None:
            return Dataset("folder", found["samples"], found.get("labels"))
        files = source.files()
        labels = _labels([file.name for file in files], place)
        samples = _decoded(source, files, size, channels)
    finally:
        source.close()
    cache.save({"samples": samples} if labels is None else {"samples": samples, "labels": labels})
    return Dataset("folder", samples, labels)


def _key(source: Listing) -> str:
    import PIL

    return f"{VERSION} pillow {PIL.__version__} {source.stamp()}"


def _labels(names: Sequence[str], place: Path) -> Tensor | None:
    """Return the class of each image by its folder, or None if they are in no class folders."""
    parents = [name.split("/")[:-1] for name in names]
    pairs = zip(min(parents), max(parents), strict=False)
    around = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    classes = {name: parent[around:] for name, parent in zip(names, parents, strict=True)}
    for name, each in classes.items():
        if len(each) > 1:
            raise DataError(
                f"{place}: {name!r} is {len(each)} folders deep; expected images directly or in "
                "one folder a class. Set data.path to the folder that has the class folders"
            )
    loose = [name for name, each in classes.items() if not each]
    if len(loose) == len(names):
        return None
    if loose:
        inside = next(name for name, each in classes.items() if each)
        raise DataError(
            f"{place}: {inside!r} is in a class folder, {loose[0]!r} is not. Put all images into "
            "class folders, or none"
        )
    number = {name: k for k, name in enumerate(sorted({each[0] for each in classes.values()}))}
    return torch.tensor([number[each[0]] for each in classes.values()])


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

    def work(start: int) -> int:
        chunk = files[start : start + CHUNK]
        for k, file in enumerate(chunk, start):
            content = source.read(file)
            try:
                pixels[k] = decode(content)
            except Exception as error:  # a damaged image may raise anything in Pillow
                reason = str(error) or type(error).__name__
                raise DataError(
                    f"{source.where(file)}: not an image that can be read ({reason}). "
                    "Remove or replace it"
                ) from error
        return len(chunk)

    # Pillow decodes without the GIL, but small images are mostly Python: a second thread slows them
    large = sum(file.size for file in files) > SMALL * len(files)
    pool = ThreadPoolExecutor(2 if large else 1)
    try:
        with Progress(f"reading {len(files):,} images", len(files)) as progress:
            for done in pool.map(work, range(0, len(files), CHUNK)):
                progress.advance(done)
    finally:
        pool.shutdown(cancel_futures=True)
    return samples


def decoder(size: int, channels: int) -> Callable[[bytes], Pixels]:
    """Return a function from an image file's bytes to uint8 (channels, size, size)."""
    from PIL import Image, ImageOps, UnidentifiedImageError, WebPImagePlugin

    Image.preinit()  # here, as it is not meant for threads
    _ = WebPImagePlugin  # registers itself
    mode = "L" if channels == 1 else "RGB"

    def decode(content: bytes) -> Pixels:
        try:
            image: Picture = Image.open(io.BytesIO(content), formats=FORMATS)
        except UnidentifiedImageError:
            raise ValueError("not PNG, JPEG, BMP or WebP, or damaged") from None
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise ValueError(f"{width}×{height} is over the limit of {MOST_PIXELS:,} pixels")
        image.load()
        with contextlib.suppress(Exception):  # a picture may be fine where its EXIF is not
            image = ImageOps.exif_transpose(image)
        image = _plain(image, mode)
        width, height = image.size
        if width != height:
            side = min(width, height)
            left, top = (width - side) // 2, (height - side) // 2
            image = image.crop((left, top, left + side, top + side))
        if image.size != (size, size):
            image = image.resize((size, size), Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)

    return decode


def _plain(image: Picture, mode: str) -> Picture:
    """Return an image in 8 bits, grey or colour, transparency laid over white."""
    from PIL import Image

    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):  # 16 bits: Pillow's conversion would clip them at 255
        wide = np.asarray(image, dtype=np.int64)
        image = Image.fromarray(np.round(wide / 257).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert(mode)
