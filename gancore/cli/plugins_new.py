"""`gan plugins new`: write a plugin package to start from."""

from __future__ import annotations

from pathlib import Path

import click

from gancore.cli.paths import Target
from gancore.cli.tables import tell
from gancore.errors import told_of_files
from gancore.text import quoted


@click.command()
@click.argument("name")
@click.option(
    "--in",
    "parent",
    type=Target(file_okay=False),
    default=Path(),
    help="The folder to write it into; here if left out.",
)
def new(name: str, parent: Path) -> None:
    """Write the package gancore-NAME: a penalty that trains, its test, its README."""
    from gancore.cli.scaffold import write_plugin

    with told_of_files(parent):
        folder = write_plugin(name, parent)
    tell(f"wrote {folder}; next:")
    tell(f"  python3 -m pip install -e {quoted(str(folder))}")
    tell(f"  gan plugins check {name}")
    tell(f"  edit {folder}/src/gancore_{name}/__init__.py")
