"""The card: what is known to be true of a regularizer, measured."""

from __future__ import annotations

import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import product
from typing import Any, TypeVar

from gancore.cost import measure
from gancore.errors import GancoreError
from gancore.files.stored import Json
from gancore.recipe import Recipe
from gancore_truth.flow import flow
from gancore_truth.games import DIRAC, SCALES, Game, eigenvalues, radius
from gancore_truth.measured import Measure, paired
from gancore_truth.pairs import Pair
from gancore_truth.rows import Row
from gancore_truth.transport import Training, judge, train

T = TypeVar("T")

LOSSES = ("wasserstein", "nonsaturating")
FORMAT = 1

COSTS: Mapping[str, Json] = {
    "data": {"name": "swissroll", "samples": 1024},
    "generator": {"name": "mlp", "width": 16},
    "critic": {"name": "mlp"},
    "loss": {"name": "wasserstein"},
    "train": {"steps": 64, "batch_size": 64},
    "score": {"metrics": []},
}
"""The recipe whose critic update is measured."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Settings:
    """How a card is made.

    flow_updates, cost_rounds: of the critic of `gancore_truth.flow`; how often a cost is timed
    """

    seeds: int = 3
    training: Training = field(default_factory=Training)
    flow_updates: int = 200
    cost_rounds: int = 9


@dataclass(frozen=True)
class Local:
    """A game under a loss: eigenvalues at the equilibrium, where there are any, and the radius."""

    eigenvalues: tuple[complex, ...]
    radius: float


@dataclass(frozen=True)
class Line:
    """A row of the card, measured.

    transport  by pair, then by what is told of it
    dirac, scales
               the two games, by loss
    flow       slope and border
    cost       flops_ratio, time_ratio, memory_ratio
    refused    why there is no such part, by its name
    """

    row: Row
    transport: dict[str, dict[str, Measure]]
    dirac: dict[str, Local]
    scales: dict[str, Local]
    flow: dict[str, Measure]
    cost: dict[str, Measure]
    refused: dict[str, str]


def measured(
    rows: Sequence[Row], pairs: Sequence[Pair], settings: Settings, progress: Progress
) -> list[Line]:
    """Measure all rows. What a plugin can't take part in has the reason instead."""
    costs = _costs(rows, settings, progress)
    lines = []
    for number, row in enumerate(rows):
        progress(row.name, number, len(rows))
        lines.append(_line(row, pairs, costs.get(row.name, {}), settings))
    progress("measured", len(rows), len(rows))
    return lines


def _line(row: Row, pairs: Sequence[Pair], cost: dict[str, Measure], settings: Settings) -> Line:
    refused: dict[str, str] = {} if cost else {"cost": "its first update fails"}

    def tried(part: str, make: Callable[[], T]) -> T | None:
        """Return what is made; None, and keep the reason, where it can't be."""
        try:
            return make()
        except (GancoreError, ValueError) as error:
            refused[part] = " ".join(str(error).split())
            return None

    transport: dict[str, dict[str, Measure]] = {}
    for pair in pairs:
        measures = tried(f"transport/{pair.name}", partial(_transport, row, pair, settings))
        if measures is not None:
            transport[pair.name] = measures
    games: dict[str, dict[str, Local]] = {"dirac": {}, "scales": {}}
    for game, loss in product((DIRAC, SCALES), LOSSES):
        local = tried(f"{game.name}/{loss}", partial(_local, row, game, loss))
        if local is not None:
            games[game.name][loss] = local
    flows = tried("flow", partial(_flow, row, settings)) or {}
    return Line(row, transport, games["dirac"], games["scales"], flows, cost, refused)


def _transport(row: Row, pair: Pair, settings: Settings) -> dict[str, Measure]:
    values = []
    for seed in range(settings.seeds):
        critic = train(pair, row.load(), seed=seed, training=settings.training)
        values.append(judge(critic, pair, seed=seed, samples=settings.training.samples))
    return paired(values)


def _local(row: Row, game: Game, loss: str) -> Local:
    values = tuple(eigenvalues(game, loss, row.load()))
    return Local(values, radius(game, loss, row.load()))


def _flow(row: Row, settings: Settings) -> dict[str, Measure]:
    flows = [
        flow(row.load(), seed=seed, updates=settings.flow_updates) for seed in range(settings.seeds)
    ]
    return paired([{"slope": seed.slope, "border": seed.border} for seed in flows])


def _costs(
    rows: Sequence[Row], settings: Settings, progress: Progress
) -> dict[str, dict[str, Measure]]:
    recipes = {
        row.name: Recipe.parse(
            {**COSTS, "plugin": [{"name": name, **dict(options)} for name, options in row.plugins]},
            where=row.name,
        )
        for row in rows
    }
    costs: dict[str, dict[str, Measure]] = {}
    for name, recipe in recipes.items():
        try:
            found = measure(
                {name: recipe}, device="cpu", rounds=settings.cost_rounds, progress=progress
            )
        except GancoreError:
            continue
        for key in ("flops_ratio", "time_ratio", "memory_ratio"):
            if name in found:
                costs.setdefault(name, {})[key] = Measure((getattr(found[name], key),))
    return costs


@dataclass(frozen=True)
class Card:
    """All rows, and what they were made with."""

    lines: tuple[Line, ...]
    pairs: tuple[str, ...]
    settings: Settings

    def table(self) -> dict[str, Any]:
        """Return what card.json holds: no path, date or command."""
        asked = [line.row.name for line in self.lines if line.row.asked]
        return {
            "format": FORMAT,
            "settings": {**asdict(self.settings), "pairs": list(self.pairs), "asked": asked},
            "environment": environment(),
            "rows": [_row(line) for line in self.lines],
        }


def environment() -> dict[str, str]:
    """Return the kind of machine and the versions on which a card's last bits depend."""
    packages = ("gancore", "gancore-truth", "numpy", "torch")
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "device": "cpu",
        **{name: version(name) for name in packages},
    }


def _row(line: Line) -> dict[str, Any]:
    return {
        "name": line.row.name,
        "plugins": [
            {"name": name, "options": {key: _plain(value) for key, value in options}}
            for name, options in line.row.plugins
        ],
        "transport": {pair: _tables(part) for pair, part in line.transport.items()},
        "local": {loss: _game(local) for loss, local in line.dirac.items()},
        "scales": {loss: _game(local) for loss, local in line.scales.items()},
        "flow": _tables(line.flow),
        "cost": _tables(line.cost),
        "refused": line.refused,
    }


def _plain(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def _tables(measures: dict[str, Measure]) -> dict[str, Any]:
    return {key: measure.table() for key, measure in measures.items()}


def _game(local: Local) -> dict[str, Any]:
    """Return a game as JSON has it: no radius where updates diverge, as it has no infinity."""
    return {
        "eigenvalues": [[value.real, value.imag] for value in local.eigenvalues],
        "radius": local.radius if math.isfinite(local.radius) else None,
    }
