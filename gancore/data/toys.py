"""The two-dimensional toys of the WGAN-GP paper (Gulrajani et al., 2017, section 4.1).

Constants are those of the authors' `gan_toy.py`: points are drawn, then divided by a constant
near their standard deviation. `std` and `noise` are meant before that division.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from torch import Tensor

from gancore.data import Dataset, Truth

Samples = Annotated[int, Ge(1), Le(10_000_000)]
Spread = Annotated[float, Ge(0), Le(10)]
Seed = Annotated[int, Ge(0), Le(2**32 - 1)]

SCALES = {"gaussians8": 1.414, "gaussians25": 2.828, "swissroll": 7.5}
"""What the points of each toy are divided by."""


def gaussians8(*, samples: Samples = 100_000, std: Spread = 0.02, seed: Seed = 0) -> Dataset:
    """Return points around 8 centres on a circle: float32 (samples, 2), labels the mode.

    Radius 2 and standard deviation `std`, divided by 1.414. The points are shared out evenly
    among the modes (the authors draw the mode of each).

    samples: how many points.
    std: of each Gaussian, before the division.
    seed: of the random numbers.
    """
    angles = np.arange(8) * np.pi / 4
    centres = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _gaussians("gaussians8", centres, samples, std, seed)


def gaussians25(*, samples: Samples = 100_000, std: Spread = 0.05, seed: Seed = 0) -> Dataset:
    """Return points around 25 centres on a grid: float32 (samples, 2), labels the mode.

    Coordinates −4, −2, 0, 2, 4 and standard deviation `std`, divided by 2.828. The points are
    shared out evenly among the modes, as the authors do.

    samples: how many points.
    std: of each Gaussian, before the division.
    seed: of the random numbers.
    """
    steps = 2.0 * np.arange(-2, 3)
    centres = np.stack(np.meshgrid(steps, steps, indexing="ij"), axis=-1).reshape(25, 2)
    return _gaussians("gaussians25", centres, samples, std, seed)


def swissroll(*, samples: Samples = 100_000, noise: Spread = 0.25, seed: Seed = 0) -> Dataset:
    """Return points on a spiral: float32 (samples, 2), no labels.

    (t cos t, t sin t) with t uniform in [1.5π, 4.5π), Gaussian noise added, divided by 7.5: the
    first and last column of scikit-learn's make_swiss_roll.

    samples: how many points.
    noise: standard deviation, before the division.
    seed: of the random numbers.
    """
    random = np.random.RandomState(seed)
    points = _spiral(random.random_sample(samples))
    points += noise * random.standard_normal((samples, 2))
    scale = SCALES["swissroll"]
    truth = Truth(_tensor(_spiral(np.linspace(0, 1, 4000)) / scale), noise / scale, modes=False)
    return Dataset("swissroll", _tensor(points / scale), truth=truth)


Array = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


def _spiral(at: Array) -> Array:
    t = 1.5 * np.pi * (1 + 2 * at)
    return np.stack([t * np.cos(t), t * np.sin(t)], axis=1)


def _gaussians(name: str, centres: Array, samples: int, std: float, seed: int) -> Dataset:
    # NumPy promises that RandomState's numbers never change, so the data's hash does not either
    random = np.random.RandomState(seed)
    labels = random.permutation(np.arange(samples) % len(centres))
    points = centres[labels] + std * random.standard_normal((samples, 2))
    scale = SCALES[name]
    truth = Truth(_tensor(centres / scale), std / scale)
    return Dataset(name, _tensor(points / scale), torch.from_numpy(labels), truth=truth)


def _tensor(points: Array) -> Tensor:
    return torch.from_numpy(points).float()
