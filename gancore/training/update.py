"""One network's update up to its optimizer step: from samples to gradients, eager or compiled."""

from __future__ import annotations

import inspect
import itertools
import math
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.exc import TorchDynamoException

from gancore.distributed.ranks import Ranks
from gancore.errors import RecipeError
from gancore.isolation.buffers import buffers_kept
from gancore.isolation.copies import copied
from gancore.isolation.randomness import Randomness, kept
from gancore.plugins import Plugins
from gancore.recipe import Train
from gancore.step import CriticStep, GeneratorStep
from gancore.training.idle import warn_bounded
from gancore.training.objective import (
    HOOKS,
    Gradients,
    Scales,
    averaged,
    differentiate,
    possible_terms,
)

TRACES = torch.__version__ >= "2.13"  # a TorchVersion, which compares as versions do
"""Whether input gradients can be part of a graph; torch 2.12 fails in most."""


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


class Update:
    """The critic's or the generator's update, up to its optimizer step.

    side        "critic" or "generator"
    step        from tensors and `update=` to what the plugins see; it is compiled too
    trained     the network whose gradients are wanted
    networks    all that have a part in it
    autocast    makes the context of the loss
    ranks       the processes among which gradients and terms are averaged
    randomness  of the run: a compiled update, which can't hold a seeding, is seeded once by it
    tolerance   how far a graph's gradients may be from eager ones, in units of their norm
    compiled    compile all this, plugins included, to one graph for each set of penalties that
                are due together

    A graph is checked when it is made: its gradients against those of the same update without it.
    If they differ, or something can't be compiled, a CompileWarning says what, and all goes on
    without.
    """

    def __init__(
        self,
        side: str,
        plugins: Plugins,
        step: Callable[..., CriticStep | GeneratorStep],
        trained: Sequence[nn.Parameter],
        networks: Sequence[nn.Module],
        *,
        autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
        ranks: Ranks | None = None,
        randomness: Randomness | None = None,
        tolerance: float = 1e-3,
        compiled: bool = False,
    ) -> None:
        self.side = side
        self.plugins = plugins
        self.trained = list(trained)
        self.device = self.trained[0].device
        self.compiled = compiled
        self.tell: Callable[[str], None] = lambda text: None
        self._step = step
        self._update = 0
        self._seen = False
        self.were_due: set[str] = set()
        """The penalties, by record key, that this process has called."""
        self._autocast = autocast
        self._ranks = ranks or Ranks()
        self._randomness = randomness or Randomness(0, self.device)
        self._clock = torch.zeros((), dtype=torch.int64, device=self.device)
        self._terms = possible_terms(plugins, side)
        self._tolerance = tolerance
        self._networks = list(networks)
        self._graphs: dict[tuple[str, ...], Callable[..., Gradients]] = {}
        self._factors: dict[str, tuple[float, Tensor]] = {}

    def __call__(self, update: int, *tensors: Tensor) -> Gradients:
        """Return terms and gradients of the batch, of which `tensors` are this process's part."""
        return averaged(self._here(update, *tensors), self.trained, self._ranks, self._terms)

    def _here(self, update: int, *tensors: Tensor) -> Gradients:
        self._update = update
        hook = HOOKS[self.side][1]
        due = self.plugins.due(hook, update)
        self.were_due.update(f"{hook}/{name}" for name in due)
        if not self.compiled:
            return self._eager(due, *tensors)
        names = tuple(due)
        factors = {name: self._factor(name, scale) for name, scale in due.items()}
        arguments = (factors, *tensors)
        try:
            with self._seeded_once(update):
                if names not in self._graphs:
                    self._graphs[names] = self._compile(names, *arguments)
                return self._run(self._graphs[names], *arguments)
        except _NotCompiledError as error:
            why = str(error)
        except TorchDynamoException as error:  # where a plugin asks for another graph later on
            why = self._why(names, error)
        self.compiled = False
        warnings.warn(f"{why}; going on without compiling", CompileWarning, stacklevel=2)
        return self._eager(due, *tensors)

    @contextmanager
    def _seeded_once(self, update: int) -> Iterator[None]:
        self._randomness.seed(f"{self.side}/compiled", update, alone=True)
        self._randomness.clock = self._clock.fill_(update)
        try:
            yield
        finally:
            self._randomness.clock = None

    def _current(self) -> int:
        return self._update

    def _eager(self, due: Scales, *tensors: Tensor) -> Gradients:
        update = self._current if torch.compiler.is_compiling() else self._update
        step = self._step(*tensors, update=update)
        found = differentiate(self.plugins, step, self.trained, self._autocast(), due)
        if isinstance(step, CriticStep) and not (self._seen or torch.compiler.is_compiling()):
            self._seen = True
            for scores in step._known_scores[:1]:  # a pass of its own would move a critic's state
                warn_bounded(self.plugins, scores)
        return found

    def _compile(self, names: tuple[str, ...], *arguments: Any) -> Callable[..., Gradients]:
        """Make the graph for these penalties, and check it. Raises what is caught above."""
        with self._undone():
            expected = self._eager(*arguments)
        what = self._what(names)
        self.tell(f"compiling {what}")
        began = time.perf_counter()
        options: dict[str, Any] = {"fallback_random": True}  # numbers are those of eager mode
        if self.device.type == "cuda":
            options["triton.cudagraphs"] = True
        graph = torch.compile(self._own(self._eager), fullgraph=True, options=options)
        with self._undone():
            found = self._run(graph, *arguments)
        away = _distance(found, expected)
        if not away <= self._tolerance:
            wrong = f"has gradients {away:.2g} of their norm away from the right ones"
            raise _NotCompiledError(f"{what}, compiled, {wrong}")
        self.tell(f"compiled in {time.perf_counter() - began:.0f} s")
        return graph

    def _run(self, graph: Callable[..., Gradients], *arguments: Any) -> Gradients:
        if self.device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        # without it input gradients are no part of a graph
        with torch._dynamo.config.patch(trace_autograd_ops=True):
            return graph(*arguments)

    def _own(self, method: Any) -> Callable[..., Gradients]:
        """Return a method with a code object of its own.

        What torch learns of a function's arguments it keeps by its code: with that of another run
        in this process, whose batches had another size, it would make this one's a variable.
        """
        code = method.__code__.replace(co_name=f"{method.__name__}_{next(NUMBERS)}")
        function = types.FunctionType(code, method.__globals__, closure=method.__closure__)
        own: Callable[..., Gradients] = function.__get__(self)
        return own

    def _factor(self, name: str, scale: float) -> Tensor:
        """Return a penalty's scale as a tensor: one that changes makes no new graph."""
        last, factor = self._factors.get(name, (None, None))
        if factor is None or scale != last:
            factor = torch.tensor(scale, dtype=self.trained[0].dtype, device=self.device)
            self._factors[name] = (scale, factor)
        return factor

    @contextmanager
    def _undone(self) -> Iterator[None]:
        """Make an update leave no trace: in plugins, buffers and random numbers."""
        state = copied(self.plugins.state_dict(), "state of the plugins")
        with kept(), buffers_kept(self._networks):
            try:
                yield
            finally:
                self.plugins.load_state_dict(state)

    def _what(self, names: tuple[str, ...]) -> str:
        return f"the {self.side}'s update" + (f" with {', '.join(names)}" if names else "")

    def _why(self, names: tuple[str, ...], error: TorchDynamoException) -> str:
        """Return what can't be compiled, in one line, and whose it is."""
        intro = f"{self._what(names)} can't be compiled: "
        what = str(error).strip().splitlines()[0]
        stack = list(getattr(error, "real_stack", None) or [])
        files = {inspect.getsourcefile(type(each.instance)): each for each in self.plugins.loaded}
        for frame in reversed(stack):
            if frame.filename in files:
                return f"{intro}plugin {files[frame.filename]}, line {frame.lineno}: {what}"
        where = f"{stack[-1].filename}, line {stack[-1].lineno}: " if stack else ""
        return intro + where + what


NUMBERS = itertools.count()


def _distance(found: Gradients, expected: Gradients) -> float:
    """Return how far gradients, or terms, are from the expected ones, relative to their norm."""
    pairs = list(zip(found.gradients, expected.gradients, strict=True))
    if any((one is None) != (other is None) for one, other in pairs):
        return math.inf
    there = [(one, other) for one, other in pairs if one is not None and other is not None]
    total = nn.utils.get_total_norm([other for _, other in there])
    apart = nn.utils.get_total_norm([one - other for one, other in there])
    terms = (found.values - expected.values).norm() / expected.values.norm()
    return max(float(apart / total), float(terms))
