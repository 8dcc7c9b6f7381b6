"""`gan leaderboard`: which regularizer is better, by how much, at what cost, and is it sure?"""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command()
@click.argument("board", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="The board's folder; by default boards/BOARD.",
)
@click.option(
    "--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Runs at a time."
)
@click.option("--device", default="auto", metavar="auto|cpu|cuda", help="Where to train.")
@click.option(
    "--cost/--no-cost", default=True, show_default=True, help="Measure what each entry costs."
)
def leaderboard(board: Path, out: Path | None, jobs: int, device: str, cost: bool) -> None:
    """Run the matrix of entries and seeds in BOARD; write leaderboard.json, .md and .html.

    Runs that are done already, under the same recipe and versions, are not repeated; interrupted
    ones go on. Exits 1 if a run failed.
    """
    from gancore.leaderboard.board import Board
    from gancore.leaderboard.costs import measure_costs
    from gancore.leaderboard.display import BoardDisplay
    from gancore.leaderboard.files import write
    from gancore.leaderboard.result import result
    from gancore.leaderboard.sweep import plan, sweep

    loaded = Board.load(board)
    out = out or Path("boards", board.stem.lstrip(".") or "board")
    recipes = loaded.recipes(board.parent)
    with BoardDisplay(loaded, jobs, sys.stdout) as display:
        spent = {}
        if cost:
            spent = measure_costs(loaded, recipes, out, device=device, tell=display.say)
        ratios = {name: each["flops_ratio"] for name, each in spent.items()}
        planned = plan(loaded, loaded.within_budget(recipes, ratios), out, device=device)
        sweep(planned, parallel=jobs, threads=loaded.threads, device=device, watch=display.show)
    found = result(loaded, planned, spent)
    write(found, planned, out)
    click.echo((out / "leaderboard.md").read_text(encoding="utf-8"))
    click.echo(f"in {out}")
    if any(entry["failed"] for entry in found["entries"]):
        sys.exit(1)
