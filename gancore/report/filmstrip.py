"""The filmstrip: the sample grids of a run, side by side and as an animation."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from gancore.errors import DataError
from gancore.files.reading import opened, unreadable
from gancore.report.style import our_style
from gancore.text import shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

T = TypeVar("T")

SHOWN = 6
"""Grids in the figure."""

FRAMES = 60
"""Grids in the animation, at most: a report should open on a phone."""

SIDE = 640
"""Larger grids are made smaller for the animation."""

NAME = re.compile(r"step-([0-9]{6,10})\.png")

MOST_PIXELS = 80_000_000
"""Of a grid that is read; 64 samples of 1024×1024 make 67 million."""

LABEL = 24
"""The height of the line above each frame of the animation that tells the step."""


class Frame(NamedTuple):
    """The sample grid of a step."""

    step: int
    image: Image


def read_frames(folder: Path, count: int = FRAMES) -> list[Frame]:
    """Return the grids of a folder, by step: all, or `count` spread evenly over them.

    Large ones are made smaller at once, as many of them don't fit into memory.
    Raises DataError for a picture that can't be read.
    """
    frames = []
    for step, path in spread(find_grids(folder), count):
        image = read_grid(path)
        image.thumbnail((SIDE, SIDE))
        frames.append(Frame(step, image))
    return frames


def find_grids(folder: Path) -> list[tuple[int, Path]]:
    """Return the grids step-NUMBER.png of a folder with their steps, by step."""
    named = [(NAME.fullmatch(path.name), path) for path in folder.glob("step-*.png")]
    return sorted((int(match[1]), path) for match, path in named if match)


def read_grid(path: Path) -> Image:
    """Read a grid in colours. Raises DataError for any other file, and for one of absurd size."""
    from PIL import Image

    try:
        file = opened(path)
    except OSError as error:
        raise DataError(unreadable(error, path.name)) from error
    try:
        with file:
            with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
                picture = Image.open(file, formats=["PNG"])
            width, height = picture.size
            if width * height > MOST_PIXELS:
                raise ValueError(f"{width}×{height} is over the limit of {MOST_PIXELS:,} pixels")
            picture.load()
            return picture if picture.mode == "RGB" else picture.convert("RGB")
    except Exception as error:  # Pillow raises anything for a damaged file
        raise DataError(
            f"{path.name} can't be read, so delete it or run again: {shown(str(error), 200)}"
        ) from error


def spread(items: Sequence[T], count: int) -> list[T]:
    """Return `count` items spread evenly from the first to the last, or all if they are fewer."""
    if len(items) <= count:
        return list(items)
    return [items[round(k * (len(items) - 1) / (count - 1))] for k in range(count)]


@our_style()
def filmstrip(frames: Sequence[Frame]) -> Figure:
    """Draw a few of the grids in one figure, each under its step."""
    from matplotlib.figure import Figure

    shown = spread(frames, SHOWN)
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(3 * columns, 3.2 * rows), layout="constrained")
    cells = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in cells:
        axes.set_axis_off()
    for frame, axes in zip(shown, cells, strict=False):
        axes.imshow(frame.image)
        axes.set_title(f"step {frame.step}", fontsize=10)
    return figure


def animation(frames: Sequence[Frame]) -> bytes:
    """Return the grids as an endless GIF of some seconds, the step written above each.

    Raises DataError without frames.
    """
    if not frames:
        raise DataError("an animation needs a frame")
    small = [_labelled(frame) for frame in frames]
    width = max(image.width for image in small)
    height = max(image.height for image in small)
    first, *others = (_padded(image, width, height) for image in small)
    pause = max(100, min(500, 8000 // len(frames)))
    file = io.BytesIO()
    first.save(
        file,
        "GIF",
        save_all=True,
        append_images=others,
        duration=[*[pause] * len(others), 1500],
        loop=0,
    )
    return file.getvalue()


def _labelled(frame: Frame) -> Image:
    from PIL import Image, ImageDraw, ImageFont

    grid = frame.image.copy()
    grid.thumbnail((SIDE, SIDE))
    image = Image.new("RGB", (grid.width, grid.height + LABEL), "white")
    image.paste(grid, (0, LABEL))
    font = ImageFont.load_default(size=LABEL * 0.65)
    ImageDraw.Draw(image).text((4, 3), f"step {frame.step}", fill="black", font=font)
    return image


def _padded(image: Image, width: int, height: int) -> Image:
    from PIL import Image

    canvas = Image.new("RGB", (width, height), "white")
    canvas.paste(image)
    return canvas
