"""What is told of a critic, by critics of which it is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from gancore.plugins import load
from gancore_truth.pairs import Funnels, Pair, Shift
from gancore_truth.transport import Training, judge, train

pytestmark = pytest.mark.slow

PAIRS = [Funnels.drawn(8, 2), Funnels.radial(3), Shift.along(5, 2.0)]


class Potential(nn.Module):
    """factor·f(x) + 7: the best critic where the factor is 1."""

    def __init__(self, pair: Pair, factor: float) -> None:
        super().__init__()
        self._pair, self._factor = pair, factor

    def forward(self, x: Tensor) -> Tensor:
        return self._factor * self._pair.potential(x) + 7


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.name)
@pytest.mark.parametrize("factor", [1.0, -1.0, 0.25])
def test_the_best_critic_and_its_multiples(pair: Pair, factor: float) -> None:
    told = judge(Potential(pair, factor), pair, seed=0, samples=500)
    assert told["estimate_over_w1"] == pytest.approx(factor, rel=1e-4)
    assert told["cosine"] == pytest.approx(1 if factor > 0 else -1, rel=1e-5)
    assert told["norm_median"] == pytest.approx(abs(factor), rel=1e-5)
    assert told["norm_spread"] == pytest.approx(0, abs=1e-5)
    assert told["scaled_estimate"] == pytest.approx(1 if factor > 0 else -1, rel=1e-4)


class Constant(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 0 * x.sum(dim=1)


def test_a_constant_sees_nothing() -> None:
    told = judge(Constant(), PAIRS[0], seed=0, samples=500)
    assert all(told[key] == 0 for key in told.keys() - {"w1"})
    assert told["w1"] > 0


def test_the_shift_has_the_length_that_is_asked_for() -> None:
    assert judge(Constant(), Shift.along(5, 2.0), seed=0)["w1"] == pytest.approx(2, rel=1e-5)


SHORT = Training(updates=150, width=32, samples=1000)


def test_training_follows_the_seed_and_the_plugins() -> None:
    pair = Funnels.radial(2)

    def told(seed: int, *names: str) -> float:
        critic = train(pair, [load(name) for name in names], seed=seed, training=SHORT)
        return judge(critic, pair, seed=0, samples=1000)["estimate_over_w1"]

    assert told(0, "gp") == told(0, "gp")
    assert told(0, "gp") != told(1, "gp")
    assert told(0, "gp") < 1.5 < told(0)


def test_a_gradient_penalty_pulls_the_slope_to_its_target() -> None:
    pair = Shift.along(2)
    for target in (0.5, 2.0):
        plugins = [load("gp", {"target": target, "weight": 100.0})]
        critic = train(pair, plugins, seed=0, training=Training(updates=300, samples=1000))
        told = judge(critic, pair, seed=0, samples=1000)
        assert told["norm_median"] == pytest.approx(target, rel=0.15)
        assert told["estimate_over_w1"] == pytest.approx(target, rel=0.2)


def test_the_process_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    judge(Constant(), PAIRS[0], seed=0, samples=10)
    assert torch.equal(torch.get_rng_state(), state)
