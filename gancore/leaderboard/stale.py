"""Which runs of a board are made again, and why: what has changed since they were made."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gancore.errors import InputError
from gancore.leaderboard.job import Job
from gancore.provenance.identity import changes
from gancore.recipe import differences
from gancore.training import Run

MOST = 20
"""Lines at most; an edit has one cause, or a few."""


def made_again(jobs: Sequence[Job]) -> list[str]:
    """Return a line for each cause that makes runs again: which runs, and what has changed.

    jobs: of a board's plan, not begun yet
    """
    causes: dict[str, list[Job]] = {}
    for job in jobs:
        if not _has_begun(job.run) and (before := _before(job)):
            for cause in _causes(before, job):
                causes.setdefault(cause, []).append(job)
    lines = [_line(stale, cause) for cause, stale in causes.items()]
    if len(lines) > MOST:
        lines[MOST:] = [f"and {len(lines) - MOST} more causes"]
    return lines


def _line(stale: Sequence[Job], cause: str) -> str:
    seeds: dict[str, list[str]] = {}
    for job in stale:
        seeds.setdefault(job.entry, []).append(str(job.seed))
    which = "; ".join(f"{entry} seed {', '.join(numbers)}" for entry, numbers in seeds.items())
    runs = "1 run is" if len(stale) == 1 else f"{len(stale)} runs are"
    return f"{runs} made again ({which}), as this has changed: {cause}"


def _has_begun(run: Run) -> bool:
    return run.scores_path.is_file() or run.checkpoints.is_dir()


def _before(job: Job) -> Run | None:
    """Return the latest folder of the same entry and seed."""
    name = re.compile(rf"{re.escape(job.entry)}-seed{job.seed}-[0-9a-f]{{10}}")
    runs = [Run(path) for path in job.path.parent.glob("*") if name.fullmatch(path.name)]
    begun = [run for run in runs if run.path != job.path and _has_begun(run)]
    return max(begun, key=lambda run: _written(run.environment_path), default=None)


def _written(path: Path) -> int:
    return path.stat().st_mtime_ns if path.is_file() else 0


def _causes(before: Run, job: Job) -> list[str]:
    try:
        expected, recipe = before.read_expected(), before.read_table()
    except InputError as error:
        return [f"it can't be read of what it was made: {error}"]
    if expected is None:
        return ["it was not recorded then which data and code a run was made of"]
    causes = [*differences(recipe, job.recipe, free=()), *changes(expected, job.about)]
    return causes or ["what decides its numbers"]
