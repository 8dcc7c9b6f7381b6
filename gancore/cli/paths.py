"""The type of the options that name what is written."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

import click


class Target(click.Path):
    """A path. Its ~ is replaced by the home folder, as no shell does in `--out=~/x`."""

    def __init__(self, *, file_okay: bool = True) -> None:
        super().__init__(path_type=Path, file_okay=file_okay)

    def convert(
        self, value: str | PathLike[str], param: click.Parameter | None, ctx: click.Context | None
    ) -> Path:
        """Return the path. Raises InputError for a ~USER who has no home here."""
        from gancore.files.reading import expanded

        path = super().convert(expanded(str(value)), param, ctx)
        assert isinstance(path, Path)
        return path
