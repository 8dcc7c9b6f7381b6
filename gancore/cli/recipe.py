"""`gan recipe`: check recipes; print their JSON schema."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from gancore.cli.group import Group
from gancore.cli.tables import tell
from gancore.errors import GancoreError


@click.group(cls=Group)
def recipe() -> None:
    """Check recipes; print their JSON schema."""


@recipe.command()
@click.argument("recipes", nargs=-1, required=True, type=click.Path(path_type=Path))
def check(recipes: tuple[Path, ...]) -> None:
    """Validate each RECIPE: its keys, and the options of installed components.

    Components that are not installed, and data that are not here, are told. They are no fault of
    the recipe.
    """
    from gancore.cli.tables import lines
    from gancore.recipe import Recipe
    from gancore.text import shown
    from gancore.training import check_recipe

    failed = False
    for path in recipes:
        where = shown(str(path), 4096)
        try:
            missing = check_recipe(Recipe.load(path))
        except GancoreError as error:
            failed = True
            text = "\n".join(lines(str(error)))
            tell(text if text.startswith(where) else f"{where}: {text}", err=True)
        else:
            tell("; ".join([f"{where}: valid", *(shown(line, 4096) for line in missing)]))
    sys.exit(2 if failed else 0)


@recipe.command()
def schema() -> None:
    """Print the JSON schema of recipes, for editors."""
    from gancore.recipe import Recipe

    tell(json.dumps(Recipe.model_json_schema(by_alias=True), indent=2, ensure_ascii=False))
