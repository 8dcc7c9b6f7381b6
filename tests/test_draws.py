"""Random numbers of a run: each is a function of who draws it, and of nothing else that draws."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from helpers import Critic, images, needs_compiling, networks, trainer, uniform, words
from scipy import stats
from torch import Tensor, nn

from gancore import CriticStep, GeneratorStep, hookimpl, plugin
from gancore.isolation.randomness import Randomness, Stream, kept
from gancore.training import Trainer
from gancore_cr import ConsistencyRegularization
from gancore_dragan import DRAGAN
from gancore_gp import GradientPenalty
from gancore_r1 import R1

FLOAT = torch.zeros(())
DOUBLE = torch.zeros((), dtype=torch.float64)


def step_of(process: int = 0, count: int = 1, seed: int = 7, **options: Any) -> CriticStep:
    """Return a process's step of a batch of six."""
    size = 6 // count
    x = torch.zeros(size, 3)
    randomness = Randomness(seed, index=process)
    return CriticStep(lambda x: x.sum(1), x, x, update=5, randomness=randomness, **options)


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 - 1])
@pytest.mark.parametrize("who", ["interpolates", "penalty/gp", "penalty/γ"])
def test_numbers_are_those_of_numpy(seed: int, who: str) -> None:
    place = {"call": 3, "update": 123_456, "shape": (5, 7)}
    drawn = Randomness(seed).numbers(who, like=FLOAT, **place)  # type: ignore[arg-type]
    assert drawn.dtype == torch.float32
    by_hand = uniform(seed, who, 3, 123_456, 35).reshape(5, 7)
    assert drawn.tolist() == by_hand.tolist()

    exact = Randomness(seed).numbers(who, like=DOUBLE, **place)  # type: ignore[arg-type]
    high, low = (words(seed, who, 3, 123_456, 35, lane=lane).astype(object) for lane in (0, 1))
    assert exact.flatten().tolist() == list(((high >> 5) * 2**26 + (low >> 6)) / 2.0**53)

    normal = Randomness(seed).numbers(who, like=DOUBLE, normal=True, **place)  # type: ignore[arg-type]
    radius = np.sqrt(-2 * np.log((high.astype(float) + 0.5) / 2**32))
    expected = radius * np.cos(2 * np.pi * low.astype(float) / 2**32)
    np.testing.assert_allclose(normal.flatten().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_numbers_in_half_precision_stay_below_one(dtype: torch.dtype) -> None:
    drawn = Randomness(0).numbers("a", 0, 0, (20_000,), torch.zeros((), dtype=dtype))
    assert drawn.dtype == dtype
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(drawn.double().mean() - 0.5) < 0.01


def many(name: str, update: int, count: int = 4096, call: int = 0, seed: int = 0) -> np.ndarray:
    return Randomness(seed).numbers(name, call, update, (count,), DOUBLE).numpy()


def test_numbers_are_uniform_and_normal() -> None:
    """Kolmogorov and Smirnov's test of many draws: its p-values are uniform themselves."""
    p = [stats.kstest(many("a", update), "uniform").pvalue for update in range(100)]
    assert stats.kstest(p, "uniform").pvalue > 0.01
    drawn = [Randomness(1).numbers("a", 0, u, (4096,), FLOAT, normal=True) for u in range(100)]
    p = [stats.kstest(each.numpy(), "norm").pvalue for each in drawn]
    assert stats.kstest(p, "uniform").pvalue > 0.01


@pytest.mark.parametrize("bit", [0, 1, 7, 16, 23])
def test_each_bit_is_a_coin(bit: int) -> None:
    ones = (Randomness(2).numbers("a", 0, 0, (100_000,), FLOAT) * 2**24).long() >> bit & 1
    assert stats.binomtest(int(ones.sum()), 100_000).pvalue > 0.01


NEIGHBOURS: dict[str, Callable[[int], np.ndarray]] = {
    "updates": lambda n: many("a", n),
    "calls": lambda n: many("a", 0, call=n),
    "names": lambda n: many(f"penalty/{n}", 0),
    "seeds": lambda n: many("a", 0, seed=n),
    "indices": lambda n: many("a", n // 2)[n % 2 : 4095 + n % 2],
}


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_neighbours_are_independent(what: str) -> None:
    """Their pairs fill the square evenly: chi-squared tests, whose p-values are uniform."""
    draws = [NEIGHBOURS[what](n) for n in range(81)]
    pairs = [np.histogram2d(a, b, bins=8, range=[[0, 1], [0, 1]])[0] for a, b in pairwise(draws)]
    p = [stats.chisquare(each.flatten()).pvalue for each in pairs]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_a_first_dimension_b_has_a_row_a_sample() -> None:
    """Two and three processes draw the rows of one; what is no batch, or shared, all draw alike."""
    for draw in ("rand", "randn"):
        whole = getattr(step_of(), draw)(6, 2)
        for count in (2, 3):
            parts = [getattr(step_of(n, count), draw)(6 // count, 2) for n in range(count)]
            assert torch.equal(torch.cat(parts), whole)
            alike = [
                getattr(step_of(n, count), draw)(6 // count, 2, shared=True) for n in range(count)
            ]
            assert all(torch.equal(each, alike[0]) for each in alike)
            alike = [getattr(step_of(n, count), draw)(5, 6 // count) for n in range(count)]
            assert all(torch.equal(each, alike[0]) for each in alike)
    assert step_of().rand().shape == ()
    assert torch.equal(step_of().rand(torch.Size((6, 2))), step_of().rand(6, 2))  # type: ignore[arg-type]
    parts = [step_of(n, 2).interpolates for n in range(2)]
    assert torch.equal(torch.cat(parts), step_of().interpolates)


def test_calls_are_counted_from_each_hook_on() -> None:
    step = step_of()
    step._asked_by("penalty/a")
    first, second = step.rand(4), step.randn(4)
    step.scores(step.real)  # draws nothing of the plugin's
    third = step.rand(4)
    step._asked_by("penalty/b")
    other = step.rand(4)
    step._asked_by("penalty/a")
    assert torch.equal(step.rand(4), first)
    assert third.tolist() == uniform(7, "penalty/a", 3, 5, 4).tolist()
    assert other.tolist() == uniform(7, "penalty/b", 1, 5, 4).tolist()
    assert len({tuple(each.tolist()) for each in (first, second, third, other)}) == 4


def test_a_step_of_your_own_draws_from_torchs_generator() -> None:
    x = torch.zeros(4, 2, dtype=torch.float64)
    step = CriticStep(lambda x: x.sum(1), x, x)
    torch.manual_seed(3)
    drawn = step.rand(4, 1), step.randn(3), step.interpolates
    torch.manual_seed(3)
    expected = torch.rand(4, 1, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    assert all(map(torch.equal, drawn[:2], expected))


@plugin
class Greedy:
    """Draws from everywhere, and scores what it made up."""

    @hookimpl
    def prepare_critic(self) -> None:
        torch.rand(3)

    @hookimpl
    def penalty_scale(self, update: int) -> None:
        torch.rand(update + 1)
        random.random()

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        random.random()
        np.random.rand(5)
        noise = step.rand(3) + step.randn(3) + torch.rand(3)
        x = step.real + torch.randn_like(step.real)
        return (step.scores(x) * noise.sum()).mean() * 1e-9


@plugin
class Around:
    """Wraps the penalties of others, and draws before and after them, from everywhere."""

    drawn: list[float] = field(init=False, default_factory=list)

    def _draw(self, step: CriticStep) -> None:
        numbers = [step.rand(8).sum(), torch.rand(()), np.random.rand(), random.random()]
        self.drawn += [float(each) for each in numbers]
        step.scores(torch.ones(8, 1, 4, 4))

    @hookimpl(wrapper=True)
    def penalty(self, step: CriticStep) -> Iterator[Any]:
        self._draw(step)
        answer = yield
        self._draw(step)
        return answer

    @hookimpl
    def post_step(self) -> None:
        """Act on its own, too."""


@plugin
class Diary:
    """Writes down what it draws in each hook."""

    score: bool = False
    lines: dict[str, list[Any]] = field(init=False, default_factory=dict)

    def _write(self, hook: str, *numbers: Tensor) -> None:
        own = [torch.rand(()), np.random.rand(), random.random(), np.random.randn(), *numbers]
        self.lines.setdefault(hook, []).append([float(each) for each in own])

    @hookimpl
    def prepare_critic(self) -> None:
        self._write("prepare_critic")

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        self._write("penalty", step.rand(8).sum())
        if self.score:
            step.scores(torch.ones(8, 1, 4, 4))  # its dropout is no draw of ours
        self._write("penalty", step.randn(8).sum())
        return step.scores(step.interpolates).mean() * 0.1

    @hookimpl
    def generator_penalty(self, step: GeneratorStep) -> None:
        self._write("generator_penalty", step.rand(8).sum())

    @hookimpl
    def penalty_scale(self, plugin: str) -> None:
        self._write(f"penalty_scale {plugin}")

    @hookimpl
    def post_step(self) -> None:
        self._write("post_step")


class Dropping(Critic):
    """With dropout, and layers left out by Python's random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.functional.dropout(torch.ones(16), 0.5, self.training)
        mask[0] = random.random() + np.random.rand()
        self.masks.append(mask)
        return super().forward(x * mask.view(1, 4, 4))


def lines(process: int = 0, *before: object, score: bool = False) -> dict[str, list[Any]]:
    """Return what a diary writes in two updates, on a process whose numbers are its own."""
    diary = Diary(score=score)
    torch.manual_seed(0)
    generator, critic = networks()[0], Dropping()
    made = Trainer(
        generator,
        critic,
        images(),
        plugins=[*before, diary],
        train={"steps": 6, "batch_size": 8},
        score={"metrics": []},
    )
    made.learner.randomness._process = process
    for update in range(2):
        made.critic_update(update)
        made.generator_update(update)
    diary.lines["masks"] = [mask.tolist() for mask in critic.masks]
    return diary.lines


def test_a_plugin_draws_the_same_whatever_else_is_loaded() -> None:
    alone = lines()
    among = lines(0, Greedy(), GradientPenalty())
    scoring = lines(score=True)
    assert among["penalty_scale greedy"][0] != among["penalty_scale diary"][0]
    around = Around()
    wrapped = lines(0, around, GradientPenalty())
    assert len(set(around.drawn)) == len(around.drawn) == 2 * 2 * 2 * 4  # updates, plugins, parts
    for hook in alone.keys() - {"masks"}:
        assert among[hook] == alone[hook] == scoring[hook] == wrapped[hook], hook
        if "scale" in hook:  # asked for both networks' penalties of one update
            continue
        flat = [number for line in alone[hook] for number in line]
        assert len(set(flat)) == len(flat), hook  # no two updates, nor generators, alike


def test_the_critics_own_draws_go_by_what_it_scores() -> None:
    """Real, fake and interpolates each have their dropout, whoever asks first, and how often."""

    def masks(*plugins: object) -> list[tuple[float, ...]]:
        critic = Dropping()
        options = {"train": {"steps": 1, "batch_size": 8}, "score": {"metrics": []}}
        made = Trainer(networks()[0], critic, images(), plugins=plugins, **options)
        made.critic_update(3)
        return [tuple(mask.tolist()) for mask in critic.masks]

    plain = masks()
    assert len(set(plain)) == len(plain) == 2
    assert set(plain) == set(masks(R1()))  # which asks for D(real) before the loss does
    assert set(plain) < set(masks(GradientPenalty()))
    assert set(masks(GradientPenalty())) < set(masks(Greedy(), GradientPenalty()))


def test_each_process_has_its_own_where_it_has_its_own_samples() -> None:
    first, second = lines(), lines(1)
    for hook in first:
        if hook in ("penalty", "generator_penalty", "masks"):
            assert first[hook] != second[hook], hook
        else:
            assert first[hook] == second[hook], hook
    for hook in ("penalty", "generator_penalty"):  # but what step.rand gives, which has its rows
        assert [line[-1] for line in first[hook]] == [line[-1] for line in second[hook]]


@pytest.mark.parametrize(
    "penalty",
    [GradientPenalty(), DRAGAN(), DRAGAN(noise="gaussian"), ConsistencyRegularization(shift=1)],
    ids=lambda penalty: type(penalty).__name__,
)
def test_our_penalties_draw_by_step_alone(penalty: Any) -> None:
    """Whatever the global generators hold: a mask of theirs would differ between processes."""
    values = []
    for seed in range(2):
        torch.manual_seed(5)
        critic = Critic()
        x = torch.rand(8, 1, 4, 4)
        step = CriticStep(critic, x, 1 - x, randomness=Randomness(0))
        torch.manual_seed(seed)
        values.append(penalty.penalty(step).item())
    assert values[0] == values[1] != 0


def test_a_board_is_paired_a_plugin_that_draws_leaves_gps_penalty() -> None:
    """The issue's sample: gp's first penalty does not know of a plugin before it that draws."""

    def first(*before: object) -> float:
        return trainer(plugins=[*before, GradientPenalty()]).critic_update(0)["penalty/gp"]

    assert first() == first(Greedy())


@pytest.mark.parametrize("drawn", [0, 1, 623, 624, 625, 1248])
def test_kept_puts_the_global_generators_back(drawn: int) -> None:
    """However much was drawn since the seed: NumPy's twister turns every 624 words."""
    Stream(0, "a").seed_global(4)
    for _ in range(drawn):
        np.random.randint(2**32, dtype=np.uint32)
    gauss = [np.random.randn() for _ in range(drawn % 2)]  # of a pair, one is kept for later
    states = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
    with pytest.raises(ZeroDivisionError), kept(numpy_is_at=Stream(0, "a").key(4)):
        torch.rand(2), random.random(), np.random.randn()
        np.random.seed(1)
        raise ZeroDivisionError
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert repr(np.random.get_state()) == states[2]
    assert len(gauss) == drawn % 2


@pytest.fixture
def _compiling() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@needs_compiling
@pytest.mark.usefixtures("_compiling")
def test_a_compiled_update_draws_the_same_and_is_one_graph() -> None:
    """A graph holds its update's number as a tensor: the second update compiles nothing."""

    def penalties(compiled: bool) -> list[float]:
        made = trainer(
            plugins=[GradientPenalty()],
            train={"steps": 6, "batch_size": 8, "critic_steps": 2, "compile": compiled},
        )
        torch._dynamo.utils.counters.clear()
        values = [made.critic_update(update)["penalty/gp"] for update in range(4)]
        if compiled:
            assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
        return values

    compiled, eager = penalties(True), penalties(False)
    assert compiled == pytest.approx(eager, rel=1e-4)
    assert len({round(value, 3) for value in eager}) == 4
