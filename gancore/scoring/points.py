"""Exact scores of two-dimensional toys and other points: modes, quality and 2-Wasserstein."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from gancore.data import Dataset, Truth
from gancore.errors import ScoreError
from gancore.isolation.caller import leaving_no_trace

SIGMAS = 3.0
"""A sample is of high quality within so many standard deviations of the truth's nearest point."""

W2_SAMPLES = 2000
"""Samples of each kind for the 2-Wasserstein distance, whose cost grows with their third power."""

DISTANCES = 1 << 22
"""Distances that are in memory at a time: 32 MiB, whatever the number of samples."""


@leaving_no_trace
def score_points(
    fake: Tensor, real: Dataset, *, metrics: Iterable[str], seed: int = 0
) -> dict[str, Any]:
    """Score generated points and say how: {"scores": {…}, "protocol": {…}}.

    fake     float32 (N, d)
    real     the reference, with `truth` for modes and quality
    metrics  of modes (those with a sample of high quality; Lin et al., 2018), quality (the share
             of samples within 3 standard deviations of the nearest mode, or of the curve) and w2
             (2-Wasserstein distance between min(N, 2,000) samples of each kind, with the distance
             of as many other real ones beside it as w2_real: what chance alone makes of it)
    seed     for the choice of real samples

    Raises ScoreError for other metrics, where there is no truth to compare with, and for points
    that are inf or nan.
    """
    metrics = tuple(metrics)
    check_points(real, metrics)
    _refuse_broken(fake, "generated")
    count = min(len(fake), W2_SAMPLES, len(real) // 2)
    near = torch.empty(0)
    if real.truth is not None and not {"modes", "quality"}.isdisjoint(metrics):
        near = nearest(fake, real.truth)
    scores: dict[str, float] = {}
    for metric in metrics:
        match metric:
            case "modes":
                scores["modes"] = float(near[near >= 0].bincount().count_nonzero())
            case "quality":
                scores["quality"] = (near >= 0).double().mean().item()
            case "w2":
                order = np.random.RandomState(seed % 2**32).permutation(len(real))[: 2 * count]
                chosen, others = (real.samples.cpu()[part] for part in np.split(order, 2))
                scores["w2"] = wasserstein2(fake[:count], chosen)
                scores["w2_real"] = wasserstein2(others, chosen)
    return {
        "scores": scores,
        "protocol": {
            "reference": {
                "name": real.name,
                "split": real.split,
                "samples": len(real),
                "sha256": real.sha256,
            },
            "samples": len(fake),
            "seed": seed,
            "sigmas": SIGMAS,
            "w2_samples": count,
            "dtype": "float64",
            "versions": {name: version(name) for name in ("gancore", "torch", "numpy", "scipy")},
        },
    }


def nearest(points: Tensor, truth: Truth) -> Tensor:
    """Return for each of the points (N, d) the row of the truth it belongs to: int64 (N,).

    It is −1 for a point over 3 standard deviations away from all of them.
    """
    found = []
    # in parts of nearly one size: cdist computes a few points in another way than many
    for part in points.tensor_split(1 + len(points) * len(truth.points) // DISTANCES):
        far = torch.cdist(part.double().cpu(), truth.points.double())
        distance, row = far.min(dim=1)
        found.append(torch.where(distance <= SIGMAS * truth.deviation, row, -1))
    return torch.cat(found)


def wasserstein2(one: Tensor, other: Tensor) -> float:
    """Return the 2-Wasserstein distance between two samples (N, d) of equal size.

    It is the root of the least mean squared distance over all ways to pair them, found exactly
    by scipy's linear_sum_assignment. Raises ValueError for samples of different sizes.
    """
    if len(one) != len(other):
        raise ValueError(f"expected samples of one size, got {len(one)} and {len(other)}")
    costs = cdist(one.double().cpu().numpy(), other.double().cpu().numpy(), "sqeuclidean")
    return float(np.sqrt(costs[linear_sum_assignment(costs)].mean()))


def check_points(real: Dataset, metrics: Iterable[str]) -> None:
    """Raise ScoreError for metrics that can't be computed for these points."""
    possible = ["w2"]
    if real.truth is not None:
        possible = (["modes"] if real.truth.modes else []) + ["quality", "w2"]
    if len(real) < 4:
        raise ScoreError(f"{real.name!r} has {len(real)} points: too few to score against")
    if wrong := [each for each in metrics if each not in possible]:
        raise ScoreError(
            f"score.metrics: {', '.join(wrong)} can't be computed for the points of "
            f"{real.name!r}: choose of {', '.join(possible)}, or [] to train without scoring"
        )
    _refuse_broken(real.samples, "real")


def _refuse_broken(points: Tensor, kind: str) -> None:
    """Raise ScoreError with the count of points, (N, d), that are inf or nan."""
    if wrong := int((~points.isfinite().all(1)).sum()):
        raise ScoreError(
            f"{wrong:,} of {len(points):,} {kind} points hold inf or nan, which have no distance "
            "to any other: look for where they come from"
        )
