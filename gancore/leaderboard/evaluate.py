"""From the runs of a board to its result: numbers, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import NamedTuple

from gancore.errors import InputError
from gancore.leaderboard import result
from gancore.leaderboard.board import Board, Budget, Entry
from gancore.leaderboard.job import Job
from gancore.leaderboard.result import EntryCost, EntryResult, EntryScore, Result
from gancore.leaderboard.statistics import ALPHA, POWER, compare, method, summarize
from gancore.provenance.environment import Environment
from gancore.scoring.generator import COLLAPSED
from gancore.scoring.protocol import FeatureSpace, Scores, by_difference, higher_is_better, keys

NO_RECORDS = (
    "its metrics.jsonl is gone, or not whole: the scores stand, curves and times are without it"
)

OTHER = {
    "reference": "against other real samples",
    "samples": "of another number of samples",
    "extractor": "in other features",
    "weights_sha256": "in features of other weights",
}
"""In what the protocols of a table may not differ, and what to say of scores that do."""


class Finished(NamedTuple):
    """A run that is done, and what was read of its folder."""

    job: Job
    scores: Scores
    environment: Environment


def evaluate(board: Board, jobs: Sequence[Job], costs: Mapping[str, EntryCost]) -> Result:
    """Return the result of a board: entries from best to worst, and how they were made.

    jobs: all runs of the board; costs: of an entry's critic update, by the entry's name

    Raises InputError where runs have scores against other real samples than others.
    """
    finished = [
        Finished(job, saved.scores, saved.environment)
        for job in jobs
        if job.state == "done" and (saved := job.saved) and saved.scores and saved.environment
    ]
    metrics = keys(finished[0].job.recipe["score"]["metrics"]) if finished else []
    metric = board.metric or (metrics[0] if metrics else "")
    runs = {
        entry.name: [run for run in finished if run.job.entry == entry.name]
        for entry in board.entry
    }
    scores: dict[str, dict[str, EntryScore]] = {name: {} for name in runs}
    tests = {}
    for key in metrics:
        values = {
            name: {run.job.seed: run.scores.scores[key] for run in mine}
            for name, mine in runs.items()
        }
        baseline = values[board.baseline]
        compared = compare(
            {
                name: (by_seed, baseline)
                for name, by_seed in values.items()
                if name != board.baseline
            },
            higher_is_better=higher_is_better(key),
            by_difference=by_difference(key),
        )
        tests[key] = method(compared.values())
        for name, by_seed in values.items():
            if by_seed:
                seeds = sorted(by_seed)
                numbers = [by_seed[seed] for seed in seeds]
                against = dict(compared[name]) if name in compared else {"verdict": "baseline"}
                scores[name][key] = EntryScore(
                    **dict(summarize(numbers)), values=tuple(numbers), seeds=tuple(seeds), **against
                )
    entries = [
        _entry(
            entry,
            [job for job in jobs if job.entry == entry.name],
            runs[entry.name],
            scores[entry.name],
            costs.get(entry.name, EntryCost()),
        )
        for entry in board.entry
    ]
    sign = -1 if metric and higher_is_better(metric) else 1
    entries.sort(
        key=lambda entry: sign * entry.scores[metric].median if metric in entry.scores else math.inf
    )
    return Result(
        format=result.FORMAT,
        metric=metric,
        higher_is_better=tuple(sorted(filter(higher_is_better, metrics))),
        baseline=board.baseline,
        entries=tuple(entries),
        protocol=_protocol(finished),
        environment=_machine(finished),
        budget=Budget(**dict(board.budget)) if board.budget else None,
        seeds=board.seeds,
        threads=board.threads,
        statistics=result.Decisions(alpha=ALPHA, power=POWER, tests=tests),
    )


def _entry(
    entry: Entry,
    jobs: Sequence[Job],
    finished: Sequence[Finished],
    scores: dict[str, EntryScore],
    cost: EntryCost,
) -> EntryResult:
    train = jobs[0].recipe["train"]
    notes = [(run, note) for run in finished for note in run.scores.notes]
    notes += [
        (run, NO_RECORDS) for run in finished if run.job.steps and not run.job.has_whole_records()
    ]
    return EntryResult(
        name=entry.name,
        label=entry.label or entry.name,
        plugins=finished[0].environment.plugins if finished else {},
        generator_updates=train["steps"],
        critic_updates=train["steps"] * train["critic_steps"],
        seconds=tuple(round(run.job.seconds, 1) for run in finished),
        failed=tuple(
            result.Failure(seed=job.seed, error=job.error) for job in jobs if job.state == "failed"
        ),
        missing=tuple(job.seed for job in jobs if job.state not in ("done", "failed")),
        collapsed=tuple(
            run.job.seed
            for run in finished
            if run.scores.spread is not None and run.scores.spread < COLLAPSED
        ),
        notes=tuple(result.RunNote(seed=run.job.seed, note=note) for run, note in notes),
        scores=scores,
        cost=cost,
    )


def _protocol(finished: Sequence[Finished]) -> FeatureSpace:
    """Return what the protocols of all runs have in common, all but the seed, and all versions."""
    tables = [run.scores.protocol.table() for run in finished]
    for run, table in zip(finished, tables, strict=True):
        for key, other in OTHER.items():
            if table.get(key) != tables[0].get(key):  # somebody has scored it anew
                raise InputError(
                    f"{run.job.path} has scores {other} than {finished[0].job.path}: delete the "
                    "scores.json of whichever is wrong, and run the board again"
                )
    common = {
        key: value
        for key, value in (tables[0] if tables else {}).items()
        if key != "seed" and all(table.get(key) == value for table in tables)
    }
    if tables:
        used = sorted(
            set(chain.from_iterable(run.scores.protocol.versions.items() for run in finished))
        )
        names = dict(used)
        common["versions"] = {
            name: " and ".join(version for other, version in used if other == name)
            for name in names
        }
    return FeatureSpace.model_validate(common)


def _machine(finished: Sequence[Finished]) -> result.Machine:
    """Return what the first run ran on, but for what is its own."""
    about = finished[0].environment.table() if finished else {}
    for key in ("plugins", "components", "from_step", "earlier"):
        about.pop(key, None)
    if isinstance(core := about.get("core"), Mapping):
        about["core"] = {key: value for key, value in core.items() if key != "modules"}
    return result.Machine.model_validate(about)
