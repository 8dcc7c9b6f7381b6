"""Groups of commands, whose modules are imported only when they are used."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click

from gancore.text import did_you_mean


class Group(click.Group):
    """A click group that tells an unknown command with the likely or the known ones."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises UsageError for one that is not there."""
        if args and not args[0].startswith("-") and self.get_command(ctx, args[0]) is None:
            hint = did_you_mean(args[0], self.list_commands(ctx))
            ctx.fail(f"no command {args[0]!r}.{hint}")
        return super().resolve_command(ctx, args)


class Lazy(Group):
    """A group each of whose commands is in a module of its own.

    modules  how the names of the modules begin: `gancore.cli.` and the command's name
    helps    the commands' help lines, by their names
    """

    def __init__(self, *, modules: str, helps: Mapping[str, str], **settings: Any) -> None:
        super().__init__(**settings)
        self.modules = modules
        self.helps = helps

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands."""
        return list(self.helps)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command; None for one that is not there."""
        if cmd_name not in self.helps:
            return None
        module = import_module(f"{self.modules}{cmd_name}")
        commands = [value for value in vars(module).values() if isinstance(value, click.Command)]
        return next(command for command in commands if command.name == cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands, none of which is imported for it."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.helps.items()))
