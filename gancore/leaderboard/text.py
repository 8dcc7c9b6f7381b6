"""The result of a board as text: the table that a pull request shows."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from gancore.leaderboard.result import EntryResult, EntryScore, Result
from gancore.leaderboard.statistics import FEWEST, Comparison, method, span
from gancore.scoring.protocol import Protocol, score_name, shown_protocol

MINUS = "−"

COSTS = {"time_ratio": "time", "flops_ratio": "FLOPs", "memory_ratio": "memory"}
"""The ratios of an entry's cost, and what columns call them."""

UNITS = {"critic_updates": "critic updates", "passes": "passes of the critic"}
"""What a budget is counted in."""

VERDICTS = ("better", "baseline", "tie", "undecided", "worse")
"""As a column of verdicts sorts them."""


class Cell(NamedTuple):
    """What a cell shows, and the number it is sorted by; None comes last."""

    text: str
    value: float | None = None

    def parts(self) -> tuple[str, str]:
        """Return the number, and what goes below it: its interval, or runs that went wrong."""
        number, _, below = self.text.partition(" ")
        return (self.text, "") if self.value is None else (number.rstrip(","), below)


class Column(NamedTuple):
    """A column of the table.

    first  the order that has the best on top: ascending or descending
    """

    title: str
    first: str
    cell: Callable[[EntryResult], Cell]


def columns(result: Result) -> list[Column]:
    """Return the columns of the table behind rank and entry."""
    metric, main = result.metric, _score_column(result, result.metric)

    def ratio(entry: EntryResult) -> Cell:
        score = entry.scores.get(metric)
        return Cell(against(score), score.ratio if score and score.seeds_compared else None)

    def decided(entry: EntryResult) -> Cell:
        score = entry.scores.get(metric)
        return Cell(score.verdict, VERDICTS.index(score.verdict)) if score else Cell("no score")

    return [
        main,
        Column(against_title(result), main.first, ratio),
        Column("verdict", "ascending", decided),
        *(_score_column(result, key) for key in result.other_metrics()),
        *(_cost_column(key) for key in COSTS),
        Column("runs", "descending", lambda entry: Cell(runs(entry), len(entry.seconds))),
    ]


def _score_column(result: Result, key: str) -> Column:
    def cell(entry: EntryResult) -> Cell:
        score = entry.scores.get(key)
        return Cell(interval(score), score.median if score else None)

    order = "descending" if key in result.higher_is_better else "ascending"
    return Column(title(result, key) if key else "score", order, cell)


def _cost_column(key: str) -> Column:
    def cell(entry: EntryResult) -> Cell:
        ratio = getattr(entry.cost, key)
        return Cell(MINUS if ratio is None else f"{ratio:.2f}×", ratio)

    return Column(COSTS[key], "ascending", cell)


def markdown(result: Result) -> str:
    """Return a leaderboard as Markdown: the table, and the notes on it."""
    shown = columns(result)
    header = ["", "entry", *(column.title for column in shown)]
    lines = [_row(header), _row(["---"] * len(header))]
    for rank, entry in enumerate(result.entries, 1):
        cells = [str(rank) if result.metric in entry.scores else "", entry.label]
        lines.append(_row([*cells, *(column.cell(entry).text for column in shown)]))
    return "\n".join([*lines, "", *(f"{_line(line)}  " for line in notes(result)), ""])


def notes(result: Result) -> list[str]:
    """Return the lines below a table: protocol, budget, certainty, costs, failures, runs' notes."""
    lines = []
    if common := result.protocol.table():
        seeds = ", ".join(map(str, result.seeds))
        protocol = Protocol.model_validate({**common, "seed": 0})
        lines.append(shown_protocol(protocol, seeds) + ".")
    if budget := result.budget:
        lines.append(f"Budget: {budget.count:,} {UNITS[budget.unit]} an entry.")
    lines += certainty(result)
    if any(entry.cost.model_fields_set for entry in result.entries):
        lines.append(
            "Time, FLOPs and memory: of a critic update, as ratios to the same network without "
            "a regularizer."
        )
    for entry in result.entries:
        label = entry.label
        lines += [f"{label}, seed {run.seed}, failed: {run.error}" for run in entry.failed]
        lines += [f"{label}, seed {run.seed}: {run.note}" for run in entry.notes]
        if entry.collapsed:
            lines.append(f"{label} collapsed with seeds {_list(entry.collapsed)}.")
        if entry.missing:
            lines.append(f"{label} has not finished seeds {_list(entry.missing)}.")
    return lines


