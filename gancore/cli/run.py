"""`gan run`: train, regularize and score a recipe."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gancore.cli.device import device_option, threads_option
from gancore.cli.paths import Target
from gancore.cli.plugin_files import plugin_file_option, tell_unused, told_with_copies, use
from gancore.cli.tables import tell
from gancore.errors import RunError, told_of_files

if TYPE_CHECKING:
    from types import FrameType

    from gancore.training import Run, Trainer


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe; KEY= removes it.",
)
@click.option("--seed", type=click.IntRange(min=0), help="The same as --set train.seed=N.")
@click.option(
    "--out",
    type=Target(file_okay=False),
    help="The run folder; by default runs/RECIPE-seedN.",
)
@device_option("Where to train.")
@threads_option("as so far, where it is resumed, else as OMP_NUM_THREADS says", is_asked=True)
@click.option("--resume", is_flag=True, help="Go on from the last checkpoint, if there is one.")
@click.option(
    "--force",
    is_flag=True,
    help="Resume though the recipe, data, code or number of processes or threads has changed.",
)
@click.option(
    "--no-plugin", "dropped", multiple=True, metavar="NAME", help="Leave a plugin out; repeatable."
)
@plugin_file_option
@click.option("--dry-run", is_flag=True, help="Show what would be done, and how long it takes.")
def run(
    recipe: Path,
    overrides: tuple[str, ...],
    seed: int | None,
    out: Path | None,
    device: str,
    threads: int | None,
    resume: bool,
    force: bool,
    dropped: tuple[str, ...],
    plugin_files: tuple[Path, ...],
    dry_run: bool,
) -> None:
    """Train, regularize and score RECIPE.

    \b
    Under torchrun, its processes train it together:
    torchrun --nproc-per-node 2 -m gancore run RECIPE
    """
    from gancore.recipe import Recipe

    if force and not resume:
        tell("warning: --force has no effect without --resume", err=True)
    if seed is not None:
        overrides = (*overrides, f"train.seed={seed}")
    with _as_one(), _ending_in_words():
        loaded = Recipe.load(recipe, overrides).without(dropped)
        use(plugin_files)
        tell_unused([loaded])

        from gancore.report import display_for
        from gancore.training import Run, build_trainer, default_folder, refuse

        folder = out or default_folder(recipe.stem, loaded)
        with told_with_copies(Run(folder).plugin_files.glob("*")):
            refuse(loaded, None if dry_run else folder, device=device, resume=resume)
            built = build_trainer(loaded, device=device)
        if dry_run:
            from gancore.cli.dry_run import show

            show(built)
            return
        with _stopping_on_signals(built):
            done = built.run(
                folder,
                resume=resume,
                force=force,
                threads=threads,
                display=display_for(sys.stdout),
            )
        if built.learner.ranks.is_first:
            _show(done)


@contextmanager
def _as_one() -> Iterator[None]:
    """Let processes that torchrun started speak with one voice."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield  # without a look at torch, which takes seconds to import
        return
    from gancore.distributed.launching import told_once

    with told_once(), told_of_files():
        yield


@contextmanager
def _ending_in_words() -> Iterator[None]:
    """Let nothing end a run silently, as a network's or a data set's call of sys.exit would."""
    try:
        yield
    except SystemExit as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise RunError(
            f"the run was ended by SystemExit({error.code!r}), raised in {where.filename}, line "
            f"{where.lineno}, and is not done: raise an exception that says why"
        ) from error


@contextmanager
def _stopping_on_signals(trainer: Trainer) -> Iterator[None]:
    """Let the first signal finish the update and save; the second exits at once.

    They are SIGINT, SIGTERM, and SIGHUP of a terminal that is gone, unless nohup has it ignored.

    Under torchrun no signal exits at once. Each process gets every signal twice there, from
    torchrun and from whoever sent it, and may be telling an error meanwhile. torchrun kills what
    takes longer than 30 seconds.
    """
    from gancore.distributed.launching import is_under_torchrun

    def stop(number: int, frame: FrameType | None) -> None:
        if not is_under_torchrun():
            for signum in previous:
                signal.signal(signum, signal.SIG_DFL)
        trainer.stop(f"stopped by {signal.Signals(number).name}")

    stopping = [signal.SIGINT, signal.SIGTERM]
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN:
        stopping.append(hangup)
    previous = {signum: signal.signal(signum, stop) for signum in stopping}
    try:
        yield
    finally:
        if not is_under_torchrun():
            for signum, handler in previous.items():
                signal.signal(signum, handler)


def _show(done: Run) -> None:
    from gancore.cli.tables import show_scores

    scores = done.read_scores()
    if scores is not None:
        show_scores(scores)
    tell(f"in {done.path}")
