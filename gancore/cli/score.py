"""`gan score`: score a trained run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gancore.cli.device import device_option, threads_option
from gancore.cli.tables import tell
from gancore.errors import told_of_files


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--metrics", metavar="fid,isc,kid,prc", help="What to compute; the recipe's if left out."
)
@click.option("--samples", type=click.IntRange(min=2), help="How many; the recipe's if left out.")
@device_option("Where to compute.")
@threads_option()
def score(run: Path, metrics: str | None, samples: int | None, device: str) -> None:
    """Score the run folder RUN, and write its scores.json.

    Scores under the same protocol are added to those there; under another one they replace them.
    """
    from gancore.cli.tables import show_scores
    from gancore.report import display_for
    from gancore.training import Run, score_run

    names = None if metrics is None else [name.strip() for name in metrics.split(",")]
    asked = {"metrics": names, "samples": samples}
    changes = {key: value for key, value in asked.items() if value is not None}
    folder = Run.open(run)
    with display_for(sys.stdout) as display, told_of_files(run):
        scores = score_run(folder, changes, device=device, progress=display.count, tell=display.say)
    show_scores(scores)
    tell(f"in {folder.scores_path}")
