"""The plan of a board: its runs, each with the folder in which it is found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gancore.errors import GancoreError, RecipeError
from gancore.leaderboard.board import Board
from gancore.leaderboard.job import Job
from gancore.provenance.environment import made_with
from gancore.provenance.identity import MadeOf
from gancore.recipe import Recipe, differences
from gancore.scoring import check_scoring, protocol
from gancore.training.building import load_data, load_plugins, origins, resolve


def plan(
    board: Board,
    recipes: Mapping[str, Recipe],
    out: Path,
    *,
    device: str,
    samples: Samples | None = None,
) -> list[Job]:
    """Return the runs of a board, seed by seed, so that all entries get on alike.

    recipes  of its entries, by name
    out      the board's folder
    device   that the runs will be on, which this machine need not have
    samples  what an earlier plan has loaded

    Raises InputError for recipes that are wrong, and for data that can't be had; ScoreError for
    scores that those can't have.
    """
    jobs: list[Job] = []
    samples = samples or Samples()
    for name, table in tables(board, recipes).items():
        with _of_entry(name):
            data = samples(recipes[name], table["data"])
            about = versions(recipes[name]).model_copy(
                update={
                    "data": data,
                    "where": {"device": device, "threads": str(board.threads)},
                }
            )
        for seed in board.seeds:
            seeded = {**table, "train": {**table["train"], "seed": seed}}
            key = json.dumps([seeded, about.table()], sort_keys=True)
            digest = hashlib.sha256(key.encode()).hexdigest()[:10]
            path = out / "runs" / f"{name}-seed{seed}-{digest}"
            jobs.append(Job(name, seed, seeded, path, about=about))
    return sorted(jobs, key=lambda job: board.seeds.index(job.seed))


def tables(board: Board, recipes: Mapping[str, Recipe]) -> dict[str, dict[str, Any]]:
    """Return the table that each entry's runs save, but for their seeds; no data is loaded.

    Raises InputError for recipes that are wrong, and for entries that compare nothing.
    """
    found: dict[str, dict[str, Any]] = {}
    for name, recipe in recipes.items():
        with _of_entry(name):
            table = resolve(recipe)
            _refuse_unlike(name, table, found)
        _refuse_unscored(board, table)
        _refuse_twin(name, table, found)
        found[name] = table
    return found


@contextmanager
def _of_entry(name: str) -> Iterator[None]:
    try:
        yield
    except GancoreError as error:
        error.add_note(f"in the entry {name!r} of the board")
        raise


class Samples:
    """Hashes of data sets, each loaded here once."""

    def __init__(self) -> None:
        self._hashes: dict[str, str] = {}

    def __call__(self, recipe: Recipe, section: Mapping[str, Any]) -> str:
        """Return the hash of a recipe's data. Raises DataError, PluginError, ScoreError."""
        key = json.dumps({**section, "flip": None}, sort_keys=True)
        if key not in self._hashes:
            data = load_data(recipe)
            check_scoring(data, recipe.score, weights=False)  # those may be on the nodes alone
            self._hashes[key] = data.fingerprint
        return self._hashes[key]


def versions(recipe: Recipe) -> MadeOf:
    """Return what of this machine, beside the recipe and device, decides the scores of a run."""
    return made_with(load_plugins(recipe)).model_copy(update={"components": origins(recipe)})


def _refuse_unscored(board: Board, table: Mapping[str, Any]) -> None:
    """Refuse to make runs that no score would rank."""
    known = protocol.keys(table["score"]["metrics"])
    if not known or (board.metric or known[0]) not in known:
        raise RecipeError(
            f"metric: the runs will have {', '.join(known) or 'no scores'}, and the board ranks by "
            f"{board.metric or 'the first'}: add it to score.metrics"
        )


def _refuse_twin(name: str, table: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Refuse an entry that would make the runs of another one again."""
    for other, its in others.items():
        seeded = {**table, "train": {**table["train"], "seed": its["train"]["seed"]}}
        if table["train"]["steps"] == its["train"]["steps"] and not differences(its, seeded):
            raise RecipeError(
                f"entries {other!r} and {name!r} are one and the same: change the `set` or "
                "`recipe` of one, or leave it out"
            )


def _refuse_unlike(name: str, table: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Refuse an entry that is scored otherwise than the first: the table would compare nothing."""
    for section, keys in (
        ("data", None),
        ("score", ("metrics", "samples", "extractor", "weights")),
    ):
        for key in keys or table[section]:
            for other in [*others][:1]:
                mine, its = table[section].get(key), others[other][section].get(key)
                if mine != its:
                    raise RecipeError(
                        f"entry {name!r}: {section}.{key} is {mine!r}, and {its!r} in the entry "
                        f"{other!r}: a board compares scores of one protocol"
                    )
