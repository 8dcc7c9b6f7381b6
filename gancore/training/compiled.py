"""Compiled updates: graphs of what differentiates an objective, each checked when it is made."""

from __future__ import annotations

import inspect
import itertools
import math
import time
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from gancore.errors import RecipeError
from gancore.isolation.buffers import buffers_kept
from gancore.isolation.copies import copied
from gancore.isolation.randomness import Randomness, kept
from gancore.plugins import Plugins
from gancore.recipe import Train
from gancore.training.objective import NOTE, Gradients, Scales
from gancore.training.plan import Side

TRACES = torch.__version__ >= "2.13"  # a TorchVersion, which compares as versions do
"""Whether input gradients can be part of a graph; torch 2.12 fails in most."""

TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
"""How far a graph's gradients may be from eager ones, in units of their norm, by precision."""

NUMBERS = itertools.count()


def check_compiles(train: Train) -> None:
    """Raise RecipeError for `train.compile` where torch is too old for it."""
    if train.compile and not TRACES:
        raise RecipeError(
            f"train.compile needs torch 2.13 or later, and this is {torch.__version__}: install "
            "one, or leave train.compile out"
        )


class CompileWarning(UserWarning):
    """An update goes on without being compiled."""


class _NotCompiledError(Exception):
    """A graph does something else than what it was made of."""


