"""Lazy regularization, by counting calls and adding up what they give."""

from dataclasses import field

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from penalties import Card
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, hookimpl, plugin
from gancore.errors import PluginError
from gancore.losses import Wasserstein
from gancore.plugins import Loaded, Plugins, load, wrap
from gancore_lazy import Lazy


@plugin
class Square:
    """E[D(x)²] on real samples, and a record of the updates in which it was asked for."""

    asked: list[int] = field(default_factory=list, init=False)

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        self.asked.append(step.update)
        return step.scores(step.real).square().mean()


@plugin
class PathLength:
    """A penalty on the generator."""

    @hookimpl
    def generator_penalty(self, step: GeneratorStep) -> Tensor:
        return step.fake.square().mean()


@plugin
class Annealing:
    """Halve every penalty at each update."""

    @hookimpl
    def penalty_scale(self, update: int) -> float:
        return 0.5**update


def plugins(*instances: object, **named: object) -> Plugins:
    everyone = [wrap(instance) for instance in (Wasserstein(), *instances)]
    return Plugins(everyone + [Loaded(name, instance) for name, instance in named.items()])


def train(run: Plugins, updates: range) -> tuple[Tensor, Tensor]:
    """Return the sum of scaled penalties over some updates on the same samples; its gradient."""
    critic = nn.Linear(4, 1, bias=False, dtype=torch.float64)
    nn.init.constant_(critic.weight, 0.3)
    samples = torch.arange(12, dtype=torch.float64).view(3, 4)
    total = torch.zeros((), dtype=torch.float64)
    for update in updates:
        step = CriticStep(critic, samples, samples, update=update)
        total = total + sum(s * p for _, s, p in run.answer_penalties("penalty", step))
    if total.requires_grad:
        total.backward()
        assert critic.weight.grad is not None
        return total.detach(), critic.weight.grad
    return total, torch.zeros_like(critic.weight)


@pytest.mark.parametrize("every", [1, 2, 4, 16])
@pytest.mark.parametrize("targets", [(), ("square",)])
def test_sum_is_the_eager_one(every: int, targets: tuple[str, ...]) -> None:
    lazy, eager = Square(), Square()
    found = train(plugins(lazy, Lazy(every=every, targets=targets)), range(32))
    expected = train(plugins(eager), range(32))
    assert expected[0] > 1
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert lazy.asked == list(range(0, 32, every))
    assert len(eager.asked) == 32


@given(every=st.integers(1, 1000), start=st.integers(0, 10**9))
def test_any_window_of_n_updates_has_one_penalty_of_n(every: int, start: int) -> None:
    lazy = Lazy(every=every)
    scales = [lazy.penalty_scale("any", update) for update in range(start, start + every)]
    assert sorted(scales) == [0.0] * (every - 1) + [float(every)]


def test_targets_leave_others_alone() -> None:
    square, other = Square(), Square()
    run = plugins(square, Lazy(every=3, targets=("square",)), other=other)
    train(run, range(6))
    assert square.asked == [0, 3]
    assert other.asked == [0, 1, 2, 3, 4, 5]
    by_name = {each.name: [run.scale(each, u) for u in range(3)] for each in run.loaded}
    assert by_name["square"] == [3, 0, 0]
    assert by_name["other"] == [1, 1, 1]


def test_all_penalties_of_critic_and_generator_by_default() -> None:
    square, other = Square(), Square()
    run = plugins(square, PathLength(), Lazy(every=2), other=other)
    train(run, range(4))
    assert square.asked == other.asked == [0, 2]
    generator, samples = nn.Linear(4, 4), torch.ones(3, 4)
    expected = generator(samples).square().mean()
    found = []
    for update in range(4):
        step = GeneratorStep(generator, nn.Linear(4, 1), samples, generator(samples), update=update)
        found.append([s * p for _, s, p in run.answer_penalties("generator_penalty", step)])
    assert found == [[2 * expected], [], [2 * expected], []]


def test_two_with_targets_of_their_own() -> None:
    square, other = Square(), Square()
    slow, fast = Lazy(every=4, targets=("other",)), Lazy(every=2, targets=("square",))
    train(plugins(square, other=other, slow=slow, fast=fast), range(8))
    assert square.asked == [0, 2, 4, 6]
    assert other.asked == [0, 4]


@pytest.mark.parametrize("order", [1, -1])
def test_composes_with_annealing(order: int) -> None:
    square = Square()
    run = plugins(square, *[Lazy(every=2), Annealing()][::order])
    assert [run.scale(wrap(square), update) for update in range(5)] == [2, 0, 0.5, 0, 0.125]


@pytest.mark.parametrize("first", [(), ("square",), ("square", "other")])
@pytest.mark.parametrize("second", [(), ("square",)])
def test_two_on_one_penalty(first: tuple[str, ...], second: tuple[str, ...]) -> None:
    two = {"one": Lazy(targets=first), "two": Lazy(targets=second)}
    with pytest.raises(PluginError, match=r"plugin one .*'two' makes the same penalties lazy"):
        plugins(Square(), other=Square(), **two)


@pytest.mark.parametrize("target", ["sqare", "wasserstein", "annealing", "lazy"])
def test_target_that_is_no_penalty(target: str) -> None:
    lazy = Lazy(targets=("square", target))
    with pytest.raises(PluginError, match=f"'{target}' is no penalty .*: square, path_length$"):
        plugins(Square(), PathLength(), Annealing(), lazy)


def test_target_where_there_are_no_penalties() -> None:
    with pytest.raises(PluginError, match=r"'gp' is no penalty .*its penalties: none$"):
        plugins(Lazy(targets=("gp",)))
    assert plugins(Lazy()).penalties("penalty") == []


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "16", True, float("inf")])
def test_wrong_every(wrong: object) -> None:
    with pytest.raises(PluginError, match="lazy: every: expected"):
        load("lazy", {"every": wrong})


@pytest.mark.parametrize("wrong", ["gp", [1], {"gp": 1}, True])
def test_wrong_targets(wrong: object) -> None:
    with pytest.raises(PluginError, match=r"lazy: targets(\.0)?: expected"):
        load("lazy", {"targets": wrong})


def test_right_and_unknown_options() -> None:
    outer = load("lazy", {"every": 4, "targets": ["gp"]}, alias="outer")
    assert outer.name == "outer"
    assert (outer.instance.every, outer.instance.targets) == (4, ("gp",))
    with pytest.raises(PluginError, match=r"evry.*Did you mean 'every'"):
        load("lazy", {"evry": 4})


class TestCard(Card):
    name = "lazy"
    plugin = Lazy
