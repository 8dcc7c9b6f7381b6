"""What has been used: a Trainer is good for one run, and so is a plugin that keeps a state."""

from __future__ import annotations

from weakref import WeakValueDictionary

from gancore.errors import InputError
from gancore.plugins import Loaded, Plugins

USED: WeakValueDictionary[int, object] = WeakValueDictionary()
"""What keeps the state of a plugin that has seen updates, by its id."""


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
                (id(keeper), keeper)
                for plugin in self._plugins.loaded
                for keeper in self._keepers(plugin)
                if hasattr(keeper, "__weakref__")
            )

    def refuse(self) -> None:
        """Refuse to begin a run from what another has left. Raises InputError."""
        if self._has_begun:
            raise InputError(
                "this Trainer has made updates already, and a new run would go on from its "
                "networks, moments and averages: make a new Trainer, of new networks and plugins"
            )
        for plugin in self._plugins.loaded:
            if any(id(keeper) in USED for keeper in self._keepers(plugin)):
                raise InputError(
                    f"plugin {plugin} keeps the state of another Trainer, whose updates it has "
                    "seen: make a new one for this Trainer"
                )

    def _keepers(self, plugin: Loaded) -> list[object]:
        """Return what keeps a plugin's state: itself, or its networks that updates may change.

        One in eval mode as a whole is a frozen extractor. What `setup` makes is new each time.
        """
        if hasattr(plugin.instance, "state_dict"):
            return [plugin.instance]
        kept = self._plugins.networks_of(plugin).children()
        return [net for net in kept if any(part.training for part in net.modules())]
