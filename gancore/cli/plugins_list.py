"""`gan plugins list`: the plugins, metrics, executors and commands that can be had here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from inspect import Parameter
from pathlib import Path

import click

from gancore import entrypoints
from gancore.cli import installed
from gancore.cli.plugin_files import plugin_file_option, use
from gancore.cli.tables import as_json, console, styled, tell
from gancore.entrypoints import Available, Kind
from gancore.errors import GancoreError
from gancore.text import shown

KINDS: tuple[Kind, ...] = ("plugin", "metric", "executor", "command")


@dataclass(frozen=True)
class Details:
    """What is known of a plugin, or of one of another kind, once it is imported.

    options    of a plugin: type and default, by name
    conflicts  of a plugin: names of those that it can't be combined with
    """

    summary: str
    hooks: Sequence[str] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    conflicts: Sequence[str] = ()


Table = dict[str, str | Sequence[str] | Mapping[str, str]]


@click.command("list")
@plugin_file_option
@click.option("--verbose", is_flag=True, help="Import each; show hooks, options, import errors.")
@click.option("--json", "to_json", is_flag=True, help="Print JSON.")
def list_command(plugin_files: tuple[Path, ...], verbose: bool, to_json: bool) -> None:
    """List plugins, metrics, executors and commands: name, version, distribution, kind.

    A plugin of a file has the file for its distribution; the kind of plugins is left out. Only
    metadata is read, unless --verbose.
    """
    use(plugin_files)
    listed = [(one, details(one) if verbose else None) for one in _all()]
    if to_json:
        tell(as_json([_table(*row) for row in listed]))
    elif verbose:
        _show(listed)
    else:
        rows = [
            [shown(cell, 4096) for cell in (one.name, one.version, _place(one), _kind(one))]
            for one, _ in listed
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for cells in rows:
            tell("  ".join(map(str.ljust, cells, widths)).rstrip())


def _all() -> Iterator[Available]:
    for kind in KINDS:
        yield from entrypoints.find(kind)


def _place(one: Available) -> str:
    return str(one.file.path) if one.file else one.distribution


def _kind(one: Available) -> str:
    return "" if one.kind == "plugin" else one.kind


def details(one: Available) -> Details | str:
    """Import a component and return what it has, or the error in words, whatever it is."""
    from gancore.checks.marks import implementations
    from gancore.options import parameters
    from gancore.plugins import plugin_class

    try:
        if one.kind != "plugin":
            return Details(_summary_of(one))
        cls = plugin_class(one)
        options = {name: _described(option) for name, option in parameters(cls).items()}
    except GancoreError as error:
        return str(error)
    except BaseException as error:  # an import may raise anything, SystemExit too
        return f"{type(error).__name__}: {error}"
    return Details(
        _summary(cls),
        hooks=sorted({mark.hook for mark in implementations(cls)}),
        options=options,
        conflicts=list(getattr(cls, "conflicts", ())),
    )


def _summary_of(one: Available) -> str:
    """Return what a metric, executor or command is for. Raises PluginError for what is none."""
    if one.kind == "metric":
        from gancore.scoring.metrics import loaded

        values = loaded(one).values.items()
        return ", ".join(f"{key}: {value.name}, {value.better} is better" for key, value in values)
    if one.kind == "command":
        return installed.loaded(one).get_short_help_str(100)
    from gancore.leaderboard.executor import executor_class

    return _summary(executor_class(one))


def _summary(component: object) -> str:
    return (component.__doc__ or "").strip().split("\n")[0]


def _described(parameter: Parameter) -> str:
    from gancore.options import type_name

    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{type_name(parameter.annotation)}{default}"


def _table(one: Available, about: Details | str | None) -> Table:
    """Return what the JSON has of one."""
    table: Table = {
        "kind": one.kind,
        "name": one.name,
        "version": one.version,
        "distribution": _place(one),
    }
    if isinstance(about, str):
        table["error"] = about
    elif about is not None:
        table["summary"] = about.summary
        if one.kind == "plugin":
            table |= {"hooks": about.hooks, "options": about.options}
            table["conflicts"] = about.conflicts
    return table


def _show(listed: Sequence[tuple[Available, Details | str | None]]) -> None:
    from rich.text import Text

    out = console()
    for one, about in listed:
        origin = _place(one) if one.file else f"{one.distribution}=={one.version}"
        kind = f"  {_kind(one)}".rstrip()
        line = Text.assemble(styled(one.name, "bold"), styled(f"  {origin}{kind}"))
        out.print(line, soft_wrap=True)
        if isinstance(about, str):
            out.print(Text("  ") + styled(about, "red"), soft_wrap=True)
        elif about is not None:
            out.print(styled(f"  {about.summary}"), soft_wrap=True)
            if about.hooks:
                out.print(styled(f"  hooks      {', '.join(about.hooks)}"))
            for number, (name, text) in enumerate(about.options.items()):
                out.print(styled(f"  {'' if number else 'options':9}  {name}: {text}"))
            if about.conflicts:
                out.print(styled(f"  conflicts  {', '.join(about.conflicts)}"))
