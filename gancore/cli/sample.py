"""`gan sample`: write samples of a trained run."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gancore.cli.device import device_option, threads_option
from gancore.cli.paths import Target
from gancore.cli.tables import tell
from gancore.errors import InputError, told_of_files
from gancore.files.writing import replacing

if TYPE_CHECKING:
    from torch import Tensor


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("-n", "count", type=click.IntRange(1, 10**7), default=64, show_default=True)
@click.option(
    "--out",
    required=True,
    type=Target(),
    metavar="samples.npz|grid.png|DIR/",
    help="An array (key arr_0), a picture of all of them, or a folder with a picture of each.",
)
@click.option(
    "--best", is_flag=True, help="Of the step that scored best (score.every), not the last."
)
@device_option("Where to compute.")
@threads_option()
def sample(run: Path, count: int, out: Path, best: bool, device: str) -> None:
    """Write samples of the run folder RUN: images as uint8 NHWC, points as float32 (N, d).

    The same run and number give the same samples on the same kind of machine with as many threads,
    and the first of many are the few, to rounding.
    """
    is_folder = out.suffix not in (".npz", ".png")
    if is_folder and out.suffix and not out.is_dir():
        raise InputError(
            f"--out {out}: expected a name that ends in .npz or .png, or a folder: make one first "
            "whose name has a dot"
        )
    if out.is_file() if is_folder else out.is_dir():
        raise InputError(f"--out {out}: there is something else of this name already")

    from gancore.files.storage import refuse_unwritable
    from gancore.report import display_for
    from gancore.report.grids import refuse_no_pictures, refuse_others
    from gancore.scoring.sampling import generate, shape_of_samples
    from gancore.training.device import choose_device
    from gancore.training.loading import Loader

    choose_device(device)
    refuse_unwritable(out if is_folder else out.parent)
    if is_folder:
        refuse_others(out)
    loader = Loader.of(run, best=best)
    with display_for(sys.stderr) as display:
        generator = loader.generator(device=device, progress=display.count)
    if is_folder:
        refuse_no_pictures(shape_of_samples(generator))
    samples = generate(generator, count, seed=loader.recipe.train.seed, broken=warnings.warn)
    with told_of_files(out):
        _write(samples, out)
    tell(f"{count} samples in {out}")


def _write(samples: Tensor, out: Path) -> None:
    from gancore.report import save_grid, save_images

    if out.suffix == ".npz":
        import numpy as np

        channels_last = samples.permute(0, 2, 3, 1) if samples.dim() == 4 else samples
        with replacing(out) as file:
            np.savez_compressed(file, channels_last.numpy())
    elif out.suffix == ".png":
        save_grid(samples, out)
    else:
        save_images(samples, out)
