"""`gan run`: train, regularize and score a recipe."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from types import FrameType

    from gancore.training import Run, Trainer


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the recipe."
)
@click.option("--seed", type=click.IntRange(min=0), help="The same as --set train.seed=N.")
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The run folder; by default runs/RECIPE-seedN.",
)
@click.option("--device", default="auto", metavar="auto|cpu|cuda", help="Where to train.")
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint, if there is one.")
@click.option(
    "--force",
    is_flag=True,
    help="Resume even though the recipe, or the number of processes, has changed.",
)
@click.option(
    "--no-plugin", "dropped", multiple=True, metavar="NAME", help="Leave a plugin out; repeatable."
)
@click.option("--dry-run", is_flag=True, help="Show what would be done, and how long it takes.")
def run(
    recipe: Path,
    overrides: tuple[str, ...],
    seed: int | None,
    out: Path | None,
    device: str,
    resume: bool,
    force: bool,
    dropped: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Train, regularize and score RECIPE.

    \b
    Under torchrun, its processes train it together:
    torchrun --nproc-per-node 2 -m gancore run RECIPE
    """
    from gancore.recipe import Recipe

    if seed is not None:
        overrides = (*overrides, f"train.seed={seed}")
    with _as_one():
        loaded = Recipe.load(recipe, overrides).without(dropped)

        from gancore.report import display_for
        from gancore.training import default_folder, trainer

        built = trainer(loaded, device=device)
        if dry_run:
            from gancore.cli.dry_run import show

            show(built)
            return
        with _stopping_on_signals(built):
            done = built.run(
                out or default_folder(recipe.stem, loaded),
                resume=resume,
                force=force,
                display=display_for(sys.stdout),
            )
        if built.ranks.is_first:
            _show(done)


def _as_one() -> AbstractContextManager[None]:
    """Return the context in which processes that torchrun started speak with one voice."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return nullcontext()  # without a look at torch, which takes seconds to import
    from gancore.ranks import told_once

    return told_once()


@contextmanager
def _stopping_on_signals(trainer: Trainer) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM finish the update and save; the second exits at once.

    Under torchrun each comes twice, from it and from whoever sent it there, and while an error is
    told: none exits at once, as torchrun kills what takes longer than 30 seconds.
    """
    from gancore.ranks import is_under_torchrun

    def stop(number: int, frame: FrameType | None) -> None:
        if not is_under_torchrun():
            for each in previous:
                signal.signal(each, signal.SIG_DFL)
        trainer.stop(f"stopped by {signal.Signals(number).name}")

    previous = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if not is_under_torchrun():
            for each, handler in previous.items():
                signal.signal(each, handler)


def _show(done: Run) -> None:
    from gancore.cli.tables import show_scores

    scores = done.scores
    if scores is not None:
        show_scores(scores)
    click.echo(f"in {done.path}")
