"""The columns of a card: what is shown of each measure, and which value of it is best."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gancore_truth.card import LOSSES, Card, Line, Local
from gancore_truth.measured import Measure, marks

DASH = "–"


@dataclass(frozen=True)
class Column:
    """A measure of all rows.

    title    a line each: what it is of, what it is
    get      of a row, the measure, or None where it has none
    badness  of a value: 0 is best; None where none is better than another
    text     of a measure
    why      of a row without the measure
    """

    title: str
    get: Callable[[Line], Measure | None]
    badness: Callable[[float], float] | None
    text: Callable[[Measure], str]
    why: Callable[[Line], str]


def number(value: float) -> str:
    """Return a number in three digits, such as .967, 1.06 or 2.8e+03."""
    if value == 0 or 1e-3 <= abs(value) < 1000:
        text = f"{value:.3f}" if abs(value) < 1 else f"{value:.3g}"
    else:
        text = f"{value:.1e}"
    return text.replace("0.", ".", 1) if text.startswith(("0.", "-0.")) else text


def interval(measure: Measure) -> str:
    """Return a value and half its interval, such as 1.06 ±.04."""
    return (
        f"{number(measure.value)} ±{number(measure.half)}"
        if measure.half
        else number(measure.value)
    )


def _times(measure: Measure) -> str:
    return f"{measure.value:.2f}×"


def _from_one(value: float) -> float:
    return abs(math.log(max(value, 1e-12)))


def columns(card: Card) -> list[Column]:
    """Return the columns of a card: transport, then games, flow and costs."""
    made: list[Column] = []
    kinds: list[tuple[str, str, Callable[[float], float] | None]] = [
        ("estimate_over_w1", "estimate ÷ W1", _from_one),
        ("cosine", "cosine to ∇f", lambda value: 1 - value),
        ("norm_median", "‖∇D‖, median", None),
        ("norm_spread", "‖∇D‖, 90 % − 10 %", None),
        ("scaled_estimate", "÷ largest ‖∇D‖", lambda value: -value),
    ]
    for pair in card.pairs:
        for key, title, badness in kinds:
            made.append(_transport(pair, key, title, badness))
    for game in ("dirac", "scales"):
        for loss in LOSSES:
            made.append(_largest(game, loss))
            made.append(_radius(game, loss))
    made.append(_part("flow", "slope", "gradient flow\nslope", abs, interval))
    made.append(_part("flow", "border", "weights at\nthe border", None, interval))
    made.append(_part("cost", "flops_ratio", "FLOPs", lambda value: value, _times))
    made.append(_part("cost", "time_ratio", "time", None, _times))
    made.append(_part("cost", "memory_ratio", "memory", None, _times))
    return made


def _transport(pair: str, key: str, title: str, badness: Callable[[float], float] | None) -> Column:
    part = f"transport/{pair}"
    return Column(
        f"{pair}\n{title}",
        lambda line: line.transport.get(pair, {}).get(key),
        badness,
        interval,
        lambda line: line.refused.get(part, ""),
    )


def _game(line: Line, game: str, loss: str) -> Local | None:
    games = {"dirac": line.dirac, "scales": line.scales}[game]
    return games.get(loss)


def _largest(game: str, loss: str) -> Column:
    """Return the column of the largest real part: how fast a game comes to rest, below 0."""

    def get(line: Line) -> Measure | None:
        local = _game(line, game, loss)
        if local is None or not local.eigenvalues:
            return None
        return Measure((max(value.real for value in local.eigenvalues),))

    def why(line: Line) -> str:
        refused = line.refused.get(f"{game}/{loss}", "")
        return refused or "acts on weights, or has a kink there"

    return Column(f"{game}, {loss}\nlargest Re λ", get, lambda value: value, interval, why)


def _radius(game: str, loss: str) -> Column:
    def get(line: Line) -> Measure | None:
        local = _game(line, game, loss)
        return Measure((local.radius,)) if local and math.isfinite(local.radius) else None

    def why(line: Line) -> str:
        return line.refused.get(f"{game}/{loss}", "") or "it diverges"

    return Column(f"{game}, {loss}\nradius", get, lambda value: value, interval, why)


def _part(
    part: str,
    key: str,
    title: str,
    badness: Callable[[float], float] | None,
    text: Callable[[Measure], str],
) -> Column:
    return Column(
        title,
        lambda line: getattr(line, part).get(key),
        badness,
        text,
        lambda line: line.refused.get(part, ""),
    )


@dataclass(frozen=True)
class Cell:
    """What a table shows: text, and "best", "tie" or nothing; or why there is nothing to show."""

    text: str
    mark: str = ""
    why: str = ""


def cells(column: Column, lines: Sequence[Line]) -> list[Cell]:
    """Return a column's cells. One that has no measure says why in a note."""
    measures = {line.row.name: column.get(line) for line in lines}
    there = {name: measure for name, measure in measures.items() if measure is not None}
    marked = marks(there, column.badness) if column.badness else {}
    made = []
    for line in lines:
        measure = measures[line.row.name]
        if measure is None:
            made.append(Cell(DASH, why=column.why(line)))
        else:
            made.append(Cell(column.text(measure), marked.get(line.row.name, "")))
    return made
