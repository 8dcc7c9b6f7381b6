"""FID, Inception Score, KID, precision and recall against formulas written anew, in NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from gancore.data import Dataset
from gancore.data.digits import digits
from gancore.errors import UnfitError
from gancore.recipe import Score
from gancore.scoring import Counts, Inputs, check_scoring, check_section, score
from gancore.scoring.fidelity import settings as protocol_of
from gancore.scoring.fidelity import statistics
from gancore.scoring.metrics import metric

Array = NDArray[np.float64]
NOTHING = Dataset("nothing", torch.zeros(1, 1, 1, 1, dtype=torch.uint8))


def drawn(count: int, seed: int, size: int = 4, shift: float = 0.0, scale: float = 1.0) -> Tensor:
    numbers = np.random.default_rng(seed).normal(shift, scale, (count, size))
    return torch.from_numpy(numbers.astype(np.float32))


def answer(name: str, ours: Tensor, theirs: Tensor, seed: int = 0) -> dict[str, float]:
    """Compute a metric of features, or logits, alone."""
    inputs = Inputs(
        NOTHING.samples,
        NOTHING,
        seed=seed,
        features=ours,
        logits=ours,
        reference_features=theirs,
        reference_statistics=statistics(theirs),
    )
    return dict(metric(name)(inputs))


def frechet(one: Array, other: Array) -> float:
    """‖m₁ − m₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½), with the unbiased covariance (Heusel et al., 2017)."""
    covariances = [np.cov(x, rowvar=False) for x in (one, other)]
    root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
    mean = one.mean(0) - other.mean(0)
    return float(mean @ mean + np.trace(covariances[0] + covariances[1] - 2 * root))


def test_fid_is_the_frechet_distance_of_gaussians() -> None:
    ours, theirs = drawn(50, 0), drawn(70, 1, shift=0.5, scale=2.0)
    expected = frechet(ours.double().numpy(), theirs.double().numpy())
    assert answer("fid", ours, theirs) == {"fid": pytest.approx(expected, rel=1e-6)}
    assert answer("fid", ours, ours)["fid"] == pytest.approx(0, abs=1e-6)
    shifted = ours + torch.tensor([3.0, 0.0, 4.0, 0.0])
    assert answer("fid", shifted, ours)["fid"] == pytest.approx(25, rel=1e-5)


def test_statistics_are_mean_and_unbiased_covariance() -> None:
    features = drawn(30, 2)
    made = statistics(features)
    np.testing.assert_allclose(made.mean, features.double().numpy().mean(0), rtol=1e-6)
    expected = np.cov(features.double().numpy(), rowvar=False)
    np.testing.assert_allclose(made.covariance, expected, rtol=1e-6)


def inception_score(logits: Array, seed: int) -> tuple[float, float]:
    """exp E KL(p(y|x) ‖ p(y)) over ten parts of shuffled samples (Salimans et al., 2016)."""
    logits = logits[np.random.RandomState(seed).permutation(len(logits))]
    shares = np.exp(logits - np.logaddexp.reduce(logits, axis=1, keepdims=True))
    scores = []
    for part in np.array_split(shares, 10):
        divergence = (part * (np.log(part) - np.log(part.mean(0)))).sum(1).mean()
        scores.append(math.exp(divergence))
    return float(np.mean(scores)), float(np.std(scores))


@pytest.mark.parametrize("seed", [0, 5, 2**32 + 5])
def test_the_inception_score_over_ten_parts(seed: int) -> None:
    logits = drawn(120, 3, scale=2.0)
    mean, deviation = inception_score(logits.double().numpy(), seed % 2**32)
    found = answer("isc", logits, logits, seed)
    assert found["isc"] == pytest.approx(mean, rel=1e-5)
    assert found["isc_std"] == pytest.approx(deviation, rel=1e-4)


def test_the_inception_score_of_certain_and_even_classes_is_their_number() -> None:
    certain = 50.0 * torch.eye(5).repeat(400, 1)
    assert answer("isc", certain, certain)["isc"] == pytest.approx(5, rel=0.02)
    unsure = torch.zeros(40, 5)
    assert answer("isc", unsure, unsure)["isc"] == pytest.approx(1, rel=1e-6)


def mmd(one: Array, other: Array) -> float:
    """Unbiased MMD² under (x·y / D + 1)³ (Bińkowski et al., 2018), by two loops' worth of sums."""

    def kernel(x: Array, y: Array) -> Array:
        product: Array = (x @ y.T / x.shape[1] + 1) ** 3
        return product

    n, m = len(one), len(other)
    within = [
        (kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1))
        for x in (one, other)
    ]
    return float(sum(within) - 2 * kernel(one, other).sum() / (n * m))


