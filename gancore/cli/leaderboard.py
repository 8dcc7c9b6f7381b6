"""`gan leaderboard`: which regularizer is better, by how much, at what cost, and is it sure?"""

from __future__ import annotations

import sys
from pathlib import Path

import click

from gancore.cli.device import device_option
from gancore.cli.paths import Target
from gancore.cli.plugin_files import plugin_file_option, tell_unused, told_with_copies, use
from gancore.cli.tables import tell
from gancore.errors import InputError, told_of_files


@click.command()
@click.argument("board", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=Target(file_okay=False),
    help="The board's folder; by default boards/BOARD.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="Runs at a time, by default 1; with --ray, the most it is given, by default all.",
)
@click.option(
    "--executor",
    "executor_name",
    metavar="NAME[:PLACE]",
    help="Where to make the runs: an installed executor's name, and a place such as an address; "
    "by default local.",
)
@click.option(
    "--ray",
    "address",
    metavar="ADDRESS|auto",
    help="Run on this Ray cluster (HOST:PORT or ray://HOST:PORT), as many as it has room for; "
    "short for --executor ray:ADDRESS, of the package gancore-ray.",
)
@click.option(
    "--commands",
    is_flag=True,
    help="Print the command of each run that is left, one a line, for a queue; make none.",
)
@plugin_file_option
@device_option("Where to train.")
@click.option(
    "--cost/--no-cost", default=True, show_default=True, help="Measure what each entry costs."
)
def leaderboard(
    board: Path,
    out: Path | None,
    jobs: int | None,
    executor_name: str | None,
    address: str | None,
    commands: bool,
    plugin_files: tuple[Path, ...],
    device: str,
    cost: bool,
) -> None:
    """Run the matrix of entries and seeds in BOARD; write leaderboard.json, .md and .html.

    Runs that are done already, under the same recipe, of the same data and code, are not repeated;
    interrupted ones go on. What makes others stale is told. Exits 1 if a run failed.
    """
    from gancore.files.storage import refuse_unwritable
    from gancore.leaderboard.board import Board
    from gancore.leaderboard.costs import measure_costs
    from gancore.leaderboard.display import BoardDisplay
    from gancore.leaderboard.evaluate import evaluate
    from gancore.leaderboard.executor import Terms, chosen, make_runs, parsed
    from gancore.leaderboard.files import refuse_strangers, write_files
    from gancore.leaderboard.job import left_to_do, shell_line
    from gancore.leaderboard.plan import Samples, plan, resolved
    from gancore.leaderboard.stale import made_again
    from gancore.leaderboard.text import markdown

    if executor_name is not None and address is not None:
        raise InputError("--ray ADDRESS is short for --executor ray:ADDRESS: give one of them")
    name, place = (
        ("ray", address)
        if address is not None
        else parsed("local" if executor_name is None else executor_name)
    )
    loaded = Board.load(board)
    out = out or Path("boards", board.stem.lstrip(".") or "board")
    recipes = loaded.recipes(board.parent)
    use(plugin_files)
    tell_unused(recipes.values())
    display = BoardDisplay(loaded, sys.stderr if commands else sys.stdout)
    if commands and not (loaded.budget and loaded.budget.unit == "passes"):
        cost = False  # measured when the runs are done, where they were made
    priced = loaded.within_budget(recipes, dict.fromkeys(recipes, 1.0))
    refuse_unwritable(out)
    refuse_strangers(out)
    with told_with_copies(out.glob("runs/*/plugin-files/*")):
        resolved(loaded, priced)  # tells mistakes before a cluster is asked, or anything measured
    terms = Terms(place, jobs, loaded.threads, loaded.gpus, device, display.say)
    with told_of_files(out), chosen(name, terms) as executor, display:
        costs = {}
        samples = Samples()
        if cost:
            plan(loaded, priced, out, device=executor.device, samples=samples)
            costs = measure_costs(loaded, priced, out, executor=executor, tell=display.say)
        ratios = {name: spent.flops_ratio for name, spent in costs.items() if spent.flops_ratio}
        recipes = loaded.within_budget(recipes, ratios)
        planned = plan(loaded, recipes, out, device=executor.device, samples=samples)
        for line in made_again(planned):
            display.say(line)
        if commands:
            for job in left_to_do(planned):
                tell(shell_line(job, threads=loaded.threads, device=executor.device))
            return
        make_runs(executor, planned, display.show)
    result = evaluate(loaded, planned, costs)
    with told_of_files(out):
        write_files(result, planned, out)
    tell(markdown(result))
    tell(f"in {out}")
    if any(entry.failed for entry in result.entries):
        sys.exit(1)