class Compiled:
    """A function that differentiates a network's objective, compiled: plugins and all.

    There is one graph for each set of penalties that are due together. It is checked when it is
    made: its gradients and terms against those of the function. If they differ, or something can't
    be compiled, a CompileWarning says what, and all goes on with the function.

    side        the network that is trained
    function    from scales, tensors and `update=` to gradients
    networks    all that have a part in it, by side
    randomness  of the run: a graph can't hold a seeding, so it is seeded once before each update
    tolerance   how far gradients may be from the function's, in units of their norm
    """

    def __init__(
        self,
        side: Side,
        function: Callable[..., Gradients],
        plugins: Plugins,
        networks: Mapping[Side, nn.Module],
        randomness: Randomness,
        *,
        tolerance: float,
    ) -> None:
        self.tell: Callable[[str], None] = lambda text: None
        self._side, self._function, self._plugins = side, function, plugins
        self._networks, self._randomness, self._tolerance = networks, randomness, tolerance
        parameter = next(one for one in networks[side].parameters() if one.requires_grad)
        self._dtype, self._device = parameter.dtype, parameter.device
        self._clock = torch.zeros((), dtype=torch.int64, device=self._device)
        self._update = 0
        self._is_on = True
        self._graphs: dict[tuple[str, ...], Callable[..., Gradients]] = {}
        self._factors: dict[str, tuple[float, Tensor]] = {}

    def __call__(self, due: Mapping[str, float], *tensors: Tensor, update: int) -> Gradients:
        """Return the function's answer. due: the scales of the penalties that are due, by name."""
        self._update = update
        if self._is_on:
            try:
                with self._seeded_once():
                    return self._by_graph(due, *tensors)
            except _NotCompiledError as error:
                why = str(error)
            except TorchDynamoException as error:  # where a plugin asks for another graph later on
                why = self._why(tuple(due), error)
            self._is_on = False
            warnings.warn(f"{why}; going on without compiling", CompileWarning, stacklevel=2)
        return self._eager(due, *tensors)

    def _by_graph(self, due: Mapping[str, float], *tensors: Tensor) -> Gradients:
        names = tuple(due)
        arguments = ({name: self._factor(name, scale) for name, scale in due.items()}, *tensors)
        if names not in self._graphs:
            self._graphs[names] = self._compile(names, *arguments)
        return self._run(self._graphs[names], *arguments)

    def _eager(self, due: Scales, *tensors: Tensor) -> Gradients:
        """Call the function; in a graph with what tells the update, or each would need its own."""
        update = self._current if torch.compiler.is_compiling() else self._update
        return self._function(due, *tensors, update=update)

    def _current(self) -> int:
        return self._update

    @contextmanager
    def _seeded_once(self) -> Iterator[None]:
        self._randomness.seed(f"{self._side}/compiled", self._update, alone=True)
        self._randomness.clock = self._clock.fill_(self._update)
        try:
            yield
        finally:
            self._randomness.clock = None

    def _compile(self, names: tuple[str, ...], *arguments: Any) -> Callable[..., Gradients]:
        """Make the graph for these penalties, and check it. Raises what `__call__` catches."""
        with self._undone():
            expected = self._eager(*arguments)
        what = self._what(names)
        self.tell(f"compiling {what}")
        began = time.perf_counter()
        options: dict[str, str | int | bool | Callable[..., Any]] = {
            "fallback_random": True,  # numbers are those of eager mode
            **({"triton.cudagraphs": True} if self._device.type == "cuda" else {}),
        }
        graph = torch.compile(self._own_eager(), fullgraph=True, options=options)
        with self._undone():
            away = _distance(self._run(graph, *arguments), expected)
        if not away <= self._tolerance:
            wrong = f"has gradients {away:.2g} of their norm away from the right ones"
            raise _NotCompiledError(f"{what}, compiled, {wrong}")
        self.tell(f"compiled in {time.perf_counter() - began:.0f} s")
        return graph

    def _run(self, graph: Callable[..., Gradients], *arguments: Any) -> Gradients:
        if self._device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        # without it input gradients are no part of a graph
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            return graph(*arguments)

    def _own_eager(self) -> Callable[..., Gradients]:
        """Return `_eager` with code of its own: by its code alone torch keeps what it saw vary.

        Sizes and options that another run had otherwise would be variables here. Neither closures
        nor `isolate_recompiles` and `mark_static` keep options apart; resets undo others' graphs.
        """
        code = Compiled._eager.__code__.replace(co_name=f"_eager_{next(NUMBERS)}")
        function = types.FunctionType(code, Compiled._eager.__globals__)
        own: Callable[..., Gradients] = types.MethodType(function, self)
        return own

    def _factor(self, name: str, scale: float) -> Tensor:
        """Return a penalty's scale as a tensor: one that changes makes no new graph."""
        last, factor = self._factors.get(name, (None, None))
        if factor is None or scale != last:
            factor = torch.tensor(scale, dtype=self._dtype, device=self._device)
            self._factors[name] = (scale, factor)
        return factor

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Make an update leave no trace: in plugins, buffers and random numbers."""
        state = copied(self._plugins.state_dict(), "state of the plugins")
        with kept(), buffers_kept(self._networks.values()):
            try:
                yield
            finally:
                self._plugins.load_state_dict(state)

    def _what(self, names: tuple[str, ...]) -> str:
        return f"the {self._side}'s update" + (f" with {', '.join(names)}" if names else "")

    def _why(self, names: tuple[str, ...], error: TorchDynamoException) -> str:
        """Return what can't be compiled, in one line, and whose it is."""
        intro = f"{self._what(names)} can't be compiled: "
        what = str(error).strip().splitlines()[0]
        stack = list(getattr(error, "real_stack", None) or [])
        files = {
            inspect.getsourcefile(type(plugin.instance)): plugin for plugin in self._plugins.loaded
        }
        for frame in reversed(stack):
            if frame.filename in files:
                return f"{intro}plugin {files[frame.filename]}, line {frame.lineno}: {what}"
        where = f"{stack[-1].filename}, line {stack[-1].lineno}: " if stack else ""
        return intro + where + what


def _distance(answer: Gradients, expected: Gradients) -> float:
    """Return how far gradients, terms or notes are from those expected, relative to their norm."""
    pairs = list(zip(answer.gradients, expected.gradients, strict=True))
    if answer.names != expected.names or any(
        (one is None) != (other is None) for one, other in pairs
    ):
        return math.inf
    there = [(one, other) for one, other in pairs if one is not None and other is not None]
    total = nn.utils.get_total_norm([other for _, other in there])
    apart = nn.utils.get_total_norm([one - other for one, other in there])
    values = (answer.values, expected.values)
    number = sum(not name.startswith(NOTE) for name in expected.names)
    away = [float(apart / total)]
    for part in (slice(number), slice(number, None)):
        one, other = (both[part].nan_to_num(0.0, 1.0, -1.0) for both in values)
        if gap := float((one - other).norm()):
            away.append(gap / float(other.norm() or 1.0))
    return max(away)
