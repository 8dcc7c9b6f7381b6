"""Plugins: the `@plugin` decorator, loading them by name, and calling their hooks."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, dataclass_transform

import pluggy

from gancore import entrypoints, hooks, options
from gancore.checks import guard, marks
from gancore.checks.leftovers import noted, refuse_leftovers
from gancore.entrypoints import Available
from gancore.errors import ContractError, PluginError
from gancore.text import did_you_mean, snake_case

if TYPE_CHECKING:
    from torch import Tensor, nn

    from gancore.isolation.randomness import Randomness
    from gancore.step import CriticStep, GeneratorStep

T = TypeVar("T")

HOOKS = marks.HOOKS
"""The names of all hooks."""

RESERVED = frozenset({"name", "as"})
"""Keys of a `[[plugin]]` table that are the core's own, never options."""


@dataclass_transform(kw_only_default=True, eq_default=False)
def plugin(cls: type[T]) -> type[T]:
    """Make a class a plugin: a keyword-only dataclass whose fields are its recipe options.

    State lives in `field(init=False)`, which recipes can't set. A class may name the plugins it
    can't be combined with: `conflicts: ClassVar[tuple[str, ...]] = ("sn",)`.

    Raises TypeError for what would silently do nothing: a default without an annotation, a
    method that would never act as a hook (`gancore.checks.marks.fault`); and for an option with a
    reserved name.
    """
    annotations = inspect.get_annotations(cls)
    if fault := marks.fault(cls):
        raise TypeError(fault)
    for name, value in vars(cls).items():
        is_value = not (callable(value) or hasattr(value, "__get__"))
        if is_value and not name.startswith("_") and name not in annotations:
            raise TypeError(
                f"{cls.__qualname__}.{name} has a default but no annotation, so it is no option: "
                f"write `{name}: {type(value).__name__} = {value!r}`"
            )
    for name in RESERVED & annotations.keys():
        raise TypeError(f"{cls.__qualname__}.{name}: a recipe reserves this key")
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


def plugin_class(found: Available) -> type:
    """Import a found plugin and return its class; raises PluginError when it is none."""
    cls: type = entrypoints.load(found)
    if not entrypoints.is_plugin(cls):
        raise PluginError(f"plugin {found}: {cls!r} is not a class decorated with @gancore.plugin")
    return cls


def acts_on_critic(name: str) -> bool:
    """Whether an installed plugin trains or changes the critic; one that can't be asked may."""
    try:
        cls = plugin_class(entrypoints.get("plugin", name))
    except PluginError:
        return True
    return any(hasattr(cls, hook) for hook in ("penalty", "prepare_critic", "post_step"))


def load(
    name: str, given: Mapping[str, Any] | None = None, *, alias: str | None = None, where: str = ""
) -> Loaded:
    """Find the plugin `name`, import it, validate its options and build it.

    Raises PluginError for whatever stands in the way; `where` begins the lines about options.
    """
    found = entrypoints.get("plugin", name)
    cls = plugin_class(found)
    return Loaded(alias or name, build(cls, given or {}, where or name), found)


def build(target: Callable[..., T], given: Mapping[str, Any], where: str, *args: Any) -> T:
    """Validate the options of any component and call it with `args` and them.

    A ValueError of its own (a size it can't be built for, say) becomes a PluginError.
    """
    validated = options.validate(target, given, where)
    try:
        with guard.named(f"the construction of {getattr(target, '__qualname__', target)}, {where}"):
            return target(*args, **validated)
    except ValueError as error:
        raise PluginError(f"{where}: {error}") from error


def wrap(instance: object, name: str | None = None) -> Loaded:
    """Return an instance made in Python as Loaded, under its entry point's name if it has one."""
    if isinstance(instance, Loaded):
        return instance
    cls = type(instance)
    source = next((found for found in entrypoints.find("plugin") if _names(found, cls)), None)
    named = source.name if source else snake_case(cls.__name__)
    return Loaded(name or named, instance, source)


