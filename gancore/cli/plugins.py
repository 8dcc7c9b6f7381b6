"""`gan plugins`: list what is installed, check a plugin, begin a new one."""

from __future__ import annotations

import click

from gancore.cli.group import Lazy


class _Plugins(Lazy):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take `gan plugins` and `gan plugins --verbose` for `gan plugins list`."""
        is_option = bool(args) and args[0].startswith("-")
        if not args or (is_option and args[0] not in ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=_Plugins,
    modules="gancore.cli.plugins_",
    helps={
        "list": "List plugins, metrics, executors and commands; the default.",
        "check": "Check that a plugin keeps the contract.",
        "new": "Write a plugin package to start from.",
    },
)
def plugins() -> None:
    """List what is installed, check a plugin, begin a new one."""
