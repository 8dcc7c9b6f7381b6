"""What has been used: a Trainer is good for one run, and so is a plugin that keeps a state."""

from __future__ import annotations

from weakref import WeakValueDictionary

from gancore.errors import InputError
from gancore.plugins import Plugins

USED: WeakValueDictionary[int, object] = WeakValueDictionary()
"""Plugins with a state that have seen updates, by their id."""


class Use:
    """Whether a trainer has made updates; which plugins' states have seen some, of any trainer."""

    def __init__(self, plugins: Plugins) -> None:
        self._plugins = plugins
        self._has_begun = False

    def note(self) -> None:
        """Note that an update begins."""
        if not self._has_begun:
            self._has_begun = True
            USED.update(
                (id(plugin.instance), plugin.instance)
                for plugin in self._plugins.loaded
                if hasattr(plugin.instance, "state_dict")
                and hasattr(plugin.instance, "__weakref__")
            )

    def refuse(self) -> None:
        """Refuse to begin a run from what another has left. Raises InputError."""
        if self._has_begun:
            raise InputError(
                "this Trainer has made updates already, and a new run would go on from its "
                "networks, moments and averages: make a new Trainer, of new networks and plugins"
            )
        for plugin in self._plugins.loaded:
            if id(plugin.instance) in USED:
                raise InputError(
                    f"plugin {plugin} keeps the state of another Trainer, whose updates it has "
                    "seen: make a new one for this Trainer"
                )
