"""A board's costs: kept for what they were measured of; time, by a clock that penalties move."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from boards import board
from helpers import TOY, parsed
from torch import Tensor

from gancore import CriticStep, cost, hookimpl
from gancore.cost import Cost, measure
from gancore.errors import InputError
from gancore.leaderboard.costs import measure_costs
from gancore.leaderboard.result import EntryCost
from gancore.recipe import Recipe
from gancore_gp import GradientPenalty

ONE = Cost(
    seconds=0.5, flops=100.0, operations=7.0, memory=64, time_ratio=2.0, flops_ratio=1.5,
    memory_ratio=1.25,
)  # fmt: skip


def costs(folder: Path, where: str = "cpu", threads: int = 1, **changes: Any) -> tuple[Any, int]:
    """Return the costs of a board, and how many entries were measured for it."""
    measured: list[str] = []

    def measuring(recipes: Mapping[str, Recipe]) -> dict[str, Cost]:
        measured.extend(recipes)
        return dict.fromkeys(recipes, ONE)

    executor: Any = SimpleNamespace(where=where, measure=measuring)
    recipes = {"a": parsed(TOY), "b": parsed(TOY, **changes)}
    about = board({"a": "A", "b": "B"}, [0], threads=threads)
    return measure_costs(about, recipes, folder, executor=executor, tell=str), len(measured)


def test_costs_are_kept_for_what_they_were_measured_of(tmp_path: Path) -> None:
    expected = {name: EntryCost(**vars(ONE)) for name in "ab"}
    assert costs(tmp_path) == (expected, 2)
    assert costs(tmp_path) == (expected, 0)
    assert json.loads((tmp_path / "costs.json").read_text())["costs"] == {
        name: vars(ONE) for name in "ab"
    }


@pytest.mark.parametrize(
    "other",
    [
        {"where": "cuda"},
        {"where": "cpu on Ray"},
        {"threads": 2},
        {"plugin.0.weight": 3.0},
        {"critic.width": 8},
        {"train.batch_size": 8},
    ],
    ids=str,
)
def test_costs_of_another_device_or_recipe_are_measured_anew(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    assert costs(tmp_path)[1] == 2
    assert costs(tmp_path, **other)[1] == 2
    assert costs(tmp_path, **other)[1] == 0
    assert costs(tmp_path)[1] == 2  # one set is kept


@pytest.mark.parametrize("text", ["{", '{"key": 3, "costs": {}}', '{"key": "", "costs": {"a": 3}}'])
def test_a_stranger_s_costs_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "costs.json").write_text(text)
    with pytest.raises(InputError, match=r"costs\.json: .*Delete it, and run the board again"):
        costs(tmp_path)


# the time, by a clock that only penalties move


class Clock:
    """Half a second passes from one look to the next, and as much as `spend` says."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 0.5
        return self.now

    def spend(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """gp's penalty takes a second more, and a tensor of 4 MiB."""
    made, penalty = Clock(), GradientPenalty.penalty

    def slow(self: GradientPenalty, step: CriticStep) -> Tensor:
        made.spend(1.0)
        torch.ones(1 << 20)
        return penalty(self, step)

    monkeypatch.setattr(GradientPenalty, "penalty", hookimpl(slow))
    monkeypatch.setattr(cost, "time", made)
    return made


def timed(**changes: Any) -> Cost:
    return measure({"it": parsed(TOY, **changes)}, device="cpu", rounds=3)["it"]


LAZY = {"plugin.1.name": "lazy", "plugin.1.every": 4, "train.steps": 8}


def test_time_is_the_updates_own_over_that_without_a_penalty(clock: Clock) -> None:
    """Half a second a look, one a penalty: 1.5 ÷ 0.5."""
    eager = timed()
    assert (eager.seconds, eager.time_ratio) == (pytest.approx(1.5), pytest.approx(3.0))
    assert eager.flops_ratio > 1


def test_what_is_due_at_times_costs_its_share_of_the_time(clock: Clock) -> None:
    """Due in one of four: 1/4 · 1.5 + 3/4 · 0.5 = 0.75."""
    lazy = timed(**LAZY)
    assert (lazy.seconds, lazy.time_ratio) == (pytest.approx(0.75), pytest.approx(1.5))
    flops, bare = timed(**{"train.steps": 8}).flops, timed(**{"plugin": None}).flops
    assert lazy.flops == pytest.approx(bare + (flops - bare) / 4)


def test_memory_is_that_of_the_update_with_the_most(clock: Clock) -> None:
    """A card has to have room for the updates in which the penalty is due."""
    lazy, bare = timed(**LAZY), timed(**{"plugin": None})
    assert lazy.memory >= 4 << 20 > bare.memory
    assert lazy.memory_ratio == lazy.memory / bare.memory > 1


def test_a_round_that_something_held_up_is_no_cost(clock: Clock) -> None:
    """Of each variant the median round counts, and of the ratios the median ratio."""
    looks = clock.perf_counter
    held = iter([0.0] * 5 + [500.0] + [0.0] * 100)

    def perf_counter() -> float:
        clock.spend(next(held))
        return looks()

    clock.perf_counter = perf_counter  # type: ignore[method-assign]
    found = timed()
    assert math.isclose(found.seconds, 1.5)
    assert math.isclose(found.time_ratio, 3.0)
