"""The toys: constants of the WGAN-GP authors' script, seeds, and the modes' centres."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import make_swiss_roll

from gancore.data import Dataset, Truth
from gancore.data.toys import gaussians8, gaussians25, swissroll
from gancore.errors import PluginError
from gancore.options import complete, validate

Toy = Callable[..., Dataset]
TOYS: list[Toy] = [gaussians8, gaussians25, swissroll]
FIRSTS = [(0.0138435, 1.4461230), (-1.3971227, 0.0396198), (-1.2090352, -0.5195163)]
GAUSSIANS: list[tuple[Toy, int, float]] = [
    (gaussians8, 8, 0.02 / 1.414),
    (gaussians25, 25, 0.05 / 2.828),
]


def truth(data: Dataset) -> Truth:
    assert data.truth is not None
    return data.truth


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_any_number_of_float32_points(toy: Toy, count: int) -> None:
    data = toy(samples=count)
    assert (len(data), data.shape, data.samples.dtype) == (count, (2,), torch.float32)
    assert (data.name, data.split) == (toy.__name__, "train")


@pytest.mark.parametrize("toy", TOYS)
def test_the_seed_is_all_that_decides(toy: Toy) -> None:
    torch.manual_seed(1)
    np.random.seed(1)
    first = toy(samples=100, seed=3)
    torch.manual_seed(2)
    np.random.seed(2)
    assert toy(samples=100, seed=3).sha256 == first.sha256
    assert toy(samples=100, seed=4).sha256 != first.sha256


def test_the_numbers_never_change() -> None:
    """Scores of the toys are comparable only while the data are: to 1e-6, for other libms."""
    firsts = [toy(samples=5).samples[0].tolist() for toy in TOYS]
    assert firsts == [pytest.approx(list(each), abs=1e-6) for each in FIRSTS]


@pytest.mark.parametrize(("toy", "modes", "sigma"), GAUSSIANS)
def test_gaussians(toy: Toy, modes: int, sigma: float) -> None:
    data = toy(samples=40_000)
    middle = truth(data).points
    assert truth(data).modes
    assert data.labels is not None
    assert torch.bincount(data.labels).tolist() == [40_000 // modes] * modes
    nearest = torch.cdist(data.samples, middle).argmin(1)
    assert torch.equal(nearest, data.labels)
    assert not torch.equal(data.labels.sort().values, data.labels)  # shuffled
    off = data.samples - middle[data.labels]
    assert off.std().item() == pytest.approx(sigma, rel=0.02)
    assert off.mean(0).abs().max().item() < 5 * sigma / 200
    assert truth(data).deviation == pytest.approx(sigma)
    wide = truth(toy(samples=50, std=1.0))
    assert wide.deviation == pytest.approx(sigma / {8: 0.02, 25: 0.05}[modes])
    exact = toy(samples=50, std=0.0)
    assert exact.labels is not None
    assert torch.equal(exact.samples, middle[exact.labels])


def test_centres_are_the_authors() -> None:
    half = 1 / math.sqrt(2)
    unit = [(1, 0), (-1, 0), (0, 1), (0, -1)]
    unit += [(half, half), (half, -half), (-half, half), (-half, -half)]  # type: ignore[list-item]
    eight = sorted((round(2 * x / 1.414, 5), round(2 * y / 1.414, 5)) for x, y in unit)
    assert (
        sorted((round(x, 5), round(y, 5)) for x, y in truth(gaussians8()).points.tolist()) == eight
    )
    grid = sorted((2 * x / 2.828, 2 * y / 2.828) for x in range(-2, 3) for y in range(-2, 3))
    assert sorted(map(tuple, truth(gaussians25()).points.tolist())) == [
        pytest.approx(each, abs=1e-6) for each in grid
    ]


def test_remainders_are_shared_out() -> None:
    labels = gaussians8(samples=11).labels
    assert labels is not None
    assert sorted(torch.bincount(labels, minlength=8).tolist()) == [1] * 5 + [2] * 3


def test_swissroll_is_scikit_learns_curve() -> None:
    points = swissroll(samples=2000, noise=0.0).samples.double().numpy() * 7.5
    t = np.hypot(points[:, 0], points[:, 1])
    assert t.min() >= 1.5 * np.pi - 1e-4
    assert t.max() <= 4.5 * np.pi + 1e-4
    theirs, their_t = make_swiss_roll(50_000, noise=0.0, random_state=0)
    np.testing.assert_allclose(np.stack([t * np.cos(t), t * np.sin(t)], 1), points, atol=1e-4)
    np.testing.assert_allclose(np.hypot(theirs[:, 0], theirs[:, 2]), their_t)
    np.testing.assert_allclose(
        np.quantile(t, [0.25, 0.5, 0.75]), np.quantile(their_t, [0.25, 0.5, 0.75]), rtol=0.03
    )
    noisy = swissroll(samples=2000).samples.double().numpy() * 7.5
    assert (noisy - points).std() == pytest.approx(0.25, rel=0.05)
    assert swissroll(samples=3).labels is None


def test_the_truth_of_the_swissroll_lies_densely_on_its_curve() -> None:
    data = truth(swissroll(samples=10))
    assert not data.modes
    assert data.deviation == pytest.approx(0.25 / 7.5)
    points = data.points.double().numpy() * 7.5
    t = np.hypot(points[:, 0], points[:, 1])
    np.testing.assert_allclose(np.stack([t * np.cos(t), t * np.sin(t)], 1), points, atol=1e-4)
    assert t[[0, -1]] == pytest.approx([1.5 * np.pi, 4.5 * np.pi], abs=1e-4)
    gaps = np.linalg.norm(np.diff(points, axis=0), axis=1)
    assert gaps.max() < 0.25 / 5
    clean = swissroll(samples=500, noise=0.0).samples
    assert torch.cdist(clean, data.points).min(1).values.max() < data.deviation / 5


@pytest.mark.parametrize(
    "options",
    [{"samples": 0}, {"samples": 10**9}, {"std": -0.1}, {"seed": -1}, {"seed": 2**32}, {"n": 1}],
)
def test_options_have_limits(options: dict[str, Any]) -> None:
    with pytest.raises(PluginError, match=f"data: {next(iter(options))}"):
        validate(gaussians8, options, "data")


def test_defaults() -> None:
    assert complete(gaussians8, {}) == {"samples": 100_000, "std": 0.02, "seed": 0}
    assert complete(gaussians25, {}) == {"samples": 100_000, "std": 0.05, "seed": 0}
    assert complete(swissroll, {}) == {"samples": 100_000, "noise": 0.25, "seed": 0}
