"""The board: a TOML file that says which recipes to compare, over which seeds, on what budget."""

from __future__ import annotations

import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError, to_json

from gancore.errors import RecipeError
from gancore.files.reading import expanded, read_toml
from gancore.options import explain
from gancore.recipe import Count, Recipe, Section
from gancore.recipe.overrides import parse_override, typed_in
from gancore.text import shown


def _listed(value: object) -> object:
    if isinstance(value, dict):
        raise PydanticCustomError(
            "unavailable", 'expected a list of overrides, such as ["train.steps=200"], got a table'
        )
    return tuple(value) if isinstance(value, list) else value  # strict: JSON has lists only


Overrides = Annotated[
    tuple[Annotated[str, Field(max_length=4096)], ...],
    Field(max_length=1000),
    BeforeValidator(_listed),
]


class Budget(Section):
    """`[budget]`: what every entry may spend. It decides train.steps of the recipes."""

    unit: Literal["critic_updates", "passes"] = Field(
        default="critic_updates",
        description="passes: an update without a regularizer is one, others are as many as their "
        "FLOPs are more, on the mean over the first `count` critic updates",
    )
    count: Count


class Entry(Section):
    """`[[entry]]`: a recipe, or overrides of the board's own."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$", description="also of its run folders"
    )
    label: str | None = Field(default=None, max_length=200, description="what tables show")
    recipe: str | None = Field(default=None, description="its own recipe instead of the board's")
    set: Overrides = Field(default=(), description="overrides, each key=value")


class Board(Section):
    """A whole board.

    Paths in it, in `set` too, are relative to its file. Paths in the files of its recipes are
    relative to the current folder, as for `gan run`.
    """

    recipe: str
    baseline: str
    seeds: tuple[Annotated[int, Field(le=2**63 - 1)], ...] = Field(min_length=1, max_length=1000)
    threads: int = Field(
        default=1, ge=1, le=1024, description="of each run, whatever the jobs; its CPUs on Ray"
    )
    gpus: float = Field(
        default=0.0, ge=0, le=1024, description="of each run on Ray; without it, no matter"
    )
    metric: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9_]{1,64}$",
        description="the score that ranks; the first if absent",
    )
    set: Overrides = Field(default=(), description="overrides for all entries")
    budget: Budget | None = None
    entry: tuple[Entry, ...] = Field(min_length=1, max_length=1000)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        names = [entry.name for entry in self.entry]
        if len(set(names)) < len(names):
            raise PydanticCustomError("unavailable", "two entries have one name")
        if self.baseline not in names:
            raise PydanticCustomError(
                "unavailable",
                "baseline: there is no entry {name}; there is {names}",
                {"name": repr(self.baseline), "names": ", ".join(names)},
            )
        if len(set(self.seeds)) < len(self.seeds) or min(self.seeds) < 0:
            raise PydanticCustomError("unavailable", "seeds: expected different ones, from 0 on")
        decided = {"train.seed": "`seeds`"} | ({"train.steps": "[budget]"} if self.budget else {})
        for override in (*self.set, *chain.from_iterable(entry.set for entry in self.entry)):
            key = override.partition("=")[0].strip()
            if key in decided:
                raise PydanticCustomError(
                    "unavailable",
                    "set: {key} has no effect, for {what} of the board decides it: leave it out",
                    {"key": key, "what": decided[key]},
                )
        return self

    @classmethod
    def load(cls, path: str | Path) -> Board:
        """Read a board file. Raises RecipeError with file, key path and what was expected."""
        table = read_toml(Path(path), pipe=True)
        try:
            return cls.model_validate_json(to_json(table, inf_nan_mode="constants"))
        except ValidationError as error:
            raise RecipeError(explain(error, shown(str(path), 4096), _known_keys)) from error

    def recipes(self, folder: Path) -> dict[str, Recipe]:
        """Return each entry's recipe, before the budget is applied. Raises RecipeError.

        folder: what paths in the board are relative to
        """
        recipes = {}
        for entry in self.entry:
            path = folder / expanded(entry.recipe or self.recipe)
            table = read_toml(path)  # no pipe, as the board may be a stranger's
            overrides = [_from(folder, override) for override in (*self.set, *entry.set)]
            recipes[entry.name] = Recipe.parse(table, shown(str(path), 4096), overrides)
        return recipes

    def within_budget(
        self, recipes: Mapping[str, Recipe], flops_ratios: Mapping[str, float]
    ) -> dict[str, Recipe]:
        """Return the recipes with the train.steps that the budget pays for.

        flops_ratios: of a critic update to one without a regularizer, by entry; for passes only.
        Raises RecipeError where critic updates don't come out even.
        """
        if self.budget is None:
            return dict(recipes)
        limited = {}
        for name, recipe in recipes.items():
            per_step = float(recipe.train.critic_steps)
            if self.budget.unit == "passes":
                if name not in flops_ratios:
                    raise RecipeError("budget.unit: passes are counted in costs: drop --no-cost")
                per_step *= flops_ratios[name]
            elif self.budget.count % recipe.train.critic_steps:
                raise RecipeError(
                    f"budget.count: {self.budget.count} critic updates are no whole number of "
                    f"steps for the entry {name!r}, which makes {recipe.train.critic_steps} a step"
                )
            train = recipe.train.model_copy(update={"steps": int(self.budget.count / per_step)})
            limited[name] = recipe.model_copy(update={"train": train})
        return limited


def _from(folder: Path, override: str) -> str:
    """Return an override with a relative path in it made absolute, from `folder` on."""
    key, value = parse_override(override)
    is_path = key == "score.weights" or key.split(".")[-1] in ("path", "folder")
    text = value if isinstance(value, str) else typed_in([override]).get(key, "")
    if not (is_path and text) or text.startswith("~") or Path(text).is_absolute():
        return override
    return f"{key}={os.path.realpath(folder / text)}"


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    models: dict[str, type[Section]] = {"budget": Budget, "entry": Entry}
    return list(models.get(str(path[0]) if path else "", Board).model_fields)
