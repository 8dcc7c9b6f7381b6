"""`gan report`: the pictures and scores of a run in one HTML file."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gancore.cli.device import device_option, threads_option
from gancore.cli.tables import tell
from gancore.errors import told_of_files


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@device_option("Where to compute.")
@threads_option()
def report(run: Path, device: str) -> None:
    """Write the report.html of the run folder RUN, and its animated samples.gif.

    The page needs nothing beside it: scores, samples over time, curves, what the critic learned,
    recipe and versions.
    """
    from gancore.report import display_for
    from gancore.report.writer import write_report
    from gancore.training import Run
    from gancore.training.device import choose_device

    folder = Run.open(run)
    device = str(choose_device(device))  # the page leaves out what can't be computed
    with display_for(sys.stdout) as display, told_of_files(run):
        missing = write_report(folder, device=device, progress=display.count)
    for line in missing:
        tell(f"warning: {line}", err=True)
    tell(f"report in {folder.report_path}")
