"""Pairs of distributions whose Wasserstein-1 distance and best critic are known exactly.

P is real, Q is generated, and T carries P to Q. The potential f has slope 1 at most, and falls by
the whole length of each move x → T(x). So no critic of slope 1 sees more than f does, no transport
is shorter than T, and W1(P, Q) = E‖x − T(x)‖ (Kantorovich and Rubinstein's duality; Korotin et
al., 2022, "Kantorovich Strikes Back!", section 3, build their pairs of such funnels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SPREAD = 1.5
"""Standard deviation of each coordinate of an apex."""


class Pair(Protocol):
    """P = N(0, I) in `dimension` dimensions, and Q, which T makes of it."""

    @property
    def name(self) -> str:
        """What the card calls it."""

    @property
    def dimension(self) -> int:
        """Numbers in a sample."""

    def move(self, x: Tensor) -> Tensor:
        """Return T(x) for x (B, d)."""

    def potential(self, x: Tensor) -> Tensor:
        """Return f(x) as (B,) for x (B, d)."""

    def gradient(self, x: Tensor) -> Tensor:
        """Return ∇f(x) as (B, d) for x (B, d)."""


@dataclass(frozen=True, eq=False)
class Funnels:
    """f(x) = minₙ(‖x − aₙ‖ + bₙ), T(x) = x + part·(aₙ − x), with n that of the minimum.

    apexes   (N, d) the aₙ
    heights  (N,) the bₙ
    part     how far a sample goes towards its apex, in (0, 1)

    A move towards aₙ keeps n: by it ‖x − aₙ‖ falls by its length, and no other term by more. So f
    falls by the length.
    """

    apexes: Tensor
    heights: Tensor
    part: float = 0.5

    @classmethod
    def drawn(cls, count: int, dimension: int) -> Funnels:
        """Return funnels whose apexes are 1.5·N(0, I), the same ones at every call."""
        random = torch.Generator().manual_seed(1000 * dimension + count)
        apexes = SPREAD * torch.randn(count, dimension, generator=random, dtype=torch.float64)
        return cls(apexes, torch.zeros(count, dtype=torch.float64))

    @classmethod
    def radial(cls, dimension: int) -> Funnels:
        """Return the one funnel at the origin: f(x) = ‖x‖, T(x) = x/2, W1 = E‖x‖/2."""
        return cls(torch.zeros(1, dimension).double(), torch.zeros(1).double())

    @property
    def name(self) -> str:
        """Such as "funnels8-16": so many, in so many dimensions."""
        return f"funnels{len(self.apexes)}-{self.dimension}"

    @property
    def dimension(self) -> int:
        """Numbers in a sample."""
        return self.apexes.shape[1]

    def _nearest(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the apex that each sample belongs to, and f."""
        apexes = self.apexes.to(x.dtype)
        terms = torch.linalg.vector_norm(x[:, None] - apexes, dim=2) + self.heights.to(x.dtype)
        least, index = terms.min(dim=1)
        return apexes[index], least

    def move(self, x: Tensor) -> Tensor:
        """Return T(x)."""
        apex, _ = self._nearest(x)
        return x + self.part * (apex - x)

    def potential(self, x: Tensor) -> Tensor:
        """Return f(x)."""
        return self._nearest(x)[1]

    def gradient(self, x: Tensor) -> Tensor:
        """Return ∇f(x) = (x − aₙ)/‖x − aₙ‖."""
        apex, _ = self._nearest(x)
        return torch.nn.functional.normalize(x - apex, dim=1)


@dataclass(frozen=True, eq=False)
class Shift:
    """Q = P + v, and f(x) = −⟨v, x⟩/‖v‖.

    vector  (d,) the v
    """

    vector: Tensor

    @classmethod
    def along(cls, dimension: int, length: float = 1.0) -> Shift:
        """Return the shift by `length` along the diagonal."""
        vector = torch.full((dimension,), length / math.sqrt(dimension), dtype=torch.float64)
        return cls(vector)

    @property
    def name(self) -> str:
        """Such as "shift-16": in so many dimensions."""
        return f"shift-{self.dimension}"

    @property
    def dimension(self) -> int:
        """Numbers in a sample."""
        return len(self.vector)

    def move(self, x: Tensor) -> Tensor:
        """Return x + v."""
        return x + self.vector.to(x.dtype)

    def potential(self, x: Tensor) -> Tensor:
        """Return f(x)."""
        return -x @ self._direction(x)

    def gradient(self, x: Tensor) -> Tensor:
        """Return ∇f(x), the same everywhere."""
        return (-self._direction(x)).expand_as(x)

    def _direction(self, x: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.vector, dim=0).to(x.dtype)


DIMENSIONS = (2, 16)
"""Those of the funnels, unless others are asked for."""

HIGHEST = 128
"""The dimension that `--all` adds. 800 updates do not train a critic out there."""


def pairs(dimensions: Sequence[int] = DIMENSIONS, *, everything: bool = False) -> list[Pair]:
    """Return the pairs of a card: eight funnels at each dimension, and the shift at the highest.

    everything: one funnel and the shift at each dimension too, and all of it at 128
    """
    known = sorted({*dimensions, HIGHEST} if everything else {*dimensions})
    made: list[Pair] = [Funnels.drawn(8, dimension) for dimension in known]
    if everything:
        made += [Funnels.radial(dimension) for dimension in known]
    return [*made, *(Shift.along(dimension) for dimension in (known if everything else known[-1:]))]
