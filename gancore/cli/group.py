"""Groups of commands, which say what there is where a command is none of them."""

from __future__ import annotations

import click

from gancore.text import did_you_mean


class Group(click.Group):
    """A click group; an unknown command is told with the likely or the known ones."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command. Raises UsageError for one that is not there."""
        known = self.list_commands(ctx)
        if args and args[0] not in known and not args[0].startswith("-"):
            ctx.fail(f"no command {args[0]!r}.{did_you_mean(args[0], known)}")
        return super().resolve_command(ctx, args)