def _names(found: Available, cls: type) -> bool:
    """Whether an entry point names this class, wherever that is defined; imports nothing."""
    module = sys.modules.get(found.point.module)
    return module is not None and getattr(module, found.point.attr, None) is cls


Caller = Callable[..., Any]


class Plugins:
    """The plugins of a run, registered in recipe order, and their hooks.

    Each is called by itself, so that a failure names its plugin; wrappers of other plugins still
    wrap it. Raises PluginError for names used twice, hooks that are unknown or would never act,
    plugins without any, conflicts, and unless exactly one plugin brings the losses.

    randomness  what seeds each hook of each plugin apart from all others; None leaves that
    guard       sees what hooks leave changed, of networks that it is told to `watch` too
    """

    def __init__(self, loaded: Sequence[Loaded], randomness: Randomness | None = None) -> None:
        self.loaded = tuple(loaded)
        self.guard = guard.Guard()
        self._randomness = randomness
        self._running: tuple[str, Mapping[str, Any]] = ("", {})
        """The plugin whose hook is called now, and with what."""
        self._manager = pluggy.PluginManager(hooks.PROJECT)
        self._manager.add_hookspecs(hooks)
        self._refuse_clashes()
        self._refuse_idle()
        for each in reversed(self.loaded):  # pluggy calls the last registered first
            try:
                self._manager.register(each.instance, name=each.name)
            except pluggy.PluginValidationError as error:
                raise PluginError(f"plugin {each}: {' '.join(str(error).split())}") from error
        self._refuse_unknown_hooks()
        self._watch_wrappers()
        self._callers = {hook: self._callers_of(hook) for hook in HOOKS}
        self.loss = self._single("critic_loss")
        self._single("generator_loss")
        self.proven: set[tuple[str, str]] = set()
        """Penalties, by name and hook, whose first answer was seen to depend on parameters."""
        self._configure()

    def prepare_critic(self, critic: nn.Module) -> None:
        """Call the hook `prepare_critic` of every plugin; its ValueError is a PluginError.

        Raises PluginError, too, for a critic with modules or hooks of a plugin that is not here.
        """
        refuse_leftovers(critic, {type(each.instance) for each in self.loaded})
        for each, call in self._callers["prepare_critic"]:
            dtypes = {parameter.dtype for parameter in critic.parameters()}
            try:
                with noted(critic, type(each.instance), str(each)):
                    self._guard(each, "prepare_critic", call, critic=critic)
            except ValueError as error:
                raise PluginError(f"plugin {each}: {error}") from error
            for other in {parameter.dtype for parameter in critic.parameters()} - dtypes:
                raise ContractError(f"plugin {each}: prepare_critic made the critic {other}")

    def penalties(self, hook: str) -> list[Loaded]:
        """Return the plugins that answer `penalty`, or `generator_penalty`."""
        return [each for each, _ in self._callers[hook]]

    def terms(self, hook: str) -> list[str]:
        """Return the record keys of all penalties that answer a hook."""
        return [f"{hook}/{each.name}" for each in self.penalties(hook)]

    def answer_loss(self, hook: str, step: CriticStep | GeneratorStep) -> Tensor:
        """Return what the loss answers to `critic_loss` or `generator_loss`, unchecked."""
        each, call = self._callers[hook][0]
        loss: Tensor = self._guard(each, hook, call, step=step)
        return loss

    def due(self, hook: str, update: int) -> dict[str, float]:
        """Return the penalties whose scale is not 0 in this update, by name, with that scale."""
        scales = {each.name: self.scale(each, update, hook) for each, _ in self._callers[hook]}
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
        for each, call in self._callers[hook]:
            if each.name in scales:
                for value in self._guard(each, hook, call, step=step):
                    yield each, scales[each.name], value

    def scale(self, penalty: Loaded, update: int, hook: str = "penalty") -> float:
        """Return the product of all answers to `penalty_scale` for this penalty.

        hook: which of a plugin's penalties: "penalty", or "generator_penalty"

        Raises ContractError for an answer that is no finite number.
        """
        product = 1.0
        for each, call in self._callers["penalty_scale"]:
            for answer in self._guard(
                each, "penalty_scale", call, plugin=penalty.name, update=update, hook=hook
            ):
                if not (isinstance(answer, int | float) and math.isfinite(answer)):
                    raise ContractError(
                        f"plugin {each}: penalty_scale answered {answer!r} at update {update}; "
                        "expected a finite float, or None"
                    )
                product *= answer
        return product

    def post_step(self, critic: nn.Module, update: int) -> None:
        """Call the hook `post_step` of every plugin."""
        for each, call in self._callers["post_step"]:
            self._guard(each, "post_step", call, critic=critic, update=update)

    def start(self, folder: Path, step: int) -> None:
        """Call the hook `start` of every plugin."""
        for each, call in self._callers["start"]:
            self._guard(each, "start", call, folder=folder, step=step)

    def sample(self, samples: Tensor, step: int) -> None:
        """Call the hook `sample` of every plugin."""
        for each, call in self._callers["sample"]:
            self._guard(each, "sample", call, samples=samples.contiguous(), step=step)

    def log(self, record: Mapping[str, Any]) -> None:
        """Call the hook `log` of every plugin."""
        for each, call in self._callers["log"]:
            self._guard(each, "log", call, record=record)

    def tables(self) -> dict[str, Any]:
        """Return `loss` and `plugin` of a recipe table, with every option."""
        return {
            "loss": {"name": self.loss.method, **self.loss.options},
            "plugin": [
                {
                    "name": each.method,
                    **({"as": each.name} if each.name != each.method else {}),
                    **each.options,
                }
                for each in self.loaded
                if each is not self.loss
            ],
        }

    def state_dict(self) -> dict[str, dict[str, Any]]:
        """Return the state of each plugin that has any, by plugin name."""
        state = {}
        for each in self.loaded:
            if hasattr(each.instance, "state_dict"):
                with guard.named(f"state_dict of plugin {each}"):
                    state[each.name] = dict(each.instance.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        """Give each plugin back what `state_dict` returned."""
        for each in self.loaded:
            if hasattr(each.instance, "load_state_dict") and each.name in state:
                with guard.named(f"load_state_dict of plugin {each}"):
                    each.instance.load_state_dict(dict(state[each.name]))

    def _refuse_clashes(self) -> None:
        seen: dict[str, Loaded] = {}
        for each in self.loaded:
            if each.name in seen:
                raise PluginError(
                    f"two plugins are called {each.name!r}: {seen[each.name]} and {each}. "
                    'Rename one in the recipe: as = "another"'
                )
            for other in seen.values():
                if other.instance is each.instance:
                    raise PluginError(
                        f"{other} and {each} are one and the same plugin: make an instance for each"
                    )
            seen[each.name] = each
        for each in self.loaded:
            for other in self.loaded:
                if other.method in getattr(each.instance, "conflicts", ()):
                    raise PluginError(f"plugin {each} can't be combined with {other}: drop one")

    def _refuse_idle(self) -> None:
        for each in self.loaded:
            if isinstance(each.instance, type):
                raise PluginError(f"plugin {each} is a class: give an instance, made by calling it")
            if fault := marks.fault(each.instance):
                raise PluginError(f"plugin {each}: {fault}")
            if not marks.implementations(each.instance):
                raise PluginError(f"plugin {each} has no hook: mark its methods with @hookimpl")

    def _refuse_unknown_hooks(self) -> None:
        for hook, caller in vars(self._manager.hook).items():
            if caller.has_spec():
                continue
            for impl in caller.get_hookimpls():
                if not impl.optionalhook:
                    each = next(each for each in self.loaded if each.instance is impl.plugin)
                    hint = did_you_mean(hook, HOOKS)
                    raise PluginError(f"plugin {each}: there is no hook {hook!r}.{hint}")

    def _callers_of(self, hook: str) -> list[tuple[Loaded, Caller]]:
        caller = getattr(self._manager.hook, hook)
        answering = [
            impl.plugin for impl in caller.get_hookimpls() if not (impl.wrapper or impl.hookwrapper)
        ]
        return [
            (
                each,
                self._manager.subset_hook_caller(
                    hook, [other for other in answering if other is not each.instance]
                ),
            )
            for each in self.loaded
            if any(each.instance is other for other in answering)
        ]

    def _single(self, hook: str) -> Loaded:
        claimants = [each for each, _ in self._callers[hook]]
        if len(claimants) != 1:
            names = " and ".join(map(str, claimants)) or "nobody"
            raise PluginError(f"{hook} is answered by {names}: a run needs exactly one loss")
        return claimants[0]

    def _configure(self) -> None:
        everyone = {each.name: each.instance for each in self.loaded}
        for each, call in self._callers["configure"]:
            try:
                self._guard(each, "configure", call, plugins=everyone)
            except ValueError as error:
                raise PluginError(f"plugin {each}: {error}") from error

    def _guard(self, each: Loaded, hook: str, call: Caller, /, **arguments: Any) -> Any:
        """Call a hook of a plugin: seeded, watched, and named in what goes wrong."""
        who = f"{hook}/{each.name}"
        if hook == "penalty_scale":  # asked for each penalty, with its own numbers for each
            who = f"{who}/{arguments['plugin']}"
        self._seed(who, arguments)
        outer, self._running = self._running, (each.name, arguments)
        try:
            return self._watched(each, hook, call, arguments)
        finally:
            self._running = outer

    def _part(self, each: Loaded, hook: str, call: Caller, part: int, /, **arguments: Any) -> Any:
        """Call a part of a wrapper, which draws apart from what it wraps."""
        inner, given = self._running
        step: Any = given.get("step")
        asker = getattr(step, "_asker", None)
        with self._randomness.aside() if self._randomness else nullcontext():
            self._seed(f"{hook}/{each.name}/{inner}/{part}", given)
            try:
                return self._watched(each, hook, call, arguments, settings=False)
            finally:
                if asker is not None:
                    step._asker = asker

    def _seed(self, who: str, arguments: Mapping[str, Any]) -> None:
        """Let what is drawn next, in a hook, depend on nothing else that draws.

        With a step, which has its own part of the batch, each process has numbers of its own.
        """
        step: Any = arguments.get("step")
        alone = hasattr(step, "_asked_by")  # the step of `start` and `sample` is a number
        if alone:
            step._asked_by(who)
        if self._randomness is None or self._randomness.clock is not None:
            return
        update = step.update if alone else arguments.get("update", step)
        self._randomness.seed(who, update or 0, alone=alone)

    def _watched(
        self,
        each: Loaded,
        hook: str,
        call: Caller,
        arguments: Mapping[str, Any],
        *,
        settings: bool = True,
    ) -> Any:
        import torch

        try:
            if torch.compiler.is_compiling():
                return call(**arguments)
            with self.guard(f"plugin {each}", hook, arguments, settings=settings):
                return call(**arguments)
        except BaseException as error:
            update = arguments.get("update", getattr(arguments.get("step"), "update", None))
            when = "" if update is None else f", update {update}"
            guard.name(error, f"hook {hook} of plugin {each}{when}")
            raise

    def _watch_wrappers(self) -> None:
        """Let what a wrapper does around others' answers be told of itself, not of them."""
        for hook in HOOKS:
            for impl in getattr(self._manager.hook, hook).get_hookimpls():
                if impl.wrapper or impl.hookwrapper:
                    each = next(each for each in self.loaded if each.instance is impl.plugin)
                    call = partial(self._part, each, hook)
                    who = f"plugin {each}: {hook}"
                    watched = partial(guard.Wrapper, who, impl.function, impl.argnames, call)
                    impl.function = watched
