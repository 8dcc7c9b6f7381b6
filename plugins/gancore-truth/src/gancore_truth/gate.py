"""The gate: whether a regularizer is still what its earlier card says."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from gancore.errors import InputError
from gancore.files.reading import read_bytes
from gancore.options import explain
from gancore_truth.card import FORMAT, Card, Line
from gancore_truth.measured import Measure, allowed

LARGEST = 8 << 20
"""Bytes of a card; ours have fifty thousand."""

UNJUDGED = ("time_ratio", "memory_ratio")
"""What the machine decides."""

Number = Annotated[float, Field(ge=-1e100, le=1e100)]


class _Read(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True, allow_inf_nan=False)


class _Values(_Read):
    values: list[Number] = Field(min_length=1)


class _Game(_Read):
    eigenvalues: list[list[Number]]
    radius: Number | None


class _Plugin(_Read):
    name: str


class _Row(_Read):
    name: str
    plugins: list[_Plugin]
    transport: dict[str, dict[str, _Values]]
    local: dict[str, _Game]
    scales: dict[str, _Game]
    flow: dict[str, _Values]
    cost: dict[str, _Values]
    refused: dict[str, str]


class _Settings(_Read):
    asked: list[str]
    pairs: list[str]


class Earlier(_Read):
    """A card.json."""

    format: int
    settings: _Settings
    rows: list[_Row]

    @classmethod
    def read(cls, path: Path) -> Earlier:
        """Read a card. Raises InputError for what is none."""
        try:
            card = cls.model_validate(json.loads(read_bytes(path, LARGEST)))
        except ValidationError as error:
            raise InputError(explain(error, str(path), lambda place: ())) from error
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is no card: {error}. gan try --out writes one") from error
        if card.format != FORMAT:
            raise InputError(f"{path} has format {card.format}, this gancore-truth reads {FORMAT}")
        return card

    def row(self, line: Line) -> _Row:
        """Return the asked row with the same plugins. Raises InputError."""
        wanted = sorted(name for name, _ in line.row.plugins)
        for row in self.rows:
            if row.name in self.settings.asked and wanted == sorted(p.name for p in row.plugins):
                return row
        raise InputError(
            f"the card has no asked row of {line.row.name}'s plugins. It was asked for "
            f"{', '.join(self.settings.asked) or 'nothing'}"
        )


def differences(card: Card, earlier: Earlier) -> list[str]:
    """Return a line for each measure of the asked rows that is off the earlier card's.

    Raises InputError where a row has no counterpart.
    """
    lines = []
    for line in card.lines:
        if line.row.asked:
            lines += [f"{line.row.name}: {fault}" for fault in _faults(line, earlier.row(line))]
    return lines


def _faults(line: Line, before: _Row) -> Iterator[str]:
    ours, theirs = _measures(line), _stored(before)
    count = len(ours.keys() & theirs.keys()) or 1
    for name in sorted(ours.keys() | theirs.keys()):
        one, other = ours.get(name), theirs.get(name)
        if one is None or other is None:
            yield f"{name} is {'new' if other is None else 'gone'}"
        elif not abs(one.value - other.value) <= allowed(one, other, count):
            yield f"{name} was {other.value:.4g}, is {one.value:.4g}"


def _measures(line: Line) -> dict[str, Measure]:
    flat = {f"{pair}, {key}": measure for pair, key, measure in _flat(line.transport)}
    flat |= {f"flow, {key}": measure for key, measure in line.flow.items()}
    flat |= {key: each for key, each in line.cost.items() if key not in UNJUDGED}
    for game, locals_ in (("dirac", line.dirac), ("scales", line.scales)):
        for loss, local in locals_.items():
            pairs = [(value.real, value.imag) for value in local.eigenvalues]
            flat |= _game(f"{game}, {loss}", pairs, local.radius)
    return flat


def _flat(table: Mapping[str, Mapping[str, Measure]]) -> Iterator[tuple[str, str, Measure]]:
    for outer, inner in table.items():
        for key, measure in inner.items():
            yield outer, key, measure


def _stored(row: _Row) -> dict[str, Measure]:
    flat: dict[str, Measure] = {}
    for pair, part in row.transport.items():
        flat |= {f"{pair}, {key}": _measure(stored) for key, stored in part.items()}
    flat |= {f"flow, {key}": _measure(stored) for key, stored in row.flow.items()}
    flat |= {key: _measure(cost) for key, cost in row.cost.items() if key not in UNJUDGED}
    for game, locals_ in (("dirac", row.local), ("scales", row.scales)):
        for loss, local in locals_.items():
            pairs = [(value[0], value[1]) for value in local.eigenvalues]
            radius = math.inf if local.radius is None else local.radius
            flat |= _game(f"{game}, {loss}", pairs, radius)
    return flat


def _measure(stored: _Values) -> Measure:
    return Measure(tuple(stored.values))


def _game(name: str, pairs: list[tuple[float, float]], radius: float) -> dict[str, Measure]:
    """Return a game's measures: of eigenvalues that may coincide, their mean and their spread."""
    flat = {} if math.isinf(radius) else {f"{name}, radius": Measure((radius,))}
    if pairs:
        real = [value[0] for value in pairs]
        size = math.fsum(math.hypot(*value) ** 2 for value in pairs) / len(pairs)
        flat[f"{name}, mean Re λ"] = Measure((math.fsum(real) / len(real),))
        flat[f"{name}, mean |λ|²"] = Measure((size,))
    return flat
