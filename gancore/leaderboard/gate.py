"""The gate: whether a leaderboard got worse than an earlier one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gancore.errors import InputError
from gancore.leaderboard.statistics import Comparison, compare
from gancore.protocol import HIGHER_IS_BETTER

FORMAT = 1
"""Of leaderboard.json."""


def read(path: Path) -> dict[str, Any]:
    """Read a leaderboard.json. Raises InputError for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: is no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InputError(f"{path}: is no leaderboard.json of this version of gan leaderboard")
    return found


def unlike(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """Return a line for each difference that makes scores incomparable; versions may differ."""
    lines = []
    for key in ("budget", "protocol"):
        one, other = _flat(before[key]), _flat(after[key])
        lines += [
            f"{key}.{name}: was {one.get(name)!r}, is {other.get(name)!r}"
            for name in sorted({*one, *other})
            if one.get(name) != other.get(name) and not name.startswith("versions.")
        ]
    return lines


def gate(before: Mapping[str, Any], after: Mapping[str, Any], metric: str) -> dict[str, Comparison]:
    """Compare each entry that both have, seed by seed; all are one family.

    Raises InputError for unlike protocols, or where there is no entry with this score in both.
    """
    if differences := unlike(before, after):
        raise InputError(
            "these leaderboards can't be compared:\n"
            + "\n".join(f"  {line}" for line in differences)
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
        raise InputError(f"no entry has {metric!r} in both; there is {', '.join(known)}")
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
