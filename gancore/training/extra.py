"""torch's extra state, what `get_extra_state` returns, as tensors and JSON: never as a pickle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gancore.errors import CheckpointError
from gancore.options import shown


def split_extra(table: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Split a state dict into tensors, and JSON trees by key, of whatever else there is.

    A tensor in a tree is kept under the key and the path to it. Raises CheckpointError for what is
    neither tensor nor JSON data.
    """
    tensors = {key: value for key, value in table.items() if isinstance(value, Tensor)}
    trees = {
        key: _tree(value, key, [], tensors) for key, value in table.items() if key not in tensors
    }
    return tensors, trees


def _tree(value: Any, key: str, path: list[str | int], tensors: dict[str, Tensor]) -> Any:
    """Return JSON data with None where there are tensors, which are put into `tensors`."""
    if isinstance(value, Tensor):
        tensors[f"{key}{json.dumps(path)}"] = value
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if len(path) < 50:  # deeper is a loop
        if type(value) is list:
            return [_tree(each, key, [*path, n], tensors) for n, each in enumerate(value)]
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {name: _tree(each, key, [*path, name], tensors) for name, each in value.items()}
    place = "".join(f"[{each!r}]" for each in path[:5])
    raise CheckpointError(
        f"{shown(key, 200)}{shown(place, 200)} is a {type(value).__name__}, which no checkpoint "
        "holds: let get_extra_state return tensors, numbers, strings, None, and lists and dicts of "
        "them"
    )


def join_extra(tensors: Mapping[str, Tensor], trees: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `split_extra`. Raises ValueError, LookupError, TypeError for what that did not make."""
    if both := tensors.keys() & trees.keys():
        raise ValueError(f"{min(both)} is a tensor too")
    joined: dict[str, Any] = {**tensors, **trees}
    for key in trees:
        for name in [name for name in tensors if name.startswith(f"{key}[")]:
            *path, last = json.loads(name.removeprefix(key))
            place = joined[key]
            for step in path:
                place = place[step]
            place[last] = joined.pop(name)
    return joined
