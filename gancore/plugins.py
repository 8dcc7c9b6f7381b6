"""Plugins: the `@plugin` decorator, loading them by name, and calling their hooks."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import combinations, permutations
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import pluggy

from gancore import entrypoints, hooks, options
from gancore.checks import guard, marks
from gancore.checks.leftovers import noted, parts_of, refuse_leftovers
from gancore.entrypoints import Available
from gancore.errors import ContractError, PluginError
from gancore.text import snake_case

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gancore.files.stored import Json
    from gancore.isolation.randomness import Randomness
    from gancore.step import CriticStep, GeneratorStep

T = TypeVar("T")
Caller = Callable[..., Any]

HOOKS = marks.HOOKS
"""The names of all hooks."""

REFUSING = frozenset({"configure", "prepare_critic", "setup"})
"""Hooks whose ValueError is a message for the user."""


@dataclass_transform(kw_only_default=True, eq_default=False)
def plugin(cls: type[T]) -> type[T]:
    """Make a class a plugin: a keyword-only dataclass whose fields are its recipe options.

    State lives in `field(init=False)`, which recipes can't set. A class may name the plugins it
    can't be combined with: `conflicts: ClassVar[tuple[str, ...]] = ("sn",)`.

    Raises TypeError for what would silently do nothing: a default without an annotation, a method
    that would never act as a hook. Raises it for an option with a reserved name, too.
    """
    if fault := marks.fault(cls) or options.fault(cls):
        raise TypeError(fault)
    return dataclass(kw_only=True, eq=False)(cls)


@dataclass(frozen=True)
class Loaded:
    """A plugin of this run: its name in the recipe, its instance, where it came from."""

    name: str
    instance: object
    source: Available | None = None

    def __str__(self) -> str:
        origin = self.source.brought_by if self.source else type(self.instance).__module__
        return f"{self.name} ({origin})"

    @property
    def method(self) -> str:
        """Its entry-point name, whatever the recipe calls it."""
        return self.source.name if self.source else self.name

    @property
    def options(self) -> dict[str, Any]:
        """Its options with their values now, as plain TOML values."""
        known = options.parameters(type(self.instance))
        given = {name: getattr(self.instance, name) for name in known}
        return options.complete(type(self.instance), given)

    def table(self) -> dict[str, Json]:
        """Return its table in a recipe, with every option."""
        alias = {"as": self.name} if self.name != self.method else {}
        return {"name": self.method, **alias, **self.options}


def plugin_class(entry: Available) -> type:
    """Import a plugin's entry point and return its class; raises PluginError when it is none."""
    cls: type = entrypoints.load(entry)
    if not entrypoints.is_plugin(cls):
        raise PluginError(f"plugin {entry}: {cls!r} is not a class decorated with @gancore.plugin")
    return cls


def load(
    name: str, given: Mapping[str, Any] | None = None, *, alias: str | None = None, where: str = ""
) -> Loaded:
    """Find the plugin `name`, import it, validate its options and build it.

    Raises PluginError for whatever stands in the way; `where` begins the lines about options.
    """
    entry = entrypoints.get("plugin", name)
    instance = options.build(plugin_class(entry), given or {}, where or name)
    return Loaded(alias or name, instance, entry)


def wrap(instance: object, name: str | None = None) -> Loaded:
    """Return an instance made in Python as Loaded, under its entry point's name if it has one."""
    if isinstance(instance, Loaded):
        return instance
    cls = type(instance)
    source = next((entry for entry in entrypoints.find("plugin") if _names(entry, cls)), None)
    named = source.name if source else snake_case(cls.__name__)
    return Loaded(name or named, instance, source)


def _names(entry: Available, cls: type) -> bool:
    """Whether an entry point names this class, wherever that is defined; imports nothing."""
    module = sys.modules.get(entry.point.module)
    return module is not None and getattr(module, entry.point.attr, None) is cls


