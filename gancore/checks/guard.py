"""The guard: an error names the plugin that changes what it shares with others.

Tensors are compared by the counter that torch raises at each change in place. Writes through
`.data` or NumPy do not raise it. Nothing is compared in a compiled update, whose graph can't hold
that.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import chain
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from gancore.checks.settings import kept
from gancore.errors import ContractError

if TYPE_CHECKING:
    from torch import Tensor, nn

NOTE = "raised in "


def name(error: BaseException, what: str) -> None:
    """Add a note of where an error was raised, unless it has one.

    Raises ContractError instead of SystemExit, with which a process would end and say nothing.
    """
    if isinstance(error, SystemExit):
        raise ContractError(
            f"{what} raised SystemExit({error.code!r}), which would end the run and say nothing: "
            "raise an exception that says why"
        ) from error
    if not any(note.startswith(NOTE) for note in getattr(error, "__notes__", ())):
        error.add_note(f"{NOTE}{what}")


@contextmanager
def named(what: str) -> Iterator[None]:
    """Name what is raised inside (`name`), and keep global settings (`kept`)."""
    try:
        with kept(what):
            yield
    except BaseException as error:
        name(error, what)
        raise


class Call(NamedTuple):
    """A call of a hook: the plugin, by what names it in messages, and the arguments by name."""

    plugin: object
    hook: str
    arguments: dict[str, Any]

    @property
    def step(self) -> Any:
        """The step of an update, if the hook has one; that of `start` and `sample` is a number."""
        step = self.arguments.get("step")
        return step if hasattr(step, "averaged") else None

    @property
    def update(self) -> int | None:
        """Which update this is, if that is known."""
        update: int | None = self.arguments.get("update", getattr(self.step, "update", None))
        return update


class Guard:
    """Compares a hook's arguments, and the networks of a run, before and after its call.

    `post_step` may change the values of the critic's parameters. Nothing else may change.
    """

    def __init__(self) -> None:
        self._networks: dict[str, _Network] = {}

    def watch(self, **networks: nn.Module) -> None:
        """Compare these networks from now on, given by what they are called."""
        self._networks = {role: _Network(role, module) for role, module in networks.items()}

    @contextmanager
    def watching(self, generator: nn.Module, critic: nn.Module) -> Iterator[None]:
        """Compare these networks too, for so long."""
        before = self._networks
        self.watch(generator=generator, critic=critic)
        try:
            yield
        finally:
            self._networks = before

    def call(self, call: Call, function: Callable[..., Any], *, settings: bool = True) -> Any:
        """Return what a function answers to a hook's call. An error in it names the plugin.

        Raises ContractError as `compared`. Nothing is compared while an update is compiled.
        """
        import torch

        try:
            if torch.compiler.is_compiling():
                return function(**call.arguments)
            with self.compared(call, settings=settings):
                return function(**call.arguments)
        except BaseException as error:
            when = "" if call.update is None else f", update {call.update}"
            name(error, f"hook {call.hook} of plugin {call.plugin}{when}")
            raise

    @contextmanager
    def compared(self, call: Call, *, settings: bool = True) -> Iterator[None]:
        """Raise ContractError, which names plugin and hook, for what is changed inside.

        Settings, modes and requires_grad are put back. A part of a wrapper may leave `settings`
        for the next, as in a `with` block around its yield.
        """
        who = f"plugin {call.plugin}"
        shared = _shared(call)
        looks = [
            (network, free, network.look(free))
            for role, network in self._networks.items()
            for free in [(call.hook, role) == ("post_step", "critic")]
        ]
        with kept(f"{who}: {call.hook}") if settings else nullcontext():
            yield
        change = _changed(shared, _shared(call)) or _handed(call.step)
        for network, free, before in looks:
            if (after := network.look(free)) != before:
                done = network.undo(before, after, call.step, f"{call.hook} of {who}")
                change = change or done
        if change:
            remedy = "work on a copy" if change.endswith("in place") else "put it back"
            raise ContractError(
                f"{who}: {call.hook} changed {change}, which others use after it: {remedy}"
            )


class Wrapper(Generator[Any, Any, Any]):
    """What a wrapper's function answers, with each of its parts called by `call`.

    who   its plugin and hook
    call  of a function without arguments, which part it is, and the hook's arguments by name
    """

    def __init__(
        self,
        who: str,
        function: Callable[..., Any],
        names: Sequence[str],
        call: Callable[..., Any],
        *given: Any,
    ) -> None:
        self._call = partial(call, **dict(zip(names, given, strict=True)))
        self._inner = function(*given)
        self._parts = 0
        self._settings = kept(who)
        self._settings.__enter__()  # left by its last part

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def send(self, value: Any) -> Any:
        """Go on to its yield, or its end."""
        return self._part(partial(self._inner.send, value))

    def throw(self, error: Any, *rest: Any) -> Any:
        """Go on with the error of what it wraps, which stays that one's if it comes out again."""
        return self._part(partial(self._inner.throw, error, *rest), error)

    def _part(self, part: Callable[[], Any], thrown: object = None) -> Any:
        passing: list[BaseException] = []

        def until_it_stops(**arguments: Any) -> Any:
            try:
                return part()
            except BaseException as error:
                if error is not thrown and not isinstance(error, StopIteration):
                    raise
                passing.append(error)

        self._parts += 1
        try:
            answer = self._call(until_it_stops, self._parts)
        except BaseException as failure:
            self._settings.__exit__(type(failure), failure, failure.__traceback__)
            raise
        if passing:
            self._settings.__exit__(None, None, None)
        for error in passing:
            raise error
        return answer


