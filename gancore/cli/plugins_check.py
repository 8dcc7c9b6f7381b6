"""`gan plugins check`: run the contract on a plugin."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gancore.cli.plugin_files import plugin_file_option, use

if TYPE_CHECKING:
    from gancore.testing import Result

STYLES: Mapping[str, str] = {"passed": "green", "failed": "bold red", "inapplicable": "yellow"}


@click.command()
@click.argument("name")
@plugin_file_option
@click.option(
    "--options",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="An option of the plugin, as in a recipe; repeatable.",
)
def check(name: str, plugin_files: tuple[Path, ...], settings: tuple[str, ...]) -> None:
    """Run every check that applies to the plugin NAME; exit 1 if one fails."""
    use(plugin_files)
    from gancore.errors import RecipeError
    from gancore.options import Given
    from gancore.plugins import load
    from gancore.recipe.overrides import parse_override, typed_in

    options = dict(map(parse_override, settings))
    for key, value in options.items():
        if value is None:
            raise RecipeError(f"--options {key}=: expected a value; for the default leave it out")
    given = Given(options, typed_in(settings))
    loaded = load(name, given, where="--options")

    from gancore.options import validate
    from gancore.testing import Subject, check_plugin

    cls = type(loaded.instance)
    subject = Subject(cls, validate(cls, given, name), name)
    began = time.perf_counter()
    results = check_plugin(subject)
    _show(str(loaded), results, time.perf_counter() - began)
    sys.exit(1 if any(result.verdict == "failed" for result in results) else 0)


def _show(title: str, results: list[Result], seconds: float) -> None:
    from rich.table import Table

    from gancore.cli.tables import console, styled

    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("check", "verdict", "what was found"):
        table.add_column(column, overflow="fold", no_wrap=column != "what was found")
    for result in results:
        verdict = styled(result.verdict, STYLES[result.verdict])
        table.add_row(styled(result.check), verdict, styled(result.detail))
    out = console()
    out.print(styled(title, "bold"))
    out.print(table)
    failed = sum(result.verdict == "failed" for result in results)
    out.print(f"{len(results)} checks, {failed} failed, {seconds:.1f} s")
