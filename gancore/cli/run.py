"""`gan run`: train, regularize and score a recipe."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
@click.option("--force", is_flag=True, help="Resume even though the recipe has changed.")
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
    """Train, regularize and score RECIPE."""
    from gancore.recipe import Recipe

    if seed is not None:
        overrides = (*overrides, f"train.seed={seed}")
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
    _show(done)


@contextmanager
def _stopping_on_signals(trainer: Trainer) -> Iterator[None]:
    """Let the first SIGINT or SIGTERM finish the update and save; the second exits at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        for each in previous:
            signal.signal(each, signal.SIG_DFL)
        trainer.stop(f"stopped by {signal.Signals(number).name}")

    previous = {each: signal.signal(each, stop) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)


def _show(done: Run) -> None:
    from gancore.cli.tables import show_scores

    scores = done.scores
    if scores is not None:
        show_scores(scores)
    click.echo(f"in {done.path}")
