"""Statistics of a leaderboard: what a few seeds can say, and what they can't.

Entries are compared with the baseline seed by seed. Scores of GANs scatter in proportion to their
size, so the differences are those of logarithms: a paired t-test on them, corrected for the number
of entries by Holm's method (Holm, 1979). Bootstrap intervals are for display only: at three to
eight seeds they are too short to decide by.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import Annotated, Literal

import numpy as np
from pydantic import BeforeValidator, ConfigDict, Field, PlainSerializer
from scipy import optimize, stats

from gancore.files.stored import Stored, Whole

ALPHA = 0.05
"""The chance of a wrong verdict anywhere in a table where all entries are the same."""

POWER = 0.8
"""The chance with which a difference of the size told would have been seen."""

FEWEST = 3
"""Seeds below which nothing is decided."""

Verdict = Literal["baseline", "better", "worse", "tie", "undecided"]


Unsure = Annotated[
    float,
    Field(allow_inf_nan=True),
    BeforeValidator(lambda value: math.nan if value is None else value),
    PlainSerializer(lambda value: value if math.isfinite(value) else None, when_used="json"),
]
"""A number that too few seeds don't have: nan here, null in a file."""


class Part(Stored):
    """A part of leaderboard.json. What has a default may be missing in the file."""

    model_config = ConfigDict(frozen=True)


class Summary(Part):
    """The scores of one entry: the median and a 95 % bootstrap interval of it, for display."""

    median: Unsure = math.nan
    low: Unsure = math.nan
    high: Unsure = math.nan


class Comparison(Part):
    """An entry against the baseline, over the seeds that both have.

    seeds_compared
                how many seeds both have
    ratio, ratio_low, ratio_high
                the geometric mean of score ÷ baseline's with its 95 % interval; for scores that
                can be 0 or negative the mean difference (`scale` says which)
    p           of the paired t-test, before correction
    detectable  the smallest ratio above 1 (or difference) that so many seeds see with 80 % power,
                given how these scatter; None where nothing can be said
    """

    seeds_compared: Whole = 0
    scale: Literal["ratio", "difference"] = "ratio"
    ratio: Unsure = math.nan
    ratio_low: Unsure = math.nan
    ratio_high: Unsure = math.nan
    p: Unsure = math.nan
    detectable: float | None = None
    verdict: Verdict = "baseline"


def summarize(values: Sequence[float]) -> Summary:
    """Return the median of one score per seed, with its interval; a single value has none.

    Raises ValueError without values.
    """
    if not values:
        raise ValueError("no values to summarize")
    sample = np.asarray(values, dtype=np.float64)
    median = float(np.median(sample))
    if len(sample) < 2 or np.ptp(sample) == 0:
        return Summary(median=median, low=median, high=median)
    interval = stats.bootstrap(
        (sample,), np.median, method="percentile", confidence_level=1 - ALPHA, rng=0
    ).confidence_interval
    return Summary(median=median, low=float(interval.low), high=float(interval.high))


BySeed = Mapping[int, float]


def compare(
    pairs: Mapping[str, tuple[BySeed, BySeed]],
    *,
    higher_is_better: bool,
    by_difference: bool = False,
) -> dict[str, Comparison]:
    """Compare scores with baseline scores, by seed, for each name: (scores, baseline's).

    All comparisons over enough seeds are one family: the chance that any verdict of a table without
    differences is wrong is 5 %. The scale is the logarithm if all scores are positive, unless they
    are to be compared by_difference.
    """
    positive = not by_difference and all(
        value > 0 for both in pairs.values() for one in both for value in one.values()
    )
    family = sum(len(one.keys() & other.keys()) >= FEWEST for one, other in pairs.values())
    compared = {
        name: _compare(scores, baseline, log=positive, family=max(family, 1))
        for name, (scores, baseline) in pairs.items()
    }
    rejected = holm({name: one.p for name, one in compared.items() if _is_decidable(one)})
    return {
        name: one.model_copy(update={"verdict": _verdict(one, name in rejected, higher_is_better)})
        for name, one in compared.items()
    }


