"""The contract kit: what plugin authors run on their plugin.

`gan plugins check NAME` runs it on an installed one. In a test, either subclass `PluginContract`
or call `check_plugin`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gancore.testing.check import CHECKS, Check, Result
from gancore.testing.contract import check_plugin
from gancore.testing.devices import OneDevice
from gancore.testing.scene import CheckFailed, Scene, Subject

if TYPE_CHECKING:
    from gancore.testing.suite import PluginContract

__all__ = [
    "CHECKS",
    "Check",
    "CheckFailed",
    "OneDevice",
    "PluginContract",
    "Result",
    "Scene",
    "Subject",
    "check_plugin",
]


def __getattr__(name: str) -> Any:
    if name != "PluginContract":
        raise AttributeError(f"module 'gancore.testing' has no attribute {name!r}")
    from gancore.testing.suite import PluginContract  # needs pytest, and only this does

    return PluginContract