def test_kid_of_all_samples_is_the_unbiased_mmd() -> None:
    """Of as many of each kind: a subset is all of them, whatever is drawn."""
    ours, theirs = drawn(40, 4), drawn(40, 5, shift=0.3)
    found = answer("kid", ours, theirs)
    assert found["kid"] == pytest.approx(mmd(ours.double().numpy(), theirs.double().numpy()))
    assert found["kid_std"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("counts", [(30, 60), (60, 30)])
def test_subsets_of_kid_are_no_larger_than_the_fewer_samples(counts: tuple[int, int]) -> None:
    """Whichever kind has fewer of them; its mean over subsets is near that over all samples."""
    ours, theirs = drawn(counts[0], 6), drawn(counts[1], 7, shift=1.0)
    found = answer("kid", ours, theirs)
    expected = mmd(ours.double().numpy(), theirs.double().numpy())
    assert found["kid_std"] > 0
    assert found["kid"] == pytest.approx(expected, abs=4 * found["kid_std"] / math.sqrt(100))
    assert protocol_of(*counts)["kid_subset_size"] == 30


def test_what_a_protocol_tells_of_images() -> None:
    about = {"isc_splits": 10, "kid_subsets": 100}
    assert protocol_of(5000, 4000) == {**about, "kid_subset_size": 1000}
    assert protocol_of(999, 4000) == {**about, "kid_subset_size": 999}
    assert protocol_of(4000, 999) == {**about, "kid_subset_size": 999}


def among(points: Array, others: Array) -> float:
    """The share of points within some other's distance to its third neighbour."""
    far = np.linalg.norm(others[:, None] - others[None], axis=2)
    radius = np.sort(far, axis=1)[:, 3]  # 0 is the point itself
    return float((np.linalg.norm(points[:, None] - others[None], axis=2) <= radius).any(1).mean())


@given(st.integers(0, 1000), st.floats(0, 3), st.floats(0.3, 3))
@settings(max_examples=20, deadline=None)
def test_precision_and_recall_are_shares_among_neighbours(
    seed: int, shift: float, scale: float
) -> None:
    ours, theirs = drawn(30, seed, 2, shift, scale), drawn(40, seed + 1, 2)
    found = answer("prc", ours, theirs)
    fake, real = ours.double().numpy(), theirs.double().numpy()
    assert found["precision"] == pytest.approx(among(fake, real), abs=1 / 30 + 1e-9)
    assert found["recall"] == pytest.approx(among(real, fake), abs=1 / 40 + 1e-9)


def test_one_mode_of_two_is_precise_and_recalls_half() -> None:
    theirs = torch.cat([drawn(40, 8), drawn(40, 9, shift=50.0)])
    found = answer("prc", theirs[:40] + 1e-3, theirs)
    assert found["precision"] == 1.0
    assert found["recall"] == pytest.approx(0.5, abs=1e-9)


Check = Callable[[int, int], None]


def by_score(samples: int, reference: int) -> None:
    real = Dataset("part", digits().samples[:reference])
    score(digits().samples[:samples], real, metrics=["fid"], extractor_name="digits")


def by_check(samples: int, reference: int) -> None:
    real = Dataset("part", digits().samples[:reference])
    check_scoring(real, Score(metrics=("fid",), samples=samples, extractor="digits"))


@pytest.mark.parametrize("check", [by_score, by_check])
def test_fid_needs_as_many_of_either_kind_as_features(check: Check) -> None:
    check(64, 64)
    with pytest.raises(UnfitError, match=r"63 generated and 64 real: raise score.samples, or use"):
        check(63, 64)
    with pytest.raises(UnfitError, match=r"64 generated and 63 real: use kid$"):
        check(64, 63)


@pytest.mark.parametrize(
    ("name", "counts", "told"),
    [
        ("fid", Counts(63, None, 64), "63 generated: raise score.samples, or use kid, or w2 where"),
        ("fid", Counts(64, None, 64), None),
        ("isc", Counts(9, 100, 64), "IS needs 10 samples or more, here are 9"),
        ("isc", Counts(10, 1, 64), None),
        ("prc", Counts(3, 100, 64), "3 generated and 100 real: raise score.samples"),
        ("prc", Counts(100, 3, 64), "100 generated and 3 real: leave prc out"),
        ("prc", Counts(4, 4, 64), None),
        ("kid", Counts(2, 2, 64), None),
    ],
)
def test_how_many_samples_each_needs(name: str, counts: Counts, told: str | None) -> None:
    refusal = metric(name).refuses(counts)
    assert refusal is None if told is None else told in (refusal or "")


def test_a_recipe_s_section_is_refused_by_generated_samples_alone() -> None:
    check_section(Score(metrics=("fid", "kid"), samples=64, extractor="digits"))
    with pytest.raises(UnfitError, match="63 generated"):
        check_section(Score(metrics=("fid",), samples=63, extractor="digits"))
    assert UnfitError.exit_code == 2
