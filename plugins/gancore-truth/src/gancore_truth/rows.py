"""The rows of a card: none, what was asked for, and what that is held against."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from gancore import entrypoints
from gancore.errors import RecipeError
from gancore.options import validate
from gancore.plugins import Loaded, Plugins, load, plugin_class

NONE = "none"
PUBLISHED = ("gp", "r1:gamma=1", "r2:gamma=1", "sn", "clip")
"""The rows beside those that are asked for, unless `--against` names others."""

Option: TypeAlias = "bool | int | float | str | tuple[Option, ...]"


@dataclass(frozen=True)
class Row:
    """A regularizer of a card, as it was written.

    name     such as "r1:gamma=1+lazy:every=4"
    plugins  each plugin's name, with its options
    asked    whether it is what the card is about
    """

    name: str
    plugins: tuple[tuple[str, tuple[tuple[str, Option], ...]], ...]
    asked: bool = False

    @classmethod
    def of(cls, text: str, *, asked: bool = False) -> Row:
        """Read plugins joined by +, options after a colon, with commas in between.

        Raises RecipeError for what can't be read, and PluginError for names and options that are
        wrong, and plugins that do not go together.
        """
        if text == NONE:
            return cls(NONE, (), asked)
        row = cls(text, tuple(_plugin(part, text) for part in text.split("+")), asked)
        row.load()
        return row

    def load(self) -> list[Loaded]:
        """Return new plugins. Raises PluginError."""
        loaded = [load(name, dict(options), where=self.name) for name, options in self.plugins]
        if loaded:
            Plugins([load("wasserstein"), *loaded])
        return loaded


def _plugin(part: str, text: str) -> tuple[str, tuple[tuple[str, Option], ...]]:
    name, _, given = part.partition(":")
    options = tuple(_option(option, text) for option in given.split(",") if option)
    if not name:
        raise RecipeError(f"{text!r} names no plugin: write NAME, or NAME:OPTION=VALUE+NAME")
    validate(plugin_class(entrypoints.get("plugin", name)), dict(options), text)
    return name, options


def _option(given: str, text: str) -> tuple[str, Option]:
    key, equals, value = given.partition("=")
    if not (key and equals):
        raise RecipeError(f"{text!r}: {given!r} is no option: write OPTION=VALUE")
    try:
        parsed: Option = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a word needs no quotes
    return key, parsed


def rows(asked: Iterable[str], against: Sequence[str] | None = None) -> list[Row]:
    """Return the rows of a card, each regularizer once: none, what is asked for, the others.

    against: instead of the published ones
    """
    chosen = [Row.of(text, asked=True) for text in asked]
    others = [Row.of(text) for text in (PUBLISHED if against is None else against)]
    known: dict[tuple[object, ...], Row] = {}
    for row in [*(row for row in chosen if not row.plugins), Row.of(NONE), *chosen, *others]:
        known.setdefault(row.plugins, row)
    return list(known.values())
