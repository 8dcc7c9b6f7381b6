"""What the entries of a board cost: measured once, before the runs, while the machine is quiet."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gancore import cost
from gancore.cost import measure
from gancore.files.reading import is_there, read_json
from gancore.files.stored import Number, Stored
from gancore.files.writing import write_text
from gancore.leaderboard.board import Board
from gancore.leaderboard.job import Executor
from gancore.leaderboard.plan import versions
from gancore.provenance.machine import on_threads
from gancore.provenance.sources import file_code
from gancore.recipe import Recipe

LARGEST = 16 << 20
"""Bytes of costs.json; ours have a thousand."""


class Kept(Stored):
    """costs.json."""

    key: str
    costs: dict[str, dict[str, Number | None]]


def measure_costs(
    board: Board,
    recipes: Mapping[str, Recipe],
    out: Path,
    *,
    executor: Executor,
    tell: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Return each entry's `gancore.cost.Cost` as a table, on the board's number of threads.

    They are kept in costs.json in the board's folder, and measured again for other recipes or
    versions. Raises InputError for recipes that can't be trained.
    """
    path = out / "costs.json"
    made_of = {name: [each.table(), versions(each).table()] for name, each in recipes.items()}
    about = [executor.where, board.threads, file_code(Path(cost.__file__)), made_of]
    key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    if is_there(path):
        kept = read_json(path, Kept, "Delete it, and run the board again", largest=LARGEST)
        if kept.key == key:
            return kept.costs
    tell(f"measuring what {len(recipes)} entries cost, before the first run")
    found = executor.measure(recipes)
    write_text(path, json.dumps({"key": key, "costs": found}, indent=1) + "\n")
    return found


def measure_here(
    recipes: Mapping[str, Recipe], *, threads: int, device: str
) -> dict[str, dict[str, Any]]:
    """Measure in this process, on so many threads. Raises InputError."""
    with on_threads(threads):
        measured = measure(recipes, device=device)
    return {name: asdict(each) for name, each in measured.items()}