class Look(NamedTuple):
    """What may not change of a network: which parameters and parts it has, modes, and marks."""

    members: list[int]
    modes: list[bool]
    marks: list[tuple[Any, ...]]


class _Network:
    """A network of the run, and what is compared of it."""

    VALUES = attrgetter("requires_grad", "dtype", "_version")
    FREE = attrgetter("requires_grad", "dtype", "shape")
    MODE = attrgetter("training")

    def __init__(self, role: str, module: nn.Module) -> None:
        self._role = role
        self._module = module
        self._parts = list(module.modules())
        self._tables = [
            table.values() for part in self._parts for table in (part._parameters, part._modules)
        ]
        named = [
            (f"{role}.{prefix}.{name}".replace("..", "."), parameter)
            for prefix, part in module.named_modules()
            for name, parameter in part._parameters.items()
            if parameter is not None
        ]
        self._names = [name for name, _ in named]
        self._called = {name.partition(".")[2] for name in self._names}
        self._parameters = [parameter for _, parameter in named]
        self._own: set[int] = set()
        """Numbers of the parameters that its own forward pass changes."""

    def look(self, free: bool) -> Look:
        """Return how it is; without the values of parameters if they are `free` to change."""
        return Look(
            [*map(id, chain.from_iterable(self._tables))],
            [*map(self.MODE, self._parts)],
            [*map(self.FREE if free else self.VALUES, self._parameters)],
        )

    def undo(self, before: Look, after: Look, step: object, where: str) -> str:
        """Return what was changed; put modes and flags back. Empty where it changes itself.

        Raises ContractError for a parameter that is new: the network's forward pass may have made
        it, or who was asked.
        """
        own_modes = before.modes != after.modes and self._moves_modes(before, after, step)
        for part, mode in zip(self._parts, before.modes, strict=True):
            part.training = part.training if own_modes else mode
        for parameter, (required, *_) in zip(self._parameters, before.marks, strict=True):
            if parameter.requires_grad != required:
                parameter.requires_grad_(required)
        if before.members != after.members:
            known = {*map(id, self._parameters)}
            for name, parameter in self._module.named_parameters():
                if step and id(parameter) not in known and name not in self._called:
                    raise ContractError(
                        f"the {self._role}'s {name} was made after the Trainer had got it, in "
                        f"{where}, so it would not be trained. Make it in the network's __init__, "
                        "or pass the network a batch of data before the Trainer gets it; a plugin "
                        "makes it in prepare_critic"
                    )
            if self._has_lost() or not step:
                return f"the parameters or parts of the {self._role} for others"
        for number, name in enumerate(self._names):
            old, new = before.marks[number], after.marks[number]
            if old[:2] != new[:2]:
                return f"{'requires_grad' if old[0] != new[0] else 'the dtype'} of {name}"
            if old != new and not self._is_own(number, step):
                return f"{name} in place" if isinstance(new[2], int) else f"the shape of {name}"
        if own_modes or before.modes == after.modes:
            return ""
        return f"train or eval mode of the {self._role}"

    def _has_lost(self) -> bool:
        """Whether a parameter or part that it had is another now, or gone."""
        there = {id(value) for part in self._module.modules() for value in vars(part).values()}
        there |= {id(part) for part in self._module.modules()}
        there |= {id(parameter) for parameter in self._module.parameters()}
        return any(id(known) not in there for known in (*self._parts, *self._parameters))

    def _moves_modes(self, before: Look, after: Look, step: object) -> bool:
        """Whether its own forward pass changes modes of its parts, as some freeze one."""
        parts: list[nn.Module] = []

        def begin(twin: nn.Module) -> None:
            parts.extend(twin.modules())
            for part, mode in zip(parts, before.modes, strict=True):
                part.training = mode

        self._pass_of_twin(step, begin)
        return [part.training for part in parts] == after.modes

    def _pass_of_twin(self, step: object, begin: Callable[[nn.Module], None]) -> None:
        """Let a copy make a forward pass on the step's samples; what goes wrong says nothing."""
        import torch

        from gancore.isolation.copies import copied

        x = getattr(step, "real" if self._role == "critic" else "latents", None)
        if x is not None:
            with suppress(Exception), torch.no_grad(), torch.random.fork_rng(_devices(x)):
                twin = copied(self._module, self._role)
                begin(twin)
                twin(x.detach().clone())

    def _is_own(self, number: int, step: object) -> bool:
        """Whether its own forward pass changes a parameter, as some normalize their weights."""
        if number not in self._own:
            looks: list[tuple[_Network, Look]] = []

            def begin(twin: nn.Module) -> None:
                network = _Network(self._role, twin)
                looks.append((network, network.look(free=False)))

            self._pass_of_twin(step, begin)
            for network, before in looks:
                after = network.look(free=False).marks
                self._own |= {i for i, mark in enumerate(before.marks) if mark != after[i]}
        return number in self._own


