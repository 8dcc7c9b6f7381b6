"""Speed as a ratio: ways to do the same thing take turns, so that all see the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The median of some numbers, between their quartiles."""

    low: float
    median: float
    high: float

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Return the spread of two numbers or more."""
        return cls(*statistics.quantiles(values, n=4, method="inclusive"))

    def __str__(self) -> str:
        low, median, high = (
            f"{each:,.0f}" if each >= 100 else f"{each:.3g}"
            for each in (self.low, self.median, self.high)
        )
        return f"{median} ({low} … {high})"


def interleaved(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each way took in each round; one more, the first, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def ratio(slower: list[float], faster: list[float]) -> Spread:
    """Return how many times as long `slower` took, round by round."""
    return Spread.of([one / other for one, other in zip(slower, faster, strict=True)])
