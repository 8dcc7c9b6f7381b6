"""What a regularizer costs: time, FLOPs and memory of a critic update, against one without it.

Drawing fakes is left out, as it is the same for all; so is the generator's update. FLOPs are those
of convolutions and matrix products, counted exactly as they are dispatched.
"""

from __future__ import annotations

import json
import random
import statistics
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import flop_registry

from gancore.checks.dependence import unprobed
from gancore.data import Dataset
from gancore.errors import RunError
from gancore.isolation.caller import leaving_no_trace
from gancore.recipe import Recipe
from gancore.scoring.sampling import Progress
from gancore.training import Trainer, build_trainer, load_data, refuse_components
from gancore.training.device import choose_device

MOST_ASKED = 1_000_000
"""Critic updates of a run whose due penalties are asked for; of a longer run so many at random."""

MOST_SETS = 32
"""Sets of penalties due together that are measured; a rarer one counts as the one most like it."""


class Counts(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what is dispatched while it is on.

    operations  calls, by operator
    flops       of convolutions and matrix products, 2 a multiply-add, by operator
    peak        bytes of all tensors made meanwhile that were alive at one time, at most
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: Counter[str] = Counter()
        self.flops: Counter[str] = Counter()
        self.peak = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Count one operation."""
        known = {self._key(one) for one in tree_iter((args, kwargs)) if isinstance(one, Tensor)}
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket  # type: ignore[attr-defined]
        self.operations[str(packet)] += 1
        if packet in flop_registry:
            self.flops[str(packet)] += flop_registry[packet](*args, **(kwargs or {}), out_val=out)
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor) and self._key(tensor) not in known:
                self._made(tensor)
        return out

    @staticmethod
    def _key(tensor: Tensor) -> int:
        key: int = tensor.untyped_storage()._cdata
        return key

    def _made(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            weakref.finalize(storage, self._alive.pop, key, None)
            self.peak = max(self.peak, sum(self._alive.values()))


@dataclass(frozen=True)
class Cost:
    """What a critic update costs, on the mean over all of a run.

    Which penalties are due is asked of a new run's `penalty_scale`, update by update. What plugins
    decide otherwise is not seen: a penalty that answers None, a scale that training changes.

    seconds     the median
    flops, operations
                as counted
    memory      bytes of the tensors it makes that are alive at one time, at most
    time_ratio, flops_ratio, memory_ratio
                to the same update without plugins; the time's is the median of ratios taken
                right after each other
    """

    seconds: float
    flops: float
    operations: float
    memory: int
    time_ratio: float
    flops_ratio: float
    memory_ratio: float


@dataclass(eq=False)
class _Variant:
    """A trainer, and which of its updates stand for what share of all."""

    recipe: Recipe
    trainer: Trainer
    shares: dict[int, float]
    counts: list[Counts] = field(default_factory=list)
    rounds: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, recipe: Recipe, device: str, data: Dataset) -> _Variant:
        built = build_trainer(recipe, device=device, data=data)
        return cls(recipe, built, due_shares(built))

    def count(self) -> bool:
        """Count one update of each set of due penalties; return whether all went well."""
        counted = self._uncompiled()
        for update in self.shares:
            samples = counted.critic_samples(update)
            try:
                with unprobed(), Counts() as counts:
                    counted.update_critic(update, *samples)
                self.trainer.critic_update(update)  # which probes the critic, and compiles it
            except RunError:
                return False
            self.counts.append(counts)
        return True

    def _uncompiled(self) -> Trainer:
        """Return the same uncompiled: a graph of its own hides what it dispatches."""
        if not self.recipe.train.compile:
            return self.trainer
        train = self.recipe.train.model_copy(update={"compile": False})
        plain = self.recipe.model_copy(update={"train": train})
        return build_trainer(plain, device=self.trainer.device.type, data=self.trainer.data)

    def time(self) -> None:
        seconds = 0.0
        for update, share in self.shares.items():
            samples = self.trainer.critic_samples(update)
            began = time.perf_counter()
            with unprobed():
                self.trainer.update_critic(update, *samples)  # ends in a copy to the host
            seconds += share * (time.perf_counter() - began)
        self.rounds.append(seconds)

    def mean(self, of: Callable[[Counts], int]) -> float:
        return sum(
            share * of(counts)
            for share, counts in zip(self.shares.values(), self.counts, strict=True)
        )


@leaving_no_trace
def measure(
    recipes: Mapping[str, Recipe],
    *,
    device: str = "auto",
    rounds: int = 15,
    progress: Progress | None = None,
) -> dict[str, Cost]:
    """Measure the critic updates of recipes, and of each without its plugins, all in turn.

    rounds: how often each is timed, after a first time that does not count.
    Equal [data] tables share one data set. A recipe whose first update fails is left out. Raises
    InputError for those that can't be built.
    """
    variants: dict[str, _Variant] = {}
    bare: dict[str, str] = {}
    loaded: dict[str, Dataset] = {}
    choose_device(device)
    for recipe in recipes.values():
        refuse_components(recipe)
    for name, recipe in recipes.items():
        plain = recipe.without([section.called for section in recipe.plugin])
        data = _data(recipe, device, loaded)
        bare[name] = _key(plain)
        if bare[name] not in variants:
            variants[bare[name]] = _Variant.of(plain, device, data)
        variants[name] = (
            _Variant.of(recipe, device, data) if recipe.plugin else variants[bare[name]]
        )
    each_once = list({id(variant): variant for variant in variants.values()}.values())
    failed = [variant for variant in each_once if not variant.count()]
    timed = [variant for variant in each_once if variant not in failed]
    for number in range(rounds):
        for variant in timed:
            variant.time()
        if progress:
            progress("measuring costs", number + 1, rounds)
    return {
        name: _cost(variants[name], variants[bare[name]])
        for name in recipes
        if variants[name] in timed and variants[bare[name]] in timed
    }


def _cost(variant: _Variant, bare: _Variant) -> Cost:
    both = (variant, bare)
    flops, bare_flops = (one.mean(lambda counts: counts.flops.total()) for one in both)
    memory, bare_memory = (max(counts.peak for counts in one.counts) for one in both)
    ratios = [mine / its for mine, its in zip(variant.rounds, bare.rounds, strict=True)]
    return Cost(
        seconds=statistics.median(variant.rounds),
        flops=flops,
        operations=variant.mean(lambda counts: counts.operations.total()),
        memory=memory,
        time_ratio=statistics.median(ratios),
        flops_ratio=flops / bare_flops,
        memory_ratio=memory / bare_memory,
    )


def _data(recipe: Recipe, device: str, loaded: dict[str, Dataset]) -> Dataset:
    """Return a recipe's data set on the device, from those loaded already if it is there."""
    key = json.dumps([recipe.data.name, recipe.data.options], sort_keys=True)
    if key not in loaded:
        loaded[key] = load_data(recipe).to(choose_device(device))
    return loaded[key]


def due_shares(built: Trainer) -> dict[int, float]:
    """Return an update with each set of penalties due together, and the sets' shares of the run."""
    plugins, first = built.plugins, dict[tuple[bool, ...], int]()
    penalties = plugins.penalties("penalty")
    updates_of: Counter[tuple[bool, ...]] = Counter()
    train = built.settings.train
    updates = _asked(train.steps * train.critic_steps) if penalties else range(1)
    for update in updates:
        due = tuple(plugins.scale(penalty, update) != 0 for penalty in penalties)
        first.setdefault(due, update)
        updates_of[due] += 1
    kept = dict(updates_of.most_common(MOST_SETS))
    for due in updates_of.keys() - kept.keys():
        kept[min(kept, key=lambda other: sum(map(bool.__xor__, due, other)))] += updates_of[due]
    return {first[due]: count / updates_of.total() for due, count in kept.items()}


def _asked(updates: int) -> Iterable[int]:
    """Return all updates of a run; of a long one, one at random out of each equal stretch."""
    if updates <= MOST_ASKED:
        return range(max(updates, 1))
    drawn, stretch = random.Random(0), updates / MOST_ASKED
    return (int((number + drawn.random()) * stretch) for number in range(MOST_ASKED))


def _key(recipe: Recipe) -> str:
    """Return what decides the cost of an update, as text."""
    table = recipe.table()
    keys = ("data", "generator", "critic", "loss", "optimizer")
    train = {key: table["train"].get(key) for key in ("batch_size", "precision", "compile")}
    updates = recipe.train.steps * recipe.train.critic_steps  # a loss may have a lazy penalty too
    return json.dumps([*(table[key] for key in keys), train, updates], sort_keys=True)