def _shared(call: Call) -> dict[str, tuple[Any, ...]]:
    """Return marks of a hook's arguments, and of the attributes of a step, by name."""
    import torch

    named = dict(call.arguments)
    if call.step is not None:
        named |= {f"step.{key}": value for key, value in vars(call.step).items() if key[0] != "_"}
    return {
        key: (id(value), value.requires_grad, 0 if value.is_inference() else value._version)
        if isinstance(value, torch.Tensor)
        else (id(value), dict(value) if isinstance(value, Mapping) else None)
        for key, value in named.items()
    }


def _changed(before: Mapping[str, tuple[Any, ...]], after: Mapping[str, tuple[Any, ...]]) -> str:
    for what, old in before.items():
        new = after.get(what)
        if new is None or new[0] != old[0]:
            return f"{what} for another"
        if new != old:
            is_flag = len(old) == 3 and new[1] != old[1]
            return f"requires_grad of {what}" if is_flag else f"{what} in place"
    return ""


def _handed(step: object) -> str:
    """Return which answer of the step, that all share, was changed in place."""
    for what, tensor, version in getattr(step, "_handed", ()):
        if tensor._version != version:
            return f"{what} in place"
    return ""


def _devices(x: Tensor) -> list[Any]:
    return [x.device] if x.device.type == "cuda" else []
