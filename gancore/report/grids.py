"""Grids: samples as one picture."""

from __future__ import annotations

import math
from pathlib import Path

from torch import Tensor
from torch.nn.functional import interpolate

from gancore.errors import DataError
from gancore.report.style import our_style

CELL = 64
"""Smaller images are enlarged to about so many pixels, without smoothing."""


def save_grid(samples: Tensor, path: Path, *, like: Tensor | None = None) -> None:
    """Write samples as a PNG: uint8 (N, C, H, W) as a square grid, (N, d) points as a scatter.

    One or three channels become grey or colour; of any other number, the first is shown.

    like: points whose range, and half as much again, decides the axes, so that pictures compare
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if samples.dim() == 4:
        _save_image_grid(samples, path)
    else:
        _save_points(samples, path, like)


def save_images(samples: Tensor, folder: Path) -> None:
    """Write uint8 images (N, C, H, W) as PNGs of their own, 000000.png and on.

    Raises DataError for points, and for images that are neither grey nor colour.
    """
    if samples.dim() != 4 or samples.shape[1] not in (1, 3):
        raise DataError(
            f"samples of shape {tuple(samples.shape[1:])} are no pictures: write them as .npz"
        )
    from torchvision.transforms.functional import to_pil_image

    folder.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(samples):
        to_pil_image(image).save(folder / f"{number:06d}.png")


def _save_image_grid(images: Tensor, path: Path) -> None:
    from torchvision.utils import make_grid, save_image

    if images.shape[1] not in (1, 3):
        images = images[:, :1]
    factor = max(1, CELL // images.shape[-1])
    images = interpolate(images.float().div(255), scale_factor=factor, mode="nearest")
    grid = make_grid(images, nrow=math.isqrt(len(images) - 1) + 1, padding=2, pad_value=1.0)
    save_image(grid, path)


@our_style()
def _save_points(points: Tensor, path: Path, like: Tensor | None) -> None:
    from matplotlib.figure import Figure

    axes = (figure := Figure(figsize=(5, 5))).subplots()
    axes.scatter(points[:, 0], points[:, min(1, points.shape[1] - 1)], s=4, alpha=0.5)
    axes.set_aspect("equal")
    if like is not None:
        reach = 1.5 * like.abs().max().item()
        axes.set(xlim=(-reach, reach), ylim=(-reach, reach))
    figure.savefig(path, dpi=100)
