"""Leftovers: what plugins put on a critic stays on it when another run gets the critic."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gancore.errors import PluginError

if TYPE_CHECKING:
    from torch import nn

MADE = "_gancore_made"
"""A critic's attribute: who put what on it. A copy of the critic has an attribute of its own."""


@contextmanager
def noted(critic: nn.Module, cls: type, who: str) -> Iterator[None]:
    """Note which modules and hooks a plugin of this class puts on a critic meanwhile."""
    before = parts_of(critic)
    try:
        yield
    finally:
        made = [part for key, part in parts_of(critic).items() if key not in before]
        if made:
            vars(critic).setdefault(MADE, []).append((cls, who, made))


def refuse_leftovers(critic: nn.Module, here: Collection[type]) -> None:
    """Raise PluginError where a critic has what a plugin of another class than these put on it."""
    there = parts_of(critic)
    for cls, who, parts in vars(critic).get(MADE, ()):
        if cls not in here and not there.keys().isdisjoint(map(id, parts)):
            raise PluginError(
                f"the critic still has what plugin {who} put on it for another run, and this run "
                "is without that plugin: build the critic anew"
            )


def parts_of(module: nn.Module) -> dict[int, object]:
    """Return a module's parts and their hooks, by their id."""
    kinds = [f"_{when}_hooks" for when in ("forward_pre", "forward", "backward_pre", "backward")]
    parts: list[object] = []
    for part in module.modules():
        parts += [part, *(hook for kind in kinds for hook in getattr(part, kind).values())]
    return {id(part): part for part in parts}
