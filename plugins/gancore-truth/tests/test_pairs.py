"""The pairs against an exact assignment, closed forms, and the properties that make W1 exact."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist

from gancore_truth.pairs import Funnels, Pair, Shift, pairs

NUMBERS = st.floats(-5, 5, allow_nan=False, width=64)


@st.composite
def funnels(draw: st.DrawFn) -> Funnels:
    count, dimension = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    apexes = draw(arrays(np.float64, (count, dimension), elements=NUMBERS))
    heights = draw(arrays(np.float64, (count,), elements=NUMBERS))
    part = draw(st.floats(0.05, 0.95))
    return Funnels(torch.from_numpy(apexes), torch.from_numpy(heights), part)


def points(data: st.DataObject, pair: Pair, rows: int = 4) -> torch.Tensor:
    return torch.from_numpy(data.draw(arrays(np.float64, (rows, pair.dimension), elements=NUMBERS)))


@settings(max_examples=200, deadline=None)
@given(st.data(), funnels())
def test_the_potential_falls_by_the_length_of_each_move(data: st.DataObject, pair: Funnels) -> None:
    x = points(data, pair)
    length = (x - pair.move(x)).norm(dim=1)
    torch.testing.assert_close(
        pair.potential(x) - pair.potential(pair.move(x)), length, rtol=0, atol=1e-9
    )


@settings(max_examples=200, deadline=None)
@given(st.data(), funnels())
def test_the_potential_has_slope_one_at_most(data: st.DataObject, pair: Funnels) -> None:
    x, y = points(data, pair), points(data, pair)
    apart = (x - y).norm(dim=1)
    assert ((pair.potential(x) - pair.potential(y)).abs() <= apart + 1e-9).all()


@settings(max_examples=100, deadline=None)
@given(st.data(), funnels())
def test_a_move_stays_in_its_funnel(data: st.DataObject, pair: Funnels) -> None:
    x = points(data, pair)
    mine, _ = pair._nearest(x)
    towards = mine - x
    steps = torch.linspace(0, pair.part, 5, dtype=torch.float64)
    for step in steps:
        between = x + step * towards
        expected = (between - mine).norm(dim=1) + (pair.potential(x) - towards.norm(dim=1))
        torch.testing.assert_close(pair.potential(between), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pair", [*pairs(), *pairs((3,), everything=True)], ids=lambda p: p.name)
def test_gradients_are_those_of_the_potential(pair: Pair) -> None:
    x = torch.randn(64, pair.dimension, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(pair.potential(x).sum(), x)
    torch.testing.assert_close(pair.gradient(x.detach()), gradient)
    torch.testing.assert_close(gradient.norm(dim=1), torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize("pair", [Funnels.drawn(8, 2), Funnels.radial(2), Shift.along(2)])
def test_no_assignment_of_samples_is_shorter(pair: Pair) -> None:
    random = torch.Generator().manual_seed(3)
    x = torch.randn(600, 2, dtype=torch.float64, generator=random)
    y = pair.move(x)
    costs = cdist(x.numpy(), y.numpy())
    rows, columns = linear_sum_assignment(costs)
    shortest = costs[rows, columns].mean()
    assert shortest == pytest.approx((x - y).norm(dim=1).mean().item(), rel=1e-12)


@pytest.mark.parametrize("dimension", [1, 2, 16, 128])
def test_the_radial_one_has_half_the_mean_norm(dimension: int) -> None:
    random = torch.Generator().manual_seed(0)
    x = torch.randn(200_000, dimension, generator=random)
    pair = Funnels.radial(dimension)
    w1 = (x - pair.move(x)).norm(dim=1).double()
    gamma = math.exp(math.lgamma((dimension + 1) / 2) - math.lgamma(dimension / 2))
    error = 5 * w1.std().item() / math.sqrt(len(w1))
    assert w1.mean().item() == pytest.approx(math.sqrt(2) * gamma / 2, abs=error)


def test_the_shift_is_as_long_as_asked() -> None:
    x = torch.randn(9, 7, dtype=torch.float64)
    pair = Shift.along(7, 2.5)
    torch.testing.assert_close((pair.move(x) - x).norm(dim=1), torch.full((9,), 2.5).double())
    torch.testing.assert_close(
        pair.potential(x) - pair.potential(pair.move(x)), torch.full((9,), 2.5).double()
    )


def test_the_pairs_of_a_card() -> None:
    assert [pair.name for pair in pairs()] == ["funnels8-2", "funnels8-16", "shift-16"]
    assert {pair.name for pair in pairs(everything=True)} == {
        f"{kind}-{dimension}"
        for kind in ("funnels8", "funnels1", "shift")
        for dimension in (2, 16, 128)
    }
    one, other = Funnels.drawn(8, 2), Funnels.drawn(8, 2)
    assert torch.equal(one.apexes, other.apexes)