def method(compared: Iterable[Comparison]) -> str | None:
    """Return how these comparisons of one score were decided; None if none was."""
    decided = [one for one in compared if _is_decidable(one)]
    tested = [one for one in decided if one.detectable is not None]
    parts = []
    if tested:
        logarithms = " of logarithms" if tested[0].scale == "ratio" else ""
        seeds = span(one.seeds_compared for one in tested)
        parts.append(f"paired t-test{logarithms} over {seeds} seeds")
    if len(tested) < len(decided):
        parts.append("by their sign where all seeds differ alike")
    if len(decided) > 1:
        parts.append(f"Holm's correction for {len(decided)} entries")
    return ", ".join(parts) or None


def span(numbers: Iterable[int]) -> str:
    """Return the least and the greatest of whole numbers as text: `3 to 5`, or `5`."""
    known = [*numbers]
    return " to ".join(map(str, sorted({min(known), max(known)})))


def holm(p: Mapping[str, float], alpha: float = ALPHA) -> set[str]:
    """Return the hypotheses that Holm's step-down method rejects: p ≤ α/(m − k) from the least."""
    rejected: set[str] = set()
    for rank, name in enumerate(sorted(p, key=p.__getitem__)):
        if not p[name] <= alpha / (len(p) - rank):
            break
        rejected.add(name)
    return rejected


def detectable(deviation: float, seeds: int, alpha: float = ALPHA) -> float:
    """Return the mean difference that a paired t-test sees with 80 % power.

    deviation: of the differences; alpha: two-sided, after any correction. By the noncentral t.
    """
    return _shift(seeds - 1, alpha) * deviation / math.sqrt(seeds)


@cache
def _shift(freedom: int, alpha: float) -> float:
    border = stats.t.isf(alpha / 2, freedom)

    def miss(shift: float) -> float:
        return float(stats.nct.sf(border, freedom, shift)) - POWER

    high = border
    while miss(high) < 0:
        high *= 1.5
    return float(optimize.brentq(miss, 0.0, high))


def _compare(scores: BySeed, baseline: BySeed, *, log: bool, family: int) -> Comparison:
    seeds = sorted(scores.keys() & baseline.keys())
    pairs = np.array([(scores[seed], baseline[seed]) for seed in seeds], dtype=np.float64)
    pairs = pairs.reshape(-1, 2)
    differences = np.subtract(*(np.log(pairs) if log else pairs).T)
    count = len(differences)
    mean = float(differences.mean()) if count else math.nan
    low = high = p = math.nan
    least = None
    if count >= 2:
        deviation = float(differences.std(ddof=1))
        half = float(stats.t.isf(ALPHA / 2, count - 1)) * deviation / math.sqrt(count)
        low, high = mean - half, mean + half
        rounding = 1e-12 * (1.0 if log else float(np.abs(pairs).max()))
        if deviation > rounding:
            p = float(stats.ttest_1samp(differences, 0.0).pvalue)
            least = detectable(deviation, count, ALPHA / family)
        else:  # all differences are one number: sure, unless that is none
            p = 1.0 if abs(mean) <= rounding else 0.0
    back = _exp if log else float
    return Comparison(
        seeds_compared=count,
        scale="ratio" if log else "difference",
        ratio=back(mean),
        ratio_low=back(low),
        ratio_high=back(high),
        p=p,
        detectable=None if least is None else back(least),
        verdict="undecided",
    )


def _exp(value: float) -> float:
    """Return e to the power of a number; neither 0 nor inf, whatever that is."""
    return math.exp(min(max(value, -700.0), 700.0))


def _is_decidable(comparison: Comparison) -> bool:
    return comparison.seeds_compared >= FEWEST


def _verdict(comparison: Comparison, rejected: bool, higher_is_better: bool) -> Verdict:
    if not _is_decidable(comparison):
        return "undecided"
    if not rejected:
        return "tie"
    neutral = 1.0 if comparison.scale == "ratio" else 0.0
    return "better" if (comparison.ratio > neutral) == higher_is_better else "worse"