class Plugins:
    """The plugins of a run, registered in recipe order, and their hooks.

    Each plugin is called by itself, so that a failure names it. Wrappers of other plugins still
    wrap it. Raises PluginError for names used twice, hooks that are unknown or would never act,
    plugins without any, conflicts, and unless exactly one plugin brings the losses.

    randomness  what seeds each hook of each plugin apart from all others; None leaves that
    guard       sees what hooks leave changed, of networks that it is told to `watch` too
    proven      penalties, by name and hook, whose first answer was seen to depend on parameters
    """

    def __init__(self, loaded: Sequence[Loaded], randomness: Randomness | None = None) -> None:
        self.loaded = tuple(loaded)
        self.guard = guard.Guard()
        self.proven: set[tuple[str, str]] = set()
        self._randomness = randomness
        self._networks: tuple[nn.Module, ...] = ()
        """The generator and the critic, once plugins have been set up."""
        self._running: tuple[str, guard.Call] | None = None
        """The name of the plugin whose hook is called now, and the call."""
        self._manager = pluggy.PluginManager(hooks.PROJECT)
        self._manager.add_hookspecs(hooks)
        self._refuse_clashes()
        for plugin in self.loaded:
            marks.refuse_idle(f"plugin {plugin}", plugin.instance)
        for plugin in reversed(self.loaded):  # pluggy calls the last registered first
            try:
                self._manager.register(plugin.instance, name=plugin.name)
            except pluggy.PluginValidationError as error:
                raise PluginError(f"plugin {plugin}: {' '.join(str(error).split())}") from error
        self._watch_wrappers()
        self._callers = {hook: self._callers_of(hook) for hook in HOOKS}
        self.loss = self._single("critic_loss")
        self._single("generator_loss")
        self.call("configure", plugins={plugin.name: plugin.instance for plugin in self.loaded})

    def call(self, hook: str, /, **arguments: Any) -> list[tuple[Loaded, Any]]:
        """Call a hook of every plugin; return each answer that is not None, with its plugin.

        Each call is seeded apart from all others. Raises ContractError where it leaves changed what
        others use, PluginError for a ValueError from a hook that may refuse (`configure`, `setup`),
        and whatever else a plugin raises, with a note that names it. A loss's hook answers one
        scalar: `answer_loss`.
        """
        return [
            (plugin, answer)
            for plugin, function in self._callers[hook]
            for answer in self._ask(plugin, hook, function, **arguments)
        ]

    def prepare_critic(self, critic: nn.Module) -> None:
        """Call the hook `prepare_critic` of every plugin.

        Raises PluginError for a critic with modules or hooks of a plugin that is not here, and
        ContractError for a plugin that changes the critic's dtype.
        """
        refuse_leftovers(critic, {type(plugin.instance) for plugin in self.loaded})
        for plugin, function in self._callers["prepare_critic"]:
            dtypes = {parameter.dtype for parameter in critic.parameters()}
            with noted(critic, type(plugin.instance), str(plugin)):
                self._ask(plugin, "prepare_critic", function, critic=critic)
            for other in {parameter.dtype for parameter in critic.parameters()} - dtypes:
                raise ContractError(f"plugin {plugin}: prepare_critic made the critic {other}")

    def setup(
        self, generator: nn.Module, critic: nn.Module, shape: tuple[int, ...], device: torch.device
    ) -> None:
        """Call the hook `setup` of every plugin, then move the networks that plugins keep.

        Both networks, on `device`, stay as they were, their buffers too. shape: that of a sample.
        Raises ContractError for a plugin that leaves hooks on one of them.
        """
        from gancore.isolation.buffers import buffers_kept

        self._networks = (generator, critic)
        given = {"generator": generator, "critic": critic, "shape": tuple(shape), "device": device}
        before = [parts_of(network).keys() for network in self._networks]
        for plugin, function in self._callers["setup"]:
            with buffers_kept(self._networks), self.guard.watching(*self._networks):
                self._ask(plugin, "setup", function, **given)
            if [parts_of(network).keys() for network in self._networks] != before:
                raise ContractError(
                    f"plugin {plugin}: setup left a forward or backward hook on a network of the "
                    "run: take it off, or put it on the critic in prepare_critic"
                )
        for plugin in self.loaded:
            self.networks_of(plugin).to(device)

    def penalties(self, hook: str) -> list[Loaded]:
        """Return the plugins that answer `penalty`, or `generator_penalty`."""
        return [plugin for plugin, _ in self._callers[hook]]

    def terms(self, hook: str) -> list[str]:
        """Return the record keys of all penalties that answer a hook."""
        return [f"{hook}/{plugin.name}" for plugin in self.penalties(hook)]

    def answer_loss(self, hook: str, step: CriticStep | GeneratorStep) -> Tensor:
        """Return what the loss answers to `critic_loss` or `generator_loss`, unchecked."""
        plugin, function = self._callers[hook][0]
        loss: Tensor = self._ask(plugin, hook, function, step=step)
        return loss

    def due(self, hook: str, update: int) -> dict[str, float]:
        """Return the penalties whose scale is not 0 in this update, by name, with that scale."""
        scales = {plugin.name: self.scale(plugin, update, hook) for plugin in self.penalties(hook)}
        return {name: scale for name, scale in scales.items() if scale}

    def answer_penalties(
        self,
        hook: str,
        step: CriticStep | GeneratorStep,
        due: Mapping[str, float | Tensor] | None = None,
    ) -> Iterator[tuple[Loaded, float | Tensor, Tensor]]:
        """Yield plugin, scale and penalty, unscaled and unchecked, of each that is due.

        due: scales by name, where they are known already (`due`).
        """
        scales = self.due(hook, step.update) if due is None else due
        for plugin, function in self._callers[hook]:
            if plugin.name in scales:
                for value in self._ask(plugin, hook, function, step=step):
                    yield plugin, scales[plugin.name], value

    def scale(self, penalty: Loaded, update: int, hook: str = "penalty") -> float:
        """Return the product of all answers to `penalty_scale` for this penalty.

        hook: which of a plugin's penalties: "penalty", or "generator_penalty"

        Raises ContractError for an answer that is no finite number.
        """
        product = 1.0
        answers = self.call("penalty_scale", plugin=penalty.name, update=update, hook=hook)
        for plugin, answer in answers:
            if not (isinstance(answer, int | float) and math.isfinite(answer)):
                raise ContractError(
                    f"plugin {plugin}: penalty_scale answered {answer!r} at update {update}; "
                    "expected a finite float, or None"
                )
            product *= answer
        return product

    def tables(self) -> dict[str, Json]:
        """Return `loss` and `plugin` of a recipe table, with every option."""
        others = [plugin.table() for plugin in self.loaded if plugin is not self.loss]
        return {"loss": self.loss.table(), "plugin": others}

    def state_dict(self) -> dict[str, dict[str, Tensor | Json]]:
        """Return the state of each plugin that has any, by plugin name.

        It is what the plugin's own `state_dict` returns, or else the state of the networks that it
        keeps, once `setup` was called.
        """
        states = {}
        for plugin in self.loaded:
            if (keeper := self._keeper(plugin)) is not None:
                with guard.named(f"state_dict of plugin {plugin}"):
                    states[plugin.name] = dict(keeper.state_dict())
        return states

    def load_state_dict(self, states: Mapping[str, Mapping[str, Tensor | Json]]) -> None:
        """Give each plugin back what `state_dict` returned."""
        for plugin in self.loaded:
            keeper = self._keeper(plugin)
            if hasattr(keeper, "load_state_dict") and plugin.name in states:
                with guard.named(f"load_state_dict of plugin {plugin}"):
                    keeper.load_state_dict(dict(states[plugin.name]))

    def _keeper(self, plugin: Loaded) -> Any:
        """Return what has the state of a plugin: itself, or the networks that it keeps, or None."""
        if hasattr(plugin.instance, "state_dict"):
            return plugin.instance
        if not self._networks:
            return None
        kept = self.networks_of(plugin)
        return kept if kept.state_dict() else None

    def networks_of(self, plugin: Loaded) -> nn.Module:
        """Return the networks that a plugin keeps as one, but for the run's and parts of them."""
        from torch import nn

        theirs = {id(part) for network in self._networks for part in network.modules()}
        whole = nn.Module()
        for name, value in getattr(plugin.instance, "__dict__", {}).items():
            if isinstance(value, nn.Module) and id(value) not in theirs:
                whole._modules[name] = value
        return whole

    def _refuse_clashes(self) -> None:
        for one, other in combinations(self.loaded, 2):
            if one.name == other.name:
                raise PluginError(
                    f"two plugins are called {one.name!r}: {one} and {other}. "
                    'Rename one in the recipe: as = "another"'
                )
            if one.instance is other.instance:
                raise PluginError(
                    f"{one} and {other} are one and the same plugin: make an instance for each"
                )
        for one, other in permutations(self.loaded, 2):
            if other.method in getattr(one.instance, "conflicts", ()):
                raise PluginError(f"plugin {one} can't be combined with {other}: drop one")

    def _callers_of(self, hook: str) -> list[tuple[Loaded, Caller]]:
        """Return the plugins that answer a hook, each with what calls it alone, wrappers around."""
        implementations = getattr(self._manager.hook, hook).get_hookimpls()
        answering = [one.plugin for one in implementations if not (one.wrapper or one.hookwrapper)]
        return [
            (
                plugin,
                self._manager.subset_hook_caller(
                    hook, [other for other in answering if other is not plugin.instance]
                ),
            )
            for plugin in self.loaded
            if any(plugin.instance is other for other in answering)
        ]

    def _single(self, hook: str) -> Loaded:
        claimants = self.penalties(hook)
        if len(claimants) != 1:
            names = " and ".join(map(str, claimants)) or "nobody"
            raise PluginError(f"{hook} is answered by {names}: a run needs exactly one loss")
        return claimants[0]

    def _ask(self, plugin: Loaded, hook: str, function: Caller, /, **arguments: Any) -> Any:
        """Call a hook of a plugin: seeded, watched, and named in what goes wrong."""
        call, who = guard.Call(plugin, hook, arguments), f"{hook}/{plugin.name}"
        if hook == "penalty_scale":  # asked for each penalty, with its own numbers for each
            who = f"{who}/{arguments['plugin']}"
        self._seed(who, plugin, call)
        outer, self._running = self._running, (plugin.name, call)
        try:
            return self.guard.call(call, function)
        except ValueError as error:
            if hook in REFUSING:
                raise PluginError(f"plugin {plugin}: {error}") from error
            raise
        finally:
            self._running = outer

    def _part(self, plugin: Loaded, hook: str, function: Caller, part: int, /, **given: Any) -> Any:
        """Call a part of a wrapper, which draws apart from what it wraps."""
        inner, around = self._running or ("", guard.Call(plugin, hook, given))
        step = around.step
        asker = None if step is None else step._asker
        with self._randomness.aside() if self._randomness else nullcontext():
            self._seed(f"{hook}/{plugin.name}/{inner}/{part}", plugin, around)
            try:
                return self.guard.call(guard.Call(plugin, hook, given), function, settings=False)
            finally:
                if step is not None:
                    step._asker = asker

    def _seed(self, who: str, plugin: Loaded, call: guard.Call) -> None:
        """Let what is drawn next, in a hook, depend on nothing else that draws.

        With a step, which has its own part of the batch, each process has numbers of its own.
        """
        if call.step is not None:
            call.step._asked_by(who, plugin.name)
        if self._randomness is None or self._randomness.clock is not None:
            return
        counter = call.arguments.get("step") if call.update is None else call.update
        self._randomness.seed(who, counter or 0, alone=call.step is not None)

    def _watch_wrappers(self) -> None:
        """Let what a wrapper does around others' answers be told of itself, not of them."""
        for hook in HOOKS:
            for impl in getattr(self._manager.hook, hook).get_hookimpls():
                if impl.wrapper or impl.hookwrapper:
                    plugin = next(one for one in self.loaded if one.instance is impl.plugin)
                    call, who = partial(self._part, plugin, hook), f"plugin {plugin}: {hook}"
                    impl.function = partial(guard.Wrapper, who, impl.function, impl.argnames, call)
