"""What the entries of a board cost: measured once, before the runs keep the machine busy."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path

from gancore import cost
from gancore.files.reading import is_there, read_json
from gancore.files.stored import Stored
from gancore.files.writing import write_text
from gancore.leaderboard.board import Board
from gancore.leaderboard.executor import Executor
from gancore.leaderboard.plan import versions
from gancore.leaderboard.result import EntryCost
from gancore.provenance.sources import file_code
from gancore.recipe import Recipe

LARGEST = 16 << 20
"""Bytes of costs.json; ours have a thousand."""


class KeptCosts(Stored):
    """costs.json: what entries cost, and a hash of all that decides it."""

    key: str
    costs: dict[str, EntryCost]


def measure_costs(
    board: Board,
    recipes: Mapping[str, Recipe],
    out: Path,
    *,
    executor: Executor,
    tell: Callable[[str], None],
) -> dict[str, EntryCost]:
    """Return what each entry costs, on the board's number of threads.

    costs.json in the board's folder keeps it. It is measured again for other recipes, versions,
    threads or places. Raises InputError for recipes that can't be trained.
    """
    path = out / "costs.json"
    made_of = {name: [recipe.table(), versions(recipe).table()] for name, recipe in recipes.items()}
    about = [executor.where, board.threads, file_code(Path(cost.__file__)), made_of]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    if is_there(path):
        kept = read_json(path, KeptCosts, "Delete it, and run the board again", largest=LARGEST)
        if kept.key == key:
            return kept.costs
    tell(f"measuring what {len(recipes)} entries cost, before the first run")
    costs = {
        name: EntryCost(**vars(measured)) for name, measured in executor.measure(recipes).items()
    }
    kept = KeptCosts(key=key, costs=costs)
    write_text(path, json.dumps(kept.table(), indent=1) + "\n")
    return costs
