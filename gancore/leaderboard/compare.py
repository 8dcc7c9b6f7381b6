"""The gate: whether a leaderboard got worse than an earlier one."""

from __future__ import annotations

from gancore.errors import InputError
from gancore.leaderboard.result import Result
from gancore.leaderboard.statistics import Comparison, compare
from gancore.recipe import differences
from gancore.scoring.protocol import by_difference, higher_is_better
from gancore.text import shown


def unlike(before: Result, after: Result) -> list[str]:
    """Return a line for each difference that makes scores incomparable; versions may differ."""
    old, new = (
        {
            "budget": result.budget.model_dump() if result.budget else None,
            "protocol": result.protocol.table(),
        }
        for result in (before, after)
    )
    return [shown(line, 300) for line in differences(old, new, free=["protocol.versions"])]


def gate(before: Result, after: Result, metric: str) -> dict[str, Comparison]:
    """Compare each entry that both have, seed by seed; all are one family.

    Raises InputError for unlike protocols, or where there is no entry with this score in both.
    """
    if differences := unlike(before, after):
        raise InputError(
            "these leaderboards can't be compared:\n"
            + "\n".join(f"  {line}" for line in differences[:20])
            + "\nRun both boards under one protocol and budget"
        )
    old, new = (
        {
            entry.name: dict(zip(score.seeds, score.values, strict=True))
            for entry in result.entries
            if (score := entry.scores.get(metric))
        }
        for result in (before, after)
    )
    pairs = {name: (new[name], old[name]) for name in old if name in new}
    if not pairs:
        known = sorted({key for entry in before.entries for key in entry.scores})
        names = shown(", ".join(known) or "none", 1000)
        raise InputError(f"no entry has {metric!r} in both; there is {names}")
    return compare(
        pairs,
        higher_is_better=higher_is_better(metric, otherwise=metric in before.higher_is_better),
        by_difference=by_difference(metric),
    )


def regressed(comparison: Comparison, tolerance: float) -> bool:
    """Return whether an entry got significantly worse, and by more than the tolerance.

    tolerance: of the ratio, 0.05 being 5 %; of the difference for scores that can be 0.
    """
    if comparison.verdict != "worse":
        return False
    if comparison.scale == "difference":
        return abs(comparison.ratio) > tolerance
    return max(comparison.ratio, 1 / comparison.ratio) > 1 + tolerance
