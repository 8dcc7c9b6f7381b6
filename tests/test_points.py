"""Exact scores of points: closed forms, brute force, and what they promise."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch import Tensor

from gancore.data import Dataset, Truth
from gancore.data.toys import gaussians8, gaussians25, swissroll
from gancore.errors import ScoreError
from gancore.recipe import Score
from gancore.scoring import check_scoring, score_points
from gancore.scoring.points import nearest, wasserstein2

ALL = ["modes", "quality", "w2"]
COORDINATES = st.floats(-10, 10, width=32)


def normal(count: int, seed: int, d: int = 2) -> Tensor:
    return torch.randn(count, d, generator=torch.Generator().manual_seed(seed))


def test_w2_of_a_shifted_copy_is_the_shift() -> None:
    points = normal(500, 0)
    shift = torch.tensor([3.0, -4.0])
    shuffled = (points + shift)[torch.randperm(500)]
    assert wasserstein2(points, shuffled) == pytest.approx(5.0, rel=1e-6)


def test_w2_of_a_scaled_copy_has_its_closed_form() -> None:
    """x ↦ cx is the gradient of a convex function, so it is the optimal map (Brenier)."""
    points = normal(300, 1)
    expected = 1.5 * points.double().square().sum(1).mean().sqrt().item()
    assert wasserstein2(points, 2.5 * points) == pytest.approx(expected, rel=1e-6)


def test_w2_of_two_gaussians_tends_to_the_bures_distance() -> None:
    """‖m₁ − m₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁½ Σ₂ Σ₁½)½), for diagonal Σ that of the deviations."""
    one, two = torch.tensor([1.0, 0.5]), torch.tensor([2.0, 1.5])
    shift = torch.tensor([1.0, 2.0])
    expected = math.sqrt(shift.square().sum() + (one - two).square().sum())
    found = wasserstein2(normal(2000, 2) * one, normal(2000, 3) * two + shift)
    assert found == pytest.approx(expected, rel=0.03)


def test_w2_on_a_line_pairs_in_order() -> None:
    x, y = normal(400, 4, 1), normal(400, 5, 1) ** 3
    sorted_ = (x.sort(0).values - y.sort(0).values).double().square().mean().sqrt().item()
    assert wasserstein2(x, y) == pytest.approx(sorted_, rel=1e-6)


@given(
    arrays(np.float32, (5, 2), elements=COORDINATES),
    arrays(np.float32, (5, 2), elements=COORDINATES),
)
@settings(max_examples=50, deadline=None)
def test_w2_is_the_least_over_all_pairings(
    x: np.ndarray[tuple[int, int], np.dtype[np.float32]],
    y: np.ndarray[tuple[int, int], np.dtype[np.float32]],
) -> None:
    least = min(
        sum(math.dist(a, y[k]) ** 2 for a, k in zip(x.tolist(), order, strict=True)) / 5
        for order in itertools.permutations(range(5))
    )
    one, other = torch.from_numpy(x), torch.from_numpy(y)
    assert wasserstein2(one, other) == pytest.approx(math.sqrt(least), rel=1e-6, abs=1e-6)
    assert wasserstein2(other, one) == pytest.approx(wasserstein2(one, other), abs=1e-9)


def test_w2_wants_samples_of_one_size() -> None:
    with pytest.raises(ValueError, match="one size, got 3 and 4"):
        wasserstein2(normal(3, 0), normal(4, 0))


def test_three_sigmas_are_the_border() -> None:
    truth = Truth(torch.tensor([[0.0, 0.0], [10.0, 0.0]]), deviation=1.0)
    points = torch.tensor([[2.99, 0.0], [3.01, 0.0], [10.0, -2.99], [8.0, 2.5], [-2.0, 2.0]])
    assert nearest(points, truth).tolist() == [0, -1, 1, -1, 0]


@pytest.mark.parametrize("toy", [gaussians8, gaussians25, swissroll])
def test_the_nearest_are_found_in_parts_to_the_bit(
    toy: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = toy()  # type: ignore[operator]
    points = data.samples[:2001] + 0.1 * normal(2001, 7)
    whole = nearest(points, data.truth)
    sizes = []

    def cdist(one: Tensor, other: Tensor) -> Tensor:
        sizes.append(len(one) * len(other))
        return distances(one, other)

    distances = torch.cdist
    monkeypatch.setattr(torch, "cdist", cdist)
    most = 100 * len(data.truth.points)
    monkeypatch.setattr("gancore.scoring.points.DISTANCES", most)
    assert torch.equal(nearest(points, data.truth), whole)
    assert len(sizes) > 20
    assert max(sizes) <= most


def test_distances_to_the_truth_are_only_taken_for_what_needs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused(points: Tensor, truth: Truth) -> Tensor:
        raise AssertionError

    data = gaussians8(samples=100)
    monkeypatch.setattr("gancore.scoring.points.nearest", refused)
    assert score_points(data.samples, data, metrics=["w2"]).scores.keys() == {"w2", "w2_real"}
    with pytest.raises(AssertionError):
        score_points(data.samples, data, metrics=["quality"])


def test_modes_and_quality_by_hand() -> None:
    data = gaussians8()
    assert data.truth is not None
    centres = data.truth.points
    fake = torch.cat([centres[[1, 1, 4]], torch.zeros(1, 2), centres[[6]] + 0.2])
    scores = score_points(fake, data, metrics=["modes", "quality"]).scores
    assert scores == {"modes": 2.0, "quality": 3 / 5}


@pytest.mark.parametrize(("toy", "modes"), [(gaussians8, 8), (gaussians25, 25)])
def test_real_samples_score_as_the_normal_distribution_says(toy: object, modes: int) -> None:
    data, others = toy(), toy(samples=20_000, seed=1)  # type: ignore[operator]
    scores = score_points(others.samples, data, metrics=ALL).scores
    assert list(scores) == [*ALL, "w2_real"]
    assert scores["modes"] == modes
    share = 1 - math.exp(-(3**2) / 2)  # of a two-dimensional Gaussian within 3σ
    assert scores["quality"] == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / 2e4))
    assert scores["w2"] == pytest.approx(scores["w2_real"], rel=0.6)


def test_one_mode_is_one_mode() -> None:
    data = gaussians25()
    assert data.labels is not None
    collapsed = data.samples[data.labels == 7]
    scores = score_points(collapsed, data, metrics=ALL).scores
    assert scores["modes"] == 1
    assert scores["quality"] > 0.97
    assert scores["w2"] > 5 * scores["w2_real"]


def test_quality_on_the_swissroll_is_closeness_to_the_curve() -> None:
    data, others = swissroll(), swissroll(samples=5000, seed=1)
    metrics = ["quality", "w2"]
    real = score_points(others.samples, data, metrics=metrics).scores
    # off a curve that hardly bends only one coordinate counts: 99.7 %; its ends lose a little
    assert real["quality"] == pytest.approx(math.erf(3 / math.sqrt(2)), abs=0.004)
    blob = score_points(0.5 * normal(5000, 6), data, metrics=metrics).scores
    assert blob["quality"] < 0.5
    assert blob["w2"] > 3 * real["w2"]


def test_the_protocol_says_what_was_compared() -> None:
    data = gaussians8(samples=1000)
    fake = data.samples[:700]
    found = score_points(fake, data, metrics=["w2"], seed=5)
    again = score_points(fake, data, metrics=["w2"], seed=5)
    other = score_points(fake, data, metrics=["w2"], seed=6)
    assert found == again
    assert found.scores != other.scores
    protocol = found.protocol.table()
    assert protocol["reference"] == {
        "name": "gaussians8", "split": "train", "samples": 1000, "sha256": data.sha256,
    }  # fmt: skip
    assert (protocol["samples"], protocol["w2_samples"], protocol["seed"]) == (700, 500, 5)
    assert set(protocol["versions"]) == {"gancore", "torch", "numpy", "scipy"}


def test_scores_come_in_the_order_asked_for() -> None:
    data = gaussians8(samples=100)
    scores = score_points(data.samples, data, metrics=["w2", "modes"]).scores
    assert list(scores) == ["w2", "w2_real", "modes"]


@pytest.mark.parametrize(
    ("data", "metrics", "message"),
    [
        (gaussians8(samples=50), ["fid"], "fid can't be computed for the points of 'gaussians8': "
         "choose of modes, quality, w2, or"),
        (swissroll(samples=50), ["modes"], "modes can't be .* 'swissroll': choose of quality, w2"),
        (Dataset("mine", normal(50, 0)), ["quality", "modes"], "quality, modes .* choose of w2,"),
        (Dataset("few", normal(3, 0)), ["w2"], "'few' has 3 points: too few"),
    ],
)  # fmt: skip
def test_what_can_not_be_scored_is_refused(data: Dataset, metrics: list[str], message: str) -> None:
    for refused in (
        lambda: score_points(data.samples, data, metrics=metrics),
        lambda: check_scoring(data, Score.of({"metrics": metrics})),
    ):
        with pytest.raises(ScoreError, match=message):
            refused()


def test_points_without_truth_have_w2() -> None:
    data = Dataset("mine", normal(50, 0, 3))
    scores = score_points(data.samples + 1, data, metrics=["w2"]).scores
    assert 0 < scores["w2_real"] < scores["w2"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_points_that_are_not_finite_are_counted(value: float) -> None:
    real, fake = gaussians8(samples=200), torch.zeros(50, 2)
    fake[4:7, 1] = value
    with pytest.raises(ScoreError, match="^3 of 50 generated points hold inf or nan"):
        score_points(fake, real, metrics=["quality"])
    samples = real.samples.clone()
    broken = Dataset("broken", samples)
    samples[9] = value  # where they are made, they are refused by their rows
    with pytest.raises(ScoreError, match="^1 of 200 real points hold inf or nan"):
        score_points(torch.zeros(50, 2), broken, metrics=["w2"])
    with pytest.raises(ScoreError, match="1 of 200"):
        check_scoring(broken, Score(metrics=("w2",)))
