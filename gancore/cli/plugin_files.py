"""The option `--plugin-file`: plugins in a file of the user's, for one command."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gancore import entrypoints
from gancore.cli.tables import tell
from gancore.errors import MissingError
from gancore.text import shown

if TYPE_CHECKING:
    from gancore.recipe import Recipe

plugin_file_option = click.option(
    "--plugin-file",
    "plugin_files",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="FILE.py",
    help="Run this file, and take its classes marked with @plugin for plugins; repeatable.",
)


def use(plugin_files: Iterable[Path]) -> None:
    """Add plugin files until the current command has ended. Raises as `entrypoints.add_file`."""
    click.get_current_context().call_on_close(entrypoints.forget_files)
    for path in plugin_files:
        entrypoints.add_file(path)


def tell_unused(recipes: Iterable[Recipe]) -> None:
    """Print a line for each plugin file that none of the recipes names a plugin of."""
    named = {part.name for recipe in recipes for part in (recipe.loss, *recipe.plugin)}
    brought: dict[Path, list[str]] = {}
    for plugin in entrypoints.find("plugin"):
        if plugin.file is not None:
            brought.setdefault(plugin.file.path, []).append(plugin.name)
    for path, names in brought.items():
        if named.isdisjoint(names):
            tell(
                f"warning: --plugin-file {path} has no effect: no plugin of the recipe is called "
                f"{' or '.join(names)}. Name one, or leave the file out",
                err=True,
            )


@contextmanager
def told_with_copies(copies: Iterable[Path]) -> Iterator[None]:
    """Let the error of a plugin that is missing name the plugin files that were used before.

    copies: of plugin files, in run folders; they are only named
    """
    try:
        yield
    except MissingError as error:
        names = sorted({shown(path.name) for path in copies if path.suffix == ".py"})
        if not (names and str(error).startswith("no plugin ")):
            raise
        options = " ".join(f"--plugin-file {name}" for name in names)
        raise MissingError(f"{error} It was run with {options}: give that again") from error
