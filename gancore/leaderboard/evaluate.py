"""From the runs of a board to its result: numbers, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gancore.errors import InputError
from gancore.leaderboard import result
from gancore.leaderboard.board import Board, Budget, Entry
from gancore.leaderboard.job import Job
from gancore.leaderboard.statistics import ALPHA, POWER, Comparison, compare, method, summarize
from gancore.provenance.environment import Environment
from gancore.scoring.generator import COLLAPSED
from gancore.scoring.protocol import HIGHER_IS_BETTER, Scores, keys

NO_RECORDS = (
    "its metrics.jsonl is gone, or not whole: the scores stand, curves and times are without it"
)

OF_A_RUN: Mapping[str, set[str] | bool] = {
    "plugins": True,
    "components": True,
    "from_step": True,
    "earlier": True,
    "core": {"modules"},
}
"""What of an environment belongs to one run."""


class Finished(NamedTuple):
    """A run that is done, with what was read of its folder."""

    job: Job
    scores: Scores
    environment: Environment | None


def evaluate(
    board: Board, jobs: Sequence[Job], costs: Mapping[str, result.EntryCost]
) -> result.Result:
    """Return the result of a board: entries from best to worst, and how they were made.

    jobs   all runs of the board
    costs  of an entry's critic update, by the entry's name

    Raises InputError where runs have scores against other real samples than others.
    """
    finished = [
        Finished(job, saved.scores, saved.environment)
        for job in jobs
        if job.state == "done" and (saved := job.saved) and saved.scores
    ]
    metrics = keys(finished[0].job.recipe["score"]["metrics"]) if finished else []
    metric = board.metric or (metrics[0] if metrics else "")
    values = {
        key: {
            entry.name: {
                run.job.seed: run.scores.scores[key]
                for run in finished
                if run.job.entry == entry.name
            }
            for entry in board.entry
        }
        for key in metrics
    }
    compared = {
        key: compare(
            {
                name: (scores, by_entry[board.baseline])
                for name, scores in by_entry.items()
                if name != board.baseline
            },
            higher_is_better=key in HIGHER_IS_BETTER,
        )
        for key, by_entry in values.items()
    }
    entries = [
        _entry(
            entry,
            [job for job in jobs if job.entry == entry.name],
            [run for run in finished if run.job.entry == entry.name],
            {
                key: _score(values[key][entry.name], compared[key].get(entry.name))
                for key in metrics
                if values[key][entry.name]
            },
            costs.get(entry.name, result.EntryCost()),
        )
        for entry in board.entry
    ]
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    entries.sort(
        key=lambda entry: sign * entry.scores[metric].median if metric in entry.scores else math.inf
    )
    return result.Result(
        format=result.FORMAT,
        metric=metric,
        higher_is_better=tuple(sorted(HIGHER_IS_BETTER.intersection(metrics))),
        baseline=board.baseline,
        entries=tuple(entries),
        protocol=_protocol(finished),
        environment=_machine(finished),
        budget=Budget(**dict(board.budget)) if board.budget else None,
        seeds=board.seeds,
        threads=board.threads,
        statistics=result.Decisions(
            alpha=ALPHA,
            power=POWER,
            tests={key: method(by_entry.values()) for key, by_entry in compared.items()},
        ),
    )


def _entry(
    entry: Entry,
    jobs: Sequence[Job],
    finished: Sequence[Finished],
    scores: dict[str, result.EntryScore],
    cost: result.EntryCost,
) -> result.EntryResult:
    train = jobs[0].recipe["train"]
    origins = finished[0].environment.plugins if finished and finished[0].environment else {}
    notes = [
        result.RunNote(seed=run.job.seed, note=note)
        for run in finished
        for note in (
            *run.scores.notes,
            *([] if run.job.has_whole_records() or not run.job.steps else [NO_RECORDS]),
        )
    ]
    return result.EntryResult(
        name=entry.name,
        label=entry.label or entry.name,
        plugins=origins,
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
        notes=tuple(notes),
        scores=scores,
        cost=cost,
    )


def _score(values: Mapping[int, float], comparison: Comparison | None) -> result.EntryScore:
    seeds = sorted(values)
    numbers = [values[seed] for seed in seeds]
    return result.EntryScore(
        values=tuple(numbers),
        seeds=tuple(seeds),
        **dict(summarize(numbers)),
        **(dict(comparison) if comparison else {"verdict": "baseline"}),
    )


def _protocol(finished: Sequence[Finished]) -> result.CommonProtocol:
    """Return what the protocols of all runs have in common, all but the seed."""
    protocols = [run.scores.protocol for run in finished]
    tables = [protocol.model_dump(exclude_unset=True) for protocol in protocols]
    for run, protocol in zip(finished, protocols, strict=True):
        if protocol.reference != protocols[0].reference:  # somebody has scored it anew
            raise InputError(
                f"{run.job.path} has scores against other real samples than "
                f"{finished[0].job.path}: delete the scores.json of whichever is wrong, and run "
                "the board again"
            )
    return result.CommonProtocol.model_validate(
        {
            key: value
            for key, value in (tables[0] if tables else {}).items()
            if key != "seed" and all(table.get(key) == value for table in tables)
        }
    )


def _machine(finished: Sequence[Finished]) -> result.Machine:
    """Return what the first run ran on."""
    if not (finished and finished[0].environment):
        return result.Machine()
    about = finished[0].environment.model_dump(exclude_unset=True, exclude=OF_A_RUN)
    return result.Machine.model_validate(about)
