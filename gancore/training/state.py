"""State as tensors and JSON, never as a pickle: that of plugins, and torch's extra state."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, ValidatorFunctionWrapHandler, field_validator
from pydantic_core import PydanticCustomError
from torch import Tensor

from gancore.errors import CheckpointError
from gancore.files.stored import Json, Stored, Whole
from gancore.options import explain
from gancore.provenance.identity import MadeOf
from gancore.text import shown

STATE = "state.json"
"""A checkpoint's file of JSON."""

COPY_AGAIN = "Copy the run folder anew, or train again"


LARGEST_SAMPLE = 1 << 28
"""Numbers of one sample."""

Size = Annotated[int, Field(ge=1, le=LARGEST_SAMPLE)]


class About(Stored):
    """What a checkpoint's JSON says of the run, beside the tally and what plugins keep.

    An earlier gancore's lacks some of it.

    recipe     the resolved one, as a table
    made_of    data and code
    processes  that trained together
    frozen     names of the generator's modules that were in eval mode
    shape      of one sample
    """

    recipe: dict[str, Any] | None = None
    made_of: MadeOf = MadeOf()
    processes: Whole = 1
    frozen: list[str] | None = None
    shape: Annotated[list[Size], Field(min_length=1, max_length=8)] | None = None

    @field_validator("frozen", mode="wrap")
    @classmethod
    def _names(cls, value: object, check: ValidatorFunctionWrapHandler) -> list[str] | None:
        try:
            return check(value)  # type: ignore[no-any-return]
        except ValidationError:
            raise PydanticCustomError("unavailable", "expected names of modules") from None

    @field_validator("shape")
    @classmethod
    def _bounded(cls, value: list[int] | None) -> list[int] | None:
        if value and math.prod(value) > LARGEST_SAMPLE:
            raise PydanticCustomError("unavailable", "expected the shape of a sample")
        return value

    @classmethod
    def of(cls, state: Mapping[str, Json]) -> Self:
        """Return what a state says. Raises CheckpointError for one that is odd."""
        try:
            return cls.model_validate(dict(state))
        except ValidationError as error:
            reason = explain(error, f"the checkpoint's {STATE}", lambda path: ())
            raise CheckpointError(f"{reason}. {COPY_AGAIN}") from error


def split_extra(table: Mapping[str, Tensor | Json]) -> tuple[dict[str, Tensor], dict[str, Json]]:
    """Split a state dict into tensors, and JSON trees by key, of whatever else there is.

    A tensor in a tree is kept under the key and the path to it. Raises CheckpointError for what is
    neither tensor nor JSON data.
    """
    tensors = {key: value for key, value in table.items() if isinstance(value, Tensor)}
    trees = {
        key: _tree(value, key, [], tensors) for key, value in table.items() if key not in tensors
    }
    return tensors, trees


def _tree(value: Any, key: str, path: list[str | int], tensors: dict[str, Tensor]) -> Json:
    """Return JSON data with None where there are tensors, which are put into `tensors`."""
    if isinstance(value, Tensor):
        tensors[f"{key}{json.dumps(path)}"] = value
        return None
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if len(path) < 50:  # deeper is a loop
        if type(value) is list:
            return [_tree(item, key, [*path, n], tensors) for n, item in enumerate(value)]
        if isinstance(value, dict) and all(isinstance(name, str) for name in value):
            return {name: _tree(item, key, [*path, name], tensors) for name, item in value.items()}
    place = "".join(f"[{part!r}]" for part in path[:5])
    raise CheckpointError(
        f"{shown(key, 200)}{shown(place, 200)} is a {type(value).__name__}, which no checkpoint "
        "holds: let get_extra_state return tensors, numbers, strings, None, and lists and dicts of "
        "them"
    )


def tables(value: Json) -> dict[str, Mapping[str, Json]]:
    """Return the tables in a table. Raises ValueError for anything else."""
    if not isinstance(value, Mapping):
        raise ValueError("expected a table of tables")
    inner = {name: table for name, table in value.items() if isinstance(table, Mapping)}
    if inner.keys() != value.keys():
        raise ValueError("expected a table of tables")
    return inner


def join_extra(tensors: Mapping[str, Tensor], trees: Mapping[str, Json]) -> dict[str, Any]:
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


def split_state(
    state: Mapping[str, Mapping[str, Tensor | Json]],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Json]]]:
    """Split plugin states into tensors, by plugin and key, and JSON scalars, by the same.

    Raises CheckpointError for anything else.
    """
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Json]] = {}
    for name, values in state.items():
        scalars[name] = {}
        for key, value in values.items():
            if not isinstance(key, str):
                raise CheckpointError(f"plugin {name!r}: state key {key!r}: expected a string")
            if isinstance(value, Tensor):
                tensors[_label(name, key)] = value
            elif value is None or isinstance(value, bool | int | float | str):
                scalars[name][key] = value
            else:
                raise CheckpointError(
                    f"plugin {name!r}: state {key!r} is a {type(value).__name__}; expected a "
                    "tensor, number, string, bool or None"
                )
    return tensors, scalars


def _label(name: str, key: str) -> str:
    """Return what a file calls a plugin's tensor: `plugin/key`, or JSON where that is unclear.

    Plugin `a/b` with key `c` and plugin `a` with key `b/c` are two.
    """
    is_plain = "/" not in name + key and not name.startswith("[")
    return f"{name}/{key}" if is_plain else json.dumps([name, key])


def _split_label(label: str, names: Iterable[str]) -> tuple[str, str]:
    """Return a tensor's plugin, of these names, and key.

    An earlier gancore wrote `plugin/key` of every name: the longest that it begins with is meant.
    """
    if label.startswith("["):
        with suppress(ValueError):
            name, key = json.loads(label)
            return name, key
    known = [name for name in names if label.startswith(f"{name}/")]
    name = max(known, key=len, default=label.partition("/")[0])
    return name, label.removeprefix(f"{name}/")


def join_state(tensors: Mapping[str, Tensor], scalars: Json) -> dict[str, dict[str, Tensor | Json]]:
    """Undo `split_state`. Raises CheckpointError where a file has something else than tables."""
    try:
        state: dict[str, dict[str, Tensor | Json]] = {
            name: {**values} for name, values in tables(scalars).items()
        }
    except ValueError:
        raise CheckpointError(
            f"the checkpoint's {STATE}: plugins: expected a table for each plugin. {COPY_AGAIN}"
        ) from None
    for label, tensor in tensors.items():
        name, key = _split_label(label, state)
        state[name][key] = tensor
    return state
