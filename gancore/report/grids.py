"""Grids: samples as one picture."""

from __future__ import annotations

import math
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from torch import Tensor
from torch.nn.functional import interpolate

from gancore.errors import DataError, InputError
from gancore.files.writing import replacing, scratch
from gancore.report.style import our_style
from gancore.text import shown

CELL = 64
"""Smaller images are enlarged to about so many pixels, without smoothing."""


def save_grid(samples: Tensor, path: Path, *, like: Tensor | None = None) -> None:
    """Write samples as a PNG: uint8 (N, C, H, W) as a square grid, (N, d) points as a scatter.

    One or three channels become grey or colour; of any other number, the first is shown.

    like: points whose range, and half as much again, decides the axes, so that pictures compare
    """
    with replacing(path) as file:
        if samples.dim() == 4:
            _save_image_grid(samples, file)
        else:
            _save_points(samples, file, like)


def save_images(samples: Tensor, folder: Path) -> None:
    """Write uint8 images (N, C, H, W) as PNGs of their own, 000000.png and on, all or none.

    Raises DataError for points, and for images that are neither grey nor colour; InputError for a
    folder that has something in it: two runs in one folder would be scored as one.
    """
    refuse_no_pictures(tuple(samples.shape[1:]))
    refuse_others(folder)
    from torchvision.transforms.functional import to_pil_image

    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        # within it, as it may be a link, or a disk of its own
        with scratch(folder) as writing:
            for number, image in enumerate(samples):
                # not synced: fifty thousand would take minutes, and are soon made again
                with replacing(writing / f"{number:06d}.png", synced=False) as file:
                    to_pil_image(image).save(file, "PNG")
            for path in sorted(writing.iterdir()):
                path.rename(folder / path.name)
    except BaseException:
        if is_new:
            with suppress(OSError):
                folder.rmdir()
        raise


def refuse_no_pictures(shape: tuple[int, ...]) -> None:
    """Raise DataError for samples of a shape that no picture has: (C, H, W), C being 1 or 3."""
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"samples of shape {shape} are no pictures: write them as .npz")


def refuse_others(folder: Path) -> None:
    """Raise InputError for a folder with anything in it but hidden files, older pictures say."""
    there = folder.iterdir() if folder.is_dir() else ()
    if others := sorted(path for path in there if not path.name.startswith(".")):
        raise InputError(
            f"{shown(str(folder), 4096)} is not empty ({shown(others[0].name)}"
            f"{f' and {len(others) - 1:,} more' if others[1:] else ''}): samples of two runs in "
            "one folder would be scored as one. Name a new folder, or empty it"
        )


def _save_image_grid(images: Tensor, file: BinaryIO) -> None:
    from torchvision.utils import make_grid, save_image

    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    factor = max(1, CELL // images.shape[-1])
    images = interpolate(images.float().div(255), scale_factor=factor, mode="nearest")
    grid = make_grid(images, nrow=math.isqrt(len(images) - 1) + 1, padding=2, pad_value=1.0)
    save_image(grid, file, format="png")


@our_style()
def _save_points(points: Tensor, file: BinaryIO, like: Tensor | None) -> None:
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(5, 5))).subplots()
    axes.scatter(points[:, 0], points[:, min(1, points.shape[1] - 1)], s=4, alpha=0.5)
    axes.set_aspect("equal")
    if like is not None:
        reach = 1.5 * like.abs().max().item()
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    figure.savefig(file, format="png", dpi=100)
