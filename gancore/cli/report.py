"""`gan report`: the pictures and scores of a run in one HTML file."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--device", default="auto", metavar="auto|cpu|cuda", help="Where to compute.")
def report(run: Path, device: str) -> None:
    """Write the report.html of the run folder RUN, and its animated samples.gif.

    The page needs nothing beside it: scores, samples over time, curves, what the critic learned,
    recipe and versions.
    """
    from gancore.report import display_for
    from gancore.training import Run
    from gancore.training.reporting import write_report

    found = Run.open(run)
    display = display_for(sys.stdout)
    try:
        write_report(found, device=device, progress=display.count)
    finally:
        display.end()
    click.echo(f"report in {found.report_path}")
