"""`gan plugins`: list the installed plugins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import click

from gancore import entrypoints
from gancore.cli.group import Group
from gancore.cli.tables import as_json, console, styled, tell
from gancore.entrypoints import Found
from gancore.errors import GancoreError
from gancore.text import shown

SUBCOMMANDS = ("new", "check")


class _Subcommands(Group):
    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUBCOMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in SUBCOMMANDS:
            return None
        command = getattr(import_module(f"gancore.cli.plugins_{cmd_name}"), cmd_name)
        assert isinstance(command, click.Command)
        return command


@click.group(cls=_Subcommands, invoke_without_command=True)
@click.pass_context
@click.option("--verbose", is_flag=True, help="Import each; show hooks, options, import errors.")
@click.option("--json", "to_json", is_flag=True, help="Print JSON.")
def plugins(context: click.Context, verbose: bool, to_json: bool) -> None:
    """List the installed plugins: name, version, distribution.

    Reads metadata only, unless --verbose.
    """
    if context.invoked_subcommand is not None:
        return
    rows = [_row(found, verbose) for found in entrypoints.find("plugin")]
    if to_json:
        tell(as_json(rows))
    elif verbose:
        _show_verbose(rows)
    else:
        table = [[shown(row[key]) for key in COLUMNS] for row in rows]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for cells in table:
            tell("  ".join(map(str.ljust, cells, widths)))


COLUMNS = ("name", "version", "distribution")


def _row(found: Found, verbose: bool) -> dict[str, Any]:
    row = {"name": found.name, "version": found.version, "distribution": found.distribution}
    return {**row, **details(found)} if verbose else row


def details(found: Found) -> dict[str, Any]:
    """Import one plugin and say what it has; an import error, whatever it is, stays here."""
    from gancore.checks.marks import implementations
    from gancore.options import parameters
    from gancore.plugins import plugin_class

    try:
        cls = plugin_class(found)
        options = {name: _described(each) for name, each in parameters(cls).items()}
    except GancoreError as error:
        return {"error": str(error)}
    except BaseException as error:  # an import may raise anything, SystemExit too
        return {"error": f"{type(error).__name__}: {error}"}
    return {
        "summary": (cls.__doc__ or "").strip().split("\n")[0],
        "hooks": sorted({found.hook for found in implementations(cls)}),
        "options": options,
        "conflicts": list(getattr(cls, "conflicts", ())),
    }


def _described(parameter: Any) -> str:
    from gancore.options import type_name

    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{type_name(parameter.annotation)}{default}"


def _show_verbose(rows: Sequence[Mapping[str, Any]]) -> None:
    from rich.text import Text

    out = console()
    for row in rows:
        origin = f"  {row['distribution']}=={row['version']}"
        out.print(Text.assemble(styled(row["name"], "bold"), styled(origin)))
        if "error" in row:
            out.print(Text("  ") + styled(row["error"], "red"), soft_wrap=True)
            continue
        out.print(styled(f"  {row['summary']}"), soft_wrap=True)
        out.print(styled(f"  hooks      {', '.join(row['hooks'])}"))
        for number, (name, text) in enumerate(row["options"].items()):
            out.print(styled(f"  {'' if number else 'options':9}  {name}: {text}"))
        if row["conflicts"]:
            out.print(styled(f"  conflicts  {', '.join(row['conflicts'])}"))
