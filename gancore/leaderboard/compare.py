"""The gate: whether a leaderboard got worse than an earlier one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gancore.errors import InputError
from gancore.files.reading import read_json
from gancore.files.stored import Number, Stored, Text, Whole
from gancore.leaderboard.statistics import Comparison, compare
from gancore.scoring.protocol import HIGHER_IS_BETTER, Features
from gancore.text import shown

FORMAT = 1
"""Of leaderboard.json."""


LARGEST = 64 << 20
"""Bytes of leaderboard.json; ours have forty thousand."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]


class Values(Stored):
    """One score of an entry, seed by seed."""

    values: list[Number] = Field(max_length=1000)
    seeds: list[Whole] = Field(max_length=1000)

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if not len(set(self.seeds)) == len(self.seeds) == len(self.values):
            raise PydanticCustomError("unavailable", "expected different seeds, a value for each")
        return self


class Entry(Stored):
    """A row of the table."""

    name: Name
    scores: dict[Name, Values] = Field(max_length=100)


class Leaderboard(Stored):
    """What the gate uses of a leaderboard.json."""

    format: Literal[1]
    metric: str = Field(pattern=r"^[A-Za-z0-9_.+-]{0,64}$")
    higher_is_better: list[Name] = Field(max_length=100)
    entries: list[Entry] = Field(min_length=1, max_length=1000)
    protocol: Features
    budget: Annotated[dict[Text, Text | int | float], Field(max_length=20)] | None

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len({entry.name for entry in self.entries}) < len(self.entries):
            raise PydanticCustomError("unavailable", "two entries have one name")
        return self


def read(path: Path) -> dict[str, Any]:
    """Read a leaderboard.json. Raises InputError for anything else."""
    remedy = "This is no leaderboard.json of this version: gan leaderboard BOARD makes one"
    return read_json(path, Leaderboard, remedy, largest=LARGEST).table()


def unlike(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for each difference that makes scores incomparable; versions may differ."""
    lines = []
    for key in ("budget", "protocol"):
        one, other = _flat(before[key]), _flat(after[key])
        for name in sorted({*one, *other}):
            was, now = one.get(name), other.get(name)
            if was != now and not name.startswith("versions."):
                place = shown(f"{key}.{name}")
                lines.append(f"{place}: was {shown(repr(was))}, is {shown(repr(now))}")
    return lines


def gate(before: Mapping[str, Any], after: Mapping[str, Any], metric: str) -> dict[str, Comparison]:
    """Compare each entry that both have, seed by seed; all are one family.

    Raises InputError for unlike protocols, or where there is no entry with this score in both.
    """
    if differences := unlike(before, after):
        raise InputError(
            "these leaderboards can't be compared:\n"
            + "\n".join(f"  {line}" for line in differences[:20])
            + "\nRun both boards under one protocol and budget"
        )
    scores = [
        {
            entry["name"]: dict(zip(each["seeds"], each["values"], strict=True))
            for entry in board["entries"]
            if (each := entry["scores"].get(metric))
        }
        for board in (before, after)
    ]
    pairs = {name: (scores[1][name], scores[0][name]) for name in scores[0] if name in scores[1]}
    if not pairs:
        known = sorted({key for entry in before["entries"] for key in entry["scores"]})
        names = shown(", ".join(known) or "none", 1000)
        raise InputError(f"no entry has {metric!r} in both; there is {names}")
    return compare(pairs, higher_is_better=metric in HIGHER_IS_BETTER)


def regressed(found: Comparison, metric: str, tolerance: float) -> bool:
    """Return whether an entry got significantly worse, and by more than the tolerance.

    tolerance: of the ratio, 0.05 being 5 %; of the difference for scores that can be 0.
    """
    if found.verdict != "worse":
        return False
    if found.scale == "difference":
        return abs(found.ratio) > tolerance
    return max(found.ratio, 1 / found.ratio) > 1 + tolerance


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {path: value}
    return {
        key: leaf
        for name, each in value.items()
        for key, leaf in _flat(each, f"{path}.{name}" if path else name).items()
    }