def certainty(result: Result) -> list[str]:
    """Return what the numbers are, what they decide, and how small a difference they could see."""
    ranked = result.ranked()
    lines = []
    if result.has_intervals():
        seeds = span(len(score.values) for _, score in ranked)
        lines.append(f"Median and 95 % bootstrap interval of {seeds} seeds.")
    if len(result.entries) < 2:
        return [*lines, "There is no entry but the baseline, and so nothing to decide."]
    compared = [score for _, score in ranked if score.verdict != "baseline"]
    how = method(compared)
    if how is None:
        most = max((one.seeds_compared for one in compared), default=0)
        seeds, decide = ("seed", "decides") if most == 1 else ("seeds", "decide")
        few = f"{most} {seeds} in common with the baseline {decide} nothing: that takes {FEWEST}."
        return [*lines, few]
    text = f"Verdicts: {how}."
    few_seeds = [entry.label for entry, score in ranked if score.verdict == "undecided"]
    if few_seeds:
        text += f" Fewer than {FEWEST} seeds in common with it: {', '.join(few_seeds)}."
    seen = sorted(
        (one.detectable, one.scale)
        for one in compared
        if one.seeds_compared >= FEWEST and one.detectable
    )
    sizes = [
        f"{least:.2g}" if scale == "difference" else f"{100 * (least - 1):.0f} %"
        for least, scale in seen
    ]
    if sizes:
        reach = f"{sizes[0]} (the steadiest entry) to {sizes[-1]} (the least steady)"
        reach = reach if len(sizes) > 1 else f"{sizes[0]} and more"
        text += f" With four chances in five it sees differences of {reach}."
    return [*lines, text]


def title(result: Result, key: str) -> str:
    """Return a score's name with the way that is better."""
    arrow = "↑" if key in result.higher_is_better else "↓"
    return f"{score_name(key, result.protocol)} {arrow}"


def interval(score: EntryScore | None) -> str:
    """Return median and interval."""
    if score is None:
        return MINUS
    if len(score.values) < 2:
        return f"{score.median:.3g}"
    return f"{score.median:.3g} ({score.low:.3g} to {score.high:.3g})"


def against(comparison: Comparison | None) -> str:
    """Return the ratio to the baseline, or the difference, with its interval."""
    if comparison is None or not comparison.seeds_compared:
        return MINUS
    sign = "" if comparison.scale == "ratio" else "+"
    text = f"{comparison.ratio:{sign}.2f}"
    if comparison.seeds_compared < 2:
        return text
    return f"{text} ({comparison.ratio_low:{sign}.2f} to {comparison.ratio_high:{sign}.2f})"


def against_title(result: Result) -> str:
    """Return what heads the ratios to the baseline, or the differences from it."""
    (label,) = [entry.label for entry in result.entries if entry.name == result.baseline]
    is_difference = any(score.scale == "difference" for _, score in result.ranked())
    return f"{MINUS if is_difference else '÷'} {label}"


def runs(entry: EntryResult) -> str:
    """Return how many runs are done, and how many failed, collapsed or are missing."""
    wrong = {"failed": entry.failed, "collapsed": entry.collapsed, "missing": entry.missing}
    counts = [f"{len(seeds)} {word}" for word, seeds in wrong.items() if seeds]
    return ", ".join([str(len(entry.seconds)), *counts])


def _list(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(_escaped(cell) for cell in cells) + " |"


def _line(text: str) -> str:
    """Return a paragraph of Markdown, whatever its text begins with: no list, heading or code."""
    return re.sub(r"^(\d*)([-+=.)])", r"\1\\\2", _escaped(text).strip())


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is, in one line."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text)
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", html.escape(plain, quote=False))
