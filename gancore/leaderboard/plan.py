"""The plan of a board: its runs, each with the folder in which it is found again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

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
    """Return the runs of a board, seed by seed: a board that is stopped has seeds of all entries.

    recipes  of its entries, by name
    out      the board's folder
    device   that the runs will be on, which this machine need not have
    samples  what an earlier plan has loaded

    Raises InputError for recipes that are wrong, and for data that can't be had; ScoreError for
    scores that those can't have.
    """
    jobs: list[Job] = []
    samples = samples or Samples()
    for name, recipe in resolved(board, recipes).items():
        with _of_entry(name):
            data = samples(recipe)
            about = versions(recipes[name]).model_copy(
                update={"data": data, "where": {"device": device, "threads": str(board.threads)}}
            )
        for seed in board.seeds:
            table = _seeded(recipe, seed).table()
            key = json.dumps([table, about.table()], sort_keys=True)
            digest = hashlib.sha256(key.encode()).hexdigest()[:10]
            path = out / "runs" / f"{name}-seed{seed}-{digest}"
            jobs.append(Job(name, seed, table, path, about=about))
    return sorted(jobs, key=lambda job: board.seeds.index(job.seed))


def resolved(board: Board, recipes: Mapping[str, Recipe]) -> dict[str, Recipe]:
    """Return the recipe that each entry's runs save, but for their seeds; no data is loaded.

    Raises InputError for recipes that are wrong, and for entries that compare nothing.
    """
    checked: dict[str, Recipe] = {}
    for name, recipe in recipes.items():
        with _of_entry(name):
            whole = Recipe.parse(resolve(recipe))
            for other, its in [*checked.items()][:1]:
                _refuse_unlike(name, whole, other, its)
        _refuse_unscored(board, whole)
        for other, its in checked.items():
            _refuse_twin(name, whole, other, its)
        checked[name] = whole
    return checked


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

    def __call__(self, recipe: Recipe) -> str:
        """Return the hash of a recipe's data. Raises DataError, PluginError, ScoreError."""
        key = json.dumps({**recipe.table()["data"], "flip": None}, sort_keys=True)
        if key not in self._hashes:
            data = load_data(recipe)
            check_scoring(data, recipe.score, weights=False)  # those may be on the nodes alone
            self._hashes[key] = data.fingerprint
        return self._hashes[key]


def versions(recipe: Recipe) -> MadeOf:
    """Return what of this machine, beside the recipe and device, decides the scores of a run."""
    return made_with(load_plugins(recipe)).model_copy(update={"components": origins(recipe)})


def _seeded(recipe: Recipe, seed: int) -> Recipe:
    return recipe.model_copy(update={"train": recipe.train.model_copy(update={"seed": seed})})


def _refuse_unscored(board: Board, recipe: Recipe) -> None:
    """Refuse to make runs that no score would rank."""
    known = protocol.keys(recipe.score.metrics)
    if not known or (board.metric or known[0]) not in known:
        raise RecipeError(
            f"metric: the runs will have {', '.join(known) or 'no scores'}, and the board ranks by "
            f"{board.metric or 'the first'}: add it to score.metrics"
        )


def _refuse_twin(name: str, recipe: Recipe, other: str, its: Recipe) -> None:
    """Refuse an entry that would make the runs of another one again."""
    seeded = _seeded(recipe, its.train.seed)
    if seeded.train.steps == its.train.steps and not differences(its.table(), seeded.table()):
        raise RecipeError(
            f"entries {other!r} and {name!r} are one and the same: change the `set` or "
            "`recipe` of one, or leave it out"
        )


def _refuse_unlike(name: str, recipe: Recipe, other: str, its: Recipe) -> None:
    """Refuse an entry that is scored otherwise than the first: the table would compare nothing."""
    mine, theirs = recipe.table(), its.table()
    of_scores = ("metrics", "samples", "extractor", "weights")
    for section, keys in (("data", mine["data"]), ("score", of_scores)):
        for key in keys:
            one, another = mine[section].get(key), theirs[section].get(key)
            if one != another:
                raise RecipeError(
                    f"entry {name!r}: {section}.{key} is {one!r}, and {another!r} in the entry "
                    f"{other!r}: a board compares scores of one protocol"
                )
