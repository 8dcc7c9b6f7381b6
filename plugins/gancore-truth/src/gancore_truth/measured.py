"""Measures: a value of several seeds with its interval, which values are best, and which differ."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95
LEAST_DEVIATION = 0.01
"""Of a value, relatively, below which the gate takes no standard deviation for real."""


@dataclass(frozen=True)
class Measure:
    """The mean of some seeds' values, with Student's 95 % interval; one value is its own.

    values  by seed, finite
    """

    values: tuple[float, ...]

    @property
    def value(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float:
        """The standard deviation of the values, 0 of one."""
        return statistics.stdev(self.values) if len(self.values) > 1 else 0.0

    @property
    def half(self) -> float:
        """Half the interval's width, 0 of one value."""
        count = len(self.values)
        if count < 2:
            return 0.0
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, count - 1))
        return quantile * self.deviation / math.sqrt(count)

    def table(self) -> dict[str, float | list[float]]:
        """Return it as card.json has it."""
        ends = {"low": self.value - self.half, "high": self.value + self.half}
        return {"value": self.value, **ends, "values": list(self.values)}


def marks(column: Mapping[str, Measure], badness: Callable[[float], float]) -> dict[str, str]:
    """Return "best" for the best of a column, and "tie" for what its interval can't tell from it.

    badness: of a value, 0 at best

    A tie is one whose difference to the best is no larger than its 95 % bound (Welch).
    """
    if not column:
        return {}
    first = min(column, key=lambda name: badness(column[name].value))
    ties = {
        name: "tie"
        for name, measure in column.items()
        if not apart(badnesses(column[first], badness), badnesses(measure, badness))
    }
    return {**ties, first: "best"}


def badnesses(measure: Measure, badness: Callable[[float], float]) -> Measure:
    """Return the badness of each value."""
    return Measure(tuple(map(badness, measure.values)))


def apart(one: Measure, other: Measure) -> bool:
    """Whether two means differ at the 5 % level: by Welch's test, or exactly, of single values."""
    if one.deviation == other.deviation == 0:
        return not math.isclose(one.value, other.value, rel_tol=1e-9, abs_tol=1e-12)
    return bool(stats.ttest_ind(one.values, other.values, equal_var=False).pvalue < 0.05)


def allowed(one: Measure, other: Measure, measures: int) -> float:
    """Return how far two cards' values may be apart: t at .999 over so many measures.

    Bonferroni: the level .001 is shared out. The pooled standard deviation is 1 % of the value at
    least, and single values, which are exact, have that one.
    """
    n, m = len(one.values), len(other.values)
    free = n + m - 2
    pooled = math.sqrt(
        ((n - 1) * one.deviation**2 + (m - 1) * other.deviation**2) / free if free else 0.0
    )
    largest = max(abs(one.value), abs(other.value))
    level = 1 - 0.001 / measures / 2
    quantile = float(stats.t.ppf(level, free) if free else stats.norm.ppf(level))
    return quantile * max(pooled, LEAST_DEVIATION * largest) * math.sqrt(1 / n + 1 / m)


def paired(values: Sequence[Mapping[str, float]]) -> dict[str, Measure]:
    """Return a measure for each key of some seeds' values."""
    return {key: Measure(tuple(seed[key] for seed in values)) for key in values[0]}
