"""The commands that other packages add to `gan`: entry points of the group `gancore.commands`."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Container

import click

from gancore import entrypoints
from gancore.cli.tables import tell
from gancore.entrypoints import Available
from gancore.errors import PluginError
from gancore.text import shown

OWN_WINS = "gan's own command of this name is used. Uninstall {}, or ask its author for another"


def names() -> list[str]:
    """Return the names of the installed commands; nothing is imported."""
    return [command.name for command in entrypoints.find("command")]


def help_lines(own: Container[str]) -> list[tuple[str, str]]:
    """Return name and help line of each installed command; nothing is imported.

    The line is the summary of its distribution, or why it can't be used.

    own: names of gan's own commands
    """
    commands = list(entrypoints.find("command"))
    counts = Counter(command.name for command in commands)
    return [(shown(one.name), _help_line(one, one.name in own, counts)) for one in commands]


def _help_line(command: Available, is_taken: bool, counts: Counter[str]) -> str:
    brought_by = shown(command.brought_by)
    if is_taken:
        return f"({brought_by}) {OWN_WINS.format(shown(command.distribution))}."
    if counts[command.name] > 1:
        return f"({brought_by}) {counts[command.name]} packages bring it: uninstall all but one."
    about = command.point.dist.metadata.json if command.point.dist else {}
    return f"{shown(str(about.get('summary', 'no summary')))} ({brought_by})"


def get(name: str) -> click.Command:
    """Import an installed command.

    Raises PluginError for one that can't be imported, is no click command, or is brought by two
    distributions.
    """
    return loaded(entrypoints.get("command", name))


def loaded(available: Available) -> click.Command:
    """Import a command. Raises PluginError for one that can't be imported, or is none."""
    command = entrypoints.load(available)
    if not isinstance(command, click.Command):
        raise PluginError(
            f"command {available}: {shown(repr(command))} is no click command. Uninstall "
            f"{available.distribution}, or ask its author for a click.Command"
        )
    return command


def tell_taken(name: str) -> None:
    """Print a line for each installed command that has the name of one of gan's own."""
    if os.environ.get("RANK", "0") != "0":  # torchrun's first process says it for all
        return
    for command in entrypoints.find("command"):
        if command.name == name:
            line = OWN_WINS.format(command.distribution)
            tell(f"warning: command {command}: {line}", err=True)
