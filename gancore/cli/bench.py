"""`gan bench`: what regularizers cost, on this machine, with this recipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gancore.cli.device import device_option, threads_option
from gancore.cli.plugin_files import plugin_file_option, tell_unused, use
from gancore.cli.tables import tell
from gancore.errors import RunError

if TYPE_CHECKING:
    from gancore.cost import Cost
    from gancore.provenance.environment import Stretch
    from gancore.recipe import Recipe

NONE = "none"


@click.command()
@click.argument("recipe", type=click.Path(path_type=Path))
@click.option(
    "--plugins",
    "sets",
    multiple=True,
    metavar="NAME[+NAME…]",
    help="Measure these plugins, at their defaults, instead of the recipe's; repeatable.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a key of the recipe; KEY= removes it.",
)
@plugin_file_option
@device_option("Where to measure.")
@threads_option()
@click.option(
    "--rounds",
    type=click.IntRange(min=1),
    default=15,
    show_default=True,
    help="How often each is timed.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def bench(
    recipe: Path,
    sets: tuple[str, ...],
    overrides: tuple[str, ...],
    plugin_files: tuple[Path, ...],
    device: str,
    rounds: int,
    as_json: bool,
) -> None:
    """Measure what the critic updates of RECIPE cost, with its plugins and without.

    Ratios are to the same update without plugins. All take turns, and times are medians. FLOPs are
    those of convolutions and matrix products, exactly as dispatched. Drawing the generated samples
    is left out.
    """
    from gancore.recipe import Recipe

    loaded = Recipe.load(recipe, overrides)
    names = [plugin.called for plugin in loaded.plugin]
    recipes, own = {NONE: loaded.without(names)}, "+".join(names)
    if own and not sets:
        recipes[own] = loaded
    for chosen in sets:
        recipes[chosen] = _with(loaded, chosen)
    use(plugin_files)
    tell_unused(recipes.values())

    from gancore.cost import measure
    from gancore.provenance.environment import environment, made_with
    from gancore.report import display_for
    from gancore.training.device import choose_device

    with display_for(sys.stderr) as display:
        costs = measure(recipes, device=device, rounds=rounds, progress=display.count)
    about = environment(choose_device(device), made_with([]))
    entries = [
        Entry(name, _origins(measured), costs.get(name)) for name, measured in recipes.items()
    ]
    if as_json:
        machine = about.table()
        del machine["plugins"]  # every entry has its own
        rows = [asdict(entry) for entry in entries]
        tell(json.dumps({"recipe": loaded.table(), "environment": machine, "entries": rows}))
    else:
        show(entries, loaded, about, rounds)
    if failed := [entry.name for entry in entries if entry.cost is None]:
        raise RunError(f"the first update failed, so there is nothing to measure: {failed}")


def _with(recipe: Recipe, names: str) -> Recipe:
    """Return the recipe with these plugins instead of its own. Raises RecipeError."""
    plugins = [{"name": name} for name in names.split("+")]
    made = type(recipe).parse({**recipe.table(), "plugin": plugins}, where=f"--plugins {names}")
    return recipe.model_copy(update={"plugin": made.plugin})


@dataclass(frozen=True)
class Entry:
    """A row of the table: plugins by name with their origin, and what they cost."""

    name: str
    plugins: dict[str, str]
    cost: Cost | None


def _origins(recipe: Recipe) -> dict[str, str]:
    from gancore import entrypoints

    return {
        plugin.called: entrypoints.origin(entrypoints.get("plugin", plugin.name))
        for plugin in recipe.plugin
    }


def show(entries: Sequence[Entry], recipe: Recipe, about: Stretch, rounds: int) -> None:
    """Print the table."""
    from rich.table import Table

    from gancore.cli.tables import console, styled

    train = recipe.train
    heading = (
        f"A critic update of {recipe.critic.name} on {recipe.data.name}, "
        f"{train.batch_size} samples, {train.precision}{', compiled' if train.compile else ''}"
    )
    below = (
        f"medians of {rounds} rounds, {about.device}, {about.threads} threads, "
        f"torch {about.versions['torch']}; ratios to {NONE}"
    )
    table = Table(
        title=styled(heading, "table.title"),
        caption=styled(below, "table.caption"),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("plugins")
    for column in ("ms", "time", "FLOPs", "memory", "operations"):
        table.add_column(column, justify="right")
    for entry in entries:
        cost = entry.cost
        cells = (
            ["failed"]
            if cost is None
            else [
                f"{cost.seconds * 1e3:.1f}",
                f"{cost.time_ratio:.2f}×",
                f"{cost.flops_ratio:.2f}×",
                f"{cost.memory_ratio:.2f}×",
                f"{cost.operations:,.0f}",
            ]
        )
        table.add_row(styled(entry.name), *cells)
    console().print(table)
