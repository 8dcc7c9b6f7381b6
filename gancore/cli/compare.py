"""`gan compare`: the gate against regressions."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import click

from gancore.cli.tables import tell
from gancore.errors import InputError


@click.command()
@click.argument("baseline", type=click.Path(path_type=Path))
@click.argument("current", type=click.Path(path_type=Path))
@click.option("--metric", help="The score to compare; the one that ranks BASELINE if left out.")
@click.option(
    "--tolerance",
    type=float,
    default=0.0,
    show_default=True,
    help="How much worse is no regression: 0.05 is 5 %.",
)
def compare(baseline: Path, current: Path, metric: str | None, tolerance: float) -> None:
    """Compare two leaderboard.json, entry by entry; exit 1 if one got significantly worse."""
    if not (math.isfinite(tolerance) and tolerance >= 0):
        raise InputError(
            f"--tolerance {tolerance}: expected a finite number from 0 on, such as 0.05 for 5 %"
        )

    from rich.table import Table

    from gancore.cli.tables import console, styled
    from gancore.leaderboard.compare import gate, regressed
    from gancore.leaderboard.result import Result
    from gancore.leaderboard.statistics import method
    from gancore.leaderboard.text import MINUS, against, title
    from gancore.scoring.protocol import score_name

    before, after = Result.read(baseline), Result.read(current)
    metric = metric or before.metric
    compared = gate(before, after, metric)
    table = Table(title=styled(title(after, metric), "table.title"), title_justify="left")
    sign = "÷" if all(entry.scale == "ratio" for entry in compared.values()) else MINUS
    for column in ("entry", f"current {sign} baseline", "verdict"):
        table.add_column(column)
    lost = [name for name, entry in compared.items() if regressed(entry, tolerance)]
    for name, entry in compared.items():
        cells = (name, against(entry), entry.verdict)
        table.add_row(*map(styled, cells), style="red" if name in lost else "")
    console().print(table)
    names = {entry.name for board in (before, after) for entry in board.entries}
    if unmatched := sorted(names - compared.keys()):
        tell(f"not compared, for want of a score in both: {', '.join(unmatched)}")
    tell(f"decided by: {method(compared.values()) or 'nothing, with too few seeds'}")
    if lost:
        name = score_name(metric, after.protocol)
        tell(f"regression in {name}: {', '.join(lost)}", err=True)
        sys.exit(1)
