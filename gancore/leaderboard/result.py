"""The result of a board: its runs, put into numbers that say how sure they are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gancore.errors import InputError
from gancore.leaderboard.board import Board, Entry
from gancore.leaderboard.compare import FORMAT
from gancore.leaderboard.job import Job
from gancore.leaderboard.statistics import ALPHA, POWER, compare, method, summarize
from gancore.scoring.generator import COLLAPSED
from gancore.scoring.protocol import HIGHER_IS_BETTER, keys

NO_RECORDS = (
    "its metrics.jsonl is gone, or not whole: the scores stand, curves and times are without it"
)


def result(
    board: Board, jobs: Sequence[Job], costs: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Return what leaderboard.json holds: entries from best to worst, and how they were made.

    costs: by entry, time_ratio, flops_ratio and memory_ratio to the same network unregularized.
    """
    finished = [job for job in jobs if job.state == "done"]
    metrics = _metrics(finished)
    metric = board.metric or (metrics[0] if metrics else "")
    values = {
        key: {
            entry.name: {
                job.seed: _scored(job)["scores"][key] for job in finished if job.entry == entry.name
            }
            for entry in board.entry
        }
        for key in metrics
    }
    compared = {
        key: compare(
            {
                name: (scores, each[board.baseline])
                for name, scores in each.items()
                if name != board.baseline
            },
            higher_is_better=key in HIGHER_IS_BETTER,
        )
        for key, each in values.items()
    }
    entries = [
        {
            **_about(entry, [job for job in jobs if job.entry == entry.name]),
            "scores": {
                key: _scores(values[key][entry.name], compared[key].get(entry.name))
                for key in metrics
                if values[key][entry.name]
            },
            "cost": dict(costs.get(entry.name, {})),
        }
        for entry in board.entry
    ]
    sign = -1 if metric in HIGHER_IS_BETTER else 1
    entries.sort(
        key=lambda each: (
            sign * each["scores"][metric]["median"] if metric in each["scores"] else math.inf
        )
    )
    return {
        "format": FORMAT,
        "metric": metric,
        "higher_is_better": sorted(HIGHER_IS_BETTER.intersection(metrics)),
        "baseline": board.baseline,
        "entries": entries,
        "protocol": _protocol(finished),
        "environment": _environment(finished),
        "budget": board.budget.model_dump() if board.budget else None,
        "seeds": list(board.seeds),
        "threads": board.threads,
        "statistics": {
            "alpha": ALPHA,
            "power": POWER,
            "tests": {key: method(map(vars, each.values())) for key, each in compared.items()},
        },
    }


def _about(entry: Entry, jobs: Sequence[Job]) -> dict[str, Any]:
    done = [job for job in jobs if job.state == "done"]
    train = jobs[0].recipe["train"]
    return {
        "name": entry.name,
        "label": entry.label or entry.name,
        "plugins": _ran_on(done[0])["plugins"] if done else {},
        "generator_updates": train["steps"],
        "critic_updates": train["steps"] * train["critic_steps"],
        "seconds": [round(job.seconds, 1) for job in done],
        "failed": [{"seed": job.seed, "error": job.error} for job in jobs if job.state == "failed"],
        "missing": [job.seed for job in jobs if job.state in ("waiting", "running")],
        "collapsed": [job.seed for job in done if _scored(job)["spread"] < COLLAPSED],
        "notes": [
            {"seed": job.seed, "note": note}
            for job in done
            for note in (
                *_scored(job).get("notes", []),
                *([] if job.has_whole_records() or not job.steps else [NO_RECORDS]),
            )
        ],
    }


def _scores(values: Mapping[int, float], found: Any) -> dict[str, Any]:
    seeds = sorted(values)
    comparison: dict[str, Any] = {"verdict": "baseline"}
    if found is not None:
        comparison = {key: _plain(value) for key, value in asdict(found).items()}
    return {
        **asdict(summarize([values[seed] for seed in seeds])),
        "values": [values[seed] for seed in seeds],
        "seeds": seeds,
        **comparison,
    }


def _plain(value: Any) -> Any:
    """Return None for a number that JSON does not have."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _metrics(finished: Sequence[Job]) -> list[str]:
    """Return the scores that were asked for, and not what somebody added to one of the runs."""
    return keys(finished[0].recipe["score"]["metrics"]) if finished else []


def _protocol(finished: Sequence[Job]) -> dict[str, Any]:
    """Return what the protocols of all runs have in common, all but the seed."""
    protocols = [_scored(job)["protocol"] for job in finished]
    first = protocols[0] if protocols else {}
    for job, protocol in zip(finished, protocols, strict=True):
        if protocol["reference"] != first["reference"]:  # somebody has scored it anew
            raise InputError(
                f"{job.path} has scores against other real samples than {finished[0].path}: delete "
                f"the scores.json of whichever is wrong, and run the board again"
            )
    return {
        key: value
        for key, value in first.items()
        if key != "seed" and all(each.get(key) == value for each in protocols)
    }


def _environment(finished: Sequence[Job]) -> dict[str, Any]:
    if not finished:
        return {}
    found = _ran_on(finished[0])
    core = {key: value for key, value in (found.get("core") or {}).items() if key != "modules"}
    of_a_run = ("plugins", "components", "from_step", "earlier")
    return {**{key: value for key, value in found.items() if key not in of_a_run}, "core": core}


def _scored(job: Job) -> dict[str, Any]:
    scores = job.run.read_scores()
    assert scores is not None
    return scores.table()


def _ran_on(job: Job) -> dict[str, Any]:
    environment = job.run.read_environment()
    assert environment is not None
    return environment.table()
