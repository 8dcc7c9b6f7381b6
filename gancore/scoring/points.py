"""The metrics of two-dimensional toys and other points: modes, quality and 2-Wasserstein, exact."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from torch import Tensor

from gancore.data import Dataset, Truth
from gancore.scoring.inputs import Inputs

SIGMAS = 3.0
"""A sample is of high quality within so many standard deviations of the truth's nearest point."""

W2_SAMPLES = 2000
"""Samples of each kind for the 2-Wasserstein distance, whose cost grows with their third power."""

DISTANCES = 1 << 22
"""Distances that are in memory at a time: 32 MiB, whatever the number of samples."""


def settings(samples: int, reference: int) -> dict[str, float]:
    """Return what a protocol tells of how so many points were scored against so many real ones."""
    return {"sigmas": SIGMAS, "w2_samples": min(samples, W2_SAMPLES, reference // 2)}


def modes(inputs: Inputs) -> dict[str, float]:
    """Return how many modes have a sample of high quality."""
    near = nearest(inputs.samples, _truth(inputs.reference))
    return {"modes": float(near[near >= 0].bincount().count_nonzero())}


def quality(inputs: Inputs) -> dict[str, float]:
    """Return the share of samples of high quality."""
    near = nearest(inputs.samples, _truth(inputs.reference))
    return {"quality": (near >= 0).double().mean().item()}


def w2(inputs: Inputs) -> dict[str, float]:
    """Return the distance from as many real samples, and that of as many other real ones.

    The second is what chance alone makes of it. The seed chooses the real samples.
    """
    fake, real = inputs.samples, inputs.reference.samples
    count = int(settings(len(fake), len(real))["w2_samples"])
    order = np.random.RandomState(inputs.seed % 2**32).permutation(len(real))[: 2 * count]
    chosen, others = (real[part] for part in np.split(order, 2))
    return {"w2": wasserstein2(fake[:count], chosen), "w2_real": wasserstein2(others, chosen)}


def _truth(data: Dataset) -> Truth:
    assert data.truth is not None  # of no other data set are they asked
    return data.truth


def nearest(points: Tensor, truth: Truth) -> Tensor:
    """Return for each of the points (N, d) the row of the truth it belongs to: int64 (N,).

    It is −1 for a point over 3 standard deviations away from all of them.
    """
    rows = []
    # in parts of nearly one size: cdist computes a few points in another way than many
    for part in points.tensor_split(1 + len(points) * len(truth.points) // DISTANCES):
        far = torch.cdist(part.double().cpu(), truth.points.double())
        distance, row = far.min(dim=1)
        rows.append(torch.where(distance <= SIGMAS * truth.deviation, row, -1))
    return torch.cat(rows)


def wasserstein2(one: Tensor, other: Tensor) -> float:
    """Return the 2-Wasserstein distance between two samples (N, d) of equal size.

    It is the root of the least mean squared distance over all ways to pair them, found exactly
    by scipy's linear_sum_assignment. Raises ValueError for samples of different sizes.
    """
    if len(one) != len(other):
        raise ValueError(f"expected samples of one size, got {len(one)} and {len(other)}")
    costs = cdist(one.double().cpu().numpy(), other.double().cpu().numpy(), "sqeuclidean")
    return float(np.sqrt(costs[linear_sum_assignment(costs)].mean()))
