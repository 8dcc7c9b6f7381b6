"""`gan plugins new`: write a plugin package to start from."""

from __future__ import annotations

from pathlib import Path

import click

from gancore.errors import told_of_files


@click.command()
@click.argument("name")
@click.option(
    "--in",
    "parent",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(),
    help="The folder to write it into; here if left out.",
)
def new(name: str, parent: Path) -> None:
    """Write the package gancore-NAME: a penalty that trains, its test, its README."""
    from gancore.scaffold import write_plugin

    with told_of_files(parent):
        folder = write_plugin(name, parent)
    click.echo(f"wrote {folder}; next:")
    click.echo(f"  python3 -m pip install -e {folder}")
    click.echo(f"  gan plugins check {name}")
    click.echo(f"  edit {folder}/src/gancore_{name}/__init__.py")
