"""Overrides: what a command line, a board or a caller has otherwise than a recipe's file."""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import date, time
from math import isfinite
from typing import Any

from gancore.errors import RecipeError
from gancore.files.stored import Json
from gancore.text import did_you_mean

Place = tuple[str | int, ...]
"""Where in a table something is: its keys, and indices of lists."""

Overrides = Mapping[str, Json] | Sequence[str]
"""{"train.steps": 200} or ["train.steps=200"]."""

Keys = Callable[[Place], Collection[str | int]]
"""Of a table's place: the keys that it may have."""


def override(table: dict[str, Any], overrides: Overrides, keys: Keys) -> dict[str, str]:
    """Change a table by {"train.steps": 200} or ["train.steps=200"], in this order.

    Returns what was typed for each key of the latter. Raises RecipeError.
    """
    if isinstance(overrides, Mapping):
        pairs, typed = list(overrides.items()), {}
    else:
        pairs, typed = list(map(parse_override, overrides)), typed_in(overrides)
    for key, value in pairs:
        _refuse_without_section(key, keys)
        place = place_of(key)
        if isinstance(value, float) and not isfinite(value) and place[-1] not in keys(place[:-1]):
            value = typed.get(key, value)  # no option is inf or nan, but it may take text
        _set(table, key, value, keys)
    return typed


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value`; without a value that is None, which removes the key. Raises RecipeError.

    A value that is no TOML is a string, and so are dates and times, which no option is.
    """
    key, equals, value = (part.strip() for part in text.partition("="))
    if not (equals and key):
        raise RecipeError(f"override {text!r}: expected KEY=VALUE, such as train.steps=200")
    if not value:
        return key, None
    try:
        table = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        return key, value
    is_text = len(table) > 1 or isinstance(table["value"], date | time)
    return key, value if is_text else table["value"]


def typed_in(overrides: Sequence[str]) -> dict[str, str]:
    """Return the values of overrides as they were typed, by their keys; names are no options."""
    pairs = (text.partition("=") for text in overrides)
    typed = {key.strip(): value.strip() for key, _, value in pairs}
    return {key: text for key, text in typed.items() if key.split(".")[-1] not in ("name", "as")}


def place_of(key: str) -> Place:
    """Return the parts of an override's key, indices as numbers."""
    return tuple(
        int(part) if part.isascii() and part.isdigit() and len(part) < 10 else part
        for part in key.split(".")
    )


def _refuse_without_section(key: str, keys: Keys) -> None:
    """Raise RecipeError for `steps` instead of `train.steps`."""
    sections = sorted(str(section) for section in keys(()))
    if "." in key or key in sections:
        return
    homes = [
        repr(f"{section}.{key}")
        for section in sections
        if section != "plugin" and key in keys((section,))
    ]
    if homes:
        raise RecipeError(
            f"override {key!r}: there is no such key. Did you mean {' or '.join(homes)}?"
        )


def _set(table: dict[str, Any], key: str, value: Any, keys: Keys) -> None:
    """Set `train.steps` or `plugin.0.weight`; an index just past a list's end appends a table.

    None removes the key.
    """
    *parents, last = key.split(".")
    here: Any = table
    for depth, part in enumerate(parents):
        if isinstance(here, list):
            here = _item(here, part, key)
        else:
            following = [*parents, last][depth + 1]
            here = here.setdefault(part, [] if following.isdigit() else {})
        if not isinstance(here, dict | list):
            raise RecipeError(f"override {key!r}: {part!r} is a value, not a table")
    if isinstance(here, list):
        raise RecipeError(f"override {key!r}: name a key of the item, such as {key}.weight")
    if value is not None:
        here[last] = value
    elif here.pop(last, None) is None:
        known = {*here, *keys(place_of(key)[:-1])}
        if last not in known:
            hint = did_you_mean(last, known)
            raise RecipeError(f"override {key!r}: there is no such key to remove.{hint}")


def _item(items: list[Any], part: str, key: str) -> Any:
    is_index = part.isascii() and part.isdigit() and len(part) < 10
    if is_index and int(part) == len(items):
        items.append({})
    if not is_index or int(part) >= len(items):
        raise RecipeError(f"override {key!r}: {part!r} is no index from 0 to {len(items)}")
    return items[int(part)]
