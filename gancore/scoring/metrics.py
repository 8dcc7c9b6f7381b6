"""Metrics: what a score is called, which way is better, what it needs, and how it is computed.

A metric is one `Metric`. An entry point of the group `gancore.metrics` names it, ours below as
those of other packages; docs/metrics.md shows how to write one. Nothing here imports torch: what
computes ours is named by its path, and imported at its first use.
"""

from __future__ import annotations

import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, combinations
from typing import TYPE_CHECKING, Literal

from gancore import entrypoints
from gancore.errors import GancoreError, MissingError, PluginError

if TYPE_CHECKING:
    from gancore.data import Dataset
    from gancore.scoring.inputs import Inputs

Need = Literal["features", "logits", "reference_features", "reference_statistics"]
NEEDS = ("features", "logits", "reference_features", "reference_statistics")
BESIDE = ("std", "real")
KEY = re.compile(r"[a-z][a-z0-9_]{0,49}")

CORE = "gancore"
"""The distribution that brings our metrics."""

ISC_SPLITS = 10
NEIGHBOUR = 3
"""Whose distance is a sample's radius in precision and recall (Kynkäänniemi et al., 2019)."""


@dataclass(frozen=True)
class Value:
    """One number of a metric, as reports and boards have to know it.

    name       what tables and pages call it
    better     which way is better
    scale      how two of it compare: by their ratio (`log`), as shares from 0 to 1 do too
               (`proportion`), or by their difference (`difference`), which any number has. A board
               that meets 0 or less takes differences, whatever the scale
    beside     endings of the keys of numbers shown with it: `std`, its standard deviation, and
               `real`, the same score of real samples
    elsewhere  its name in Inception's features by other weights than the canonical ones
    """

    name: str
    better: Literal["higher", "lower"]
    scale: Literal["log", "proportion", "difference"] = "log"
    beside: tuple[Literal["std", "real"], ...] = ()
    elsewhere: str | None = None

    def __post_init__(self) -> None:
        """Check what is written by hand. Raises ValueError."""
        if not (self.name and self.name.isprintable()):
            raise ValueError(f"name {self.name!r}: expected a name that can be printed")
        for field, allowed in (
            ("better", ("higher", "lower")),
            ("scale", ("log", "proportion", "difference")),
        ):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field}: expected one of {', '.join(allowed)}")
        if not {*self.beside} <= {*BESIDE}:
            raise ValueError(f"beside: expected of {', '.join(BESIDE)}")


@dataclass(frozen=True)
class Counts:
    """How many samples there are, before any is made.

    samples      generated ones
    reference    real ones; None while no data are loaded
    feature_dim  the length of the extractor's features; None without an extractor
    """

    samples: int
    reference: int | None = None
    feature_dim: int | None = None

    @property
    def fewest(self) -> int:
        """The samples of the kind of which there are fewer, as far as that is known."""
        return self.samples if self.reference is None else min(self.samples, self.reference)

    def __str__(self) -> str:
        real = "" if self.reference is None else f" and {self.reference} real"
        return f"{self.samples} generated{real}"


def _fits_all(data: Dataset) -> bool:
    return True


def _refuses_none(counts: Counts) -> str | None:
    return None


@dataclass(frozen=True)
class Metric:
    """A metric: its numbers, what it needs, and how it is computed.

    values   the numbers by their keys, the first of which ranks. A key is the metric's name, or
             begins with it and `_`
    compute  takes `gancore.scoring.Inputs`, leaves them unchanged, and returns every number of
             `keys`. Or its path, `module:function`, which is imported at its first use
    of       what it is for: `images`, `points`, or `both`
    needs    what it takes beside samples and reference: `features` (N, D) and `logits` (N, K) of
             generated images, `reference_features` (M, D) of real ones, and
             `reference_statistics`, the mean and covariance of these
    fits     whether it can be computed for a data set of that kind
    refuses  returns what is wrong with so few samples, and the remedy; None where nothing is

    Raises ValueError for values, keys, needs or a function that are none.
    """

    values: Mapping[str, Value]
    compute: Callable[[Inputs], Mapping[str, float]] | str
    of: Literal["images", "points", "both"] = "images"
    needs: Set[Need] = frozenset()
    fits: Callable[[Dataset], bool] = _fits_all
    refuses: Callable[[Counts], str | None] = _refuses_none

    def __post_init__(self) -> None:
        """Check what is written by hand. Raises ValueError."""
        if not self.values or not all(map(KEY.fullmatch, self.values)):
            raise ValueError(f"values: expected keys of small letters, got {[*self.values]}")
        if taken := [key for key in self.values if key.endswith(("_std", "_real"))]:
            raise ValueError(f"values: {taken[0]} is named like a number that stands `beside`")
        if not (isinstance(self.compute, str) or callable(self.compute)):
            raise ValueError(f"compute: expected a function or its path, got {self.compute!r}")
        object.__setattr__(self, "needs", frozenset(self.needs))
        if self.of not in ("images", "points", "both"):
            raise ValueError(f"of: expected images, points or both, got {self.of!r}")
        if not self.needs <= {*NEEDS}:
            raise ValueError(f"needs: expected of {', '.join(NEEDS)}, got {sorted(self.needs)}")
        if self.needs and self.of != "images":
            raise ValueError("needs: points have no features or logits: set of to images")

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of all its numbers, those beside others included."""
        return tuple(
            key
            for name, value in self.values.items()
            for key in (name, *(f"{name}_{ending}" for ending in value.beside))
        )

    def takes(self, data: Dataset) -> bool:
        """Whether it can be computed for this data set."""
        return self.of in ("both", "images" if data.is_images else "points") and self.fits(data)

    @property
    def function(self) -> Callable[[Inputs], Mapping[str, float]]:
        """What computes it, imported where it was given by its path."""
        if isinstance(self.compute, str):
            return pkgutil.resolve_name(self.compute)  # type: ignore[no-any-return]
        return self.compute

    def __call__(self, inputs: Inputs) -> Mapping[str, float]:
        """Compute it."""
        return self.function(inputs)


def metric(name: str) -> Metric:
    """Return the installed metric of this name.

    Raises MissingError where there is none, and PluginError for one that can't be used.
    """
    try:
        return loaded(entrypoints.get("metric", name))
    except MissingError as error:
        raise MissingError(f"score.metrics: {error}", close=error.close) from None


def named(names: Iterable[str]) -> dict[str, Metric]:
    """Return installed metrics by their names.

    Raises as `metric`, and PluginError for two that have a number of one name.
    """
    metrics = {name: metric(name) for name in names}
    for (one, its), (other, theirs) in combinations(metrics.items(), 2):
        if both := {*its.keys} & {*theirs.keys}:
            raise PluginError(
                f"score.metrics: {one} and {other} both have a number {min(both)!r}: leave one out"
            )
    return metrics


def installed() -> Iterator[tuple[str, Metric]]:
    """Yield every installed metric that can be used, with its name."""
    for point in entrypoints.find("metric"):
        with suppress(GancoreError):
            yield point.name, loaded(point)


def metric_of(key: str) -> Metric | None:
    """Return the metric whose number a score is, by its key; None where that is not installed.

    Of the metrics of other packages only those are imported whose names the key begins with. Where
    several have the key, it is the one's with the longest name.
    """
    for point in sorted(entrypoints.find("metric"), key=lambda point: -len(point.name)):
        if point.distribution == CORE or f"{key}_".startswith(f"{point.name}_"):
            with suppress(GancoreError):
                known = loaded(point)
                if key in known.values:
                    return known
    return None


def loaded(point: entrypoints.Available) -> Metric:
    """Import a metric. Raises PluginError for one that can't be used."""
    made = entrypoints.load(point)
    if not isinstance(made, Metric):
        raise PluginError(f"metric {point}: {made!r} is no gancore.scoring.Metric")
    if point.distribution == CORE:
        return made
    if not KEY.fullmatch(point.name):
        raise PluginError(
            f"metric {point}: its name begins its keys, which have small letters, digits and _: "
            "rename its entry point"
        )
    if wrong := [key for key in made.values if not f"{key}_".startswith(f"{point.name}_")]:
        raise PluginError(
            f"metric {point} has the key {wrong[0]!r}: call it {point.name!r}, or "
            f"'{point.name}_{wrong[0]}'"[:200]
        )
    if reserved := {*made.keys} & {*chain.from_iterable(ours.keys for ours in OURS)}:
        raise PluginError(f"metric {point} has gancore's own key {min(reserved)!r}: rename it")
    return made


def _fid_refuses(counts: Counts) -> str | None:
    if counts.feature_dim is None or counts.fewest >= counts.feature_dim:
        return None
    remedy = "raise score.samples, or use kid" if counts.fewest == counts.samples else "use kid"
    remedy += ", or w2 where the data are points" if counts.reference is None else ""
    return (
        f"FID in {counts.feature_dim} features needs as many samples of each kind, and here "
        f"are {counts}: {remedy}"
    )


def _isc_refuses(counts: Counts) -> str | None:
    if counts.samples >= ISC_SPLITS:
        return None
    return f"IS needs {ISC_SPLITS} samples or more, here are {counts.samples}"


def _prc_refuses(counts: Counts) -> str | None:
    if counts.fewest > NEIGHBOUR:
        return None
    remedy = "raise score.samples" if counts.fewest == counts.samples else "leave prc out"
    return (
        f"prc looks at each sample's neighbour number {NEIGHBOUR}, and here are {counts}: {remedy}"
    )


FID = Metric(
    {"fid": Value("FID", "lower", elsewhere="Fréchet distance")},
    "gancore.scoring.fidelity:fid",
    needs={"features", "reference_statistics"},
    refuses=_fid_refuses,
)
"""Heusel et al., 2017."""

ISC = Metric(
    {"isc": Value("Inception Score", "higher", beside=("std",))},
    "gancore.scoring.fidelity:isc",
    needs={"logits"},
    refuses=_isc_refuses,
)
"""Salimans et al., 2016."""

KID = Metric(
    {"kid": Value("KID", "lower", beside=("std",))},
    "gancore.scoring.fidelity:kid",
    needs={"features", "reference_features"},
)
"""Bińkowski et al., 2018. It is unbiased, so that it may be below 0."""

PRC = Metric(
    {
        "precision": Value("precision", "higher", "proportion"),
        "recall": Value("recall", "higher", "proportion"),
    },
    "gancore.scoring.fidelity:prc",
    needs={"features", "reference_features"},
    refuses=_prc_refuses,
)
"""Kynkäänniemi et al., 2019."""

MODES = Metric(
    {"modes": Value("modes covered", "higher")},
    "gancore.scoring.points:modes",
    of="points",
    fits=lambda data: data.truth is not None and data.truth.modes,
)
"""The modes with a sample of high quality (Lin et al., 2018)."""

QUALITY = Metric(
    {"quality": Value("share of high-quality samples", "higher", "proportion")},
    "gancore.scoring.points:quality",
    of="points",
    fits=lambda data: data.truth is not None,
)
"""The share of samples within 3 standard deviations of the nearest mode, or of the curve."""

W2 = Metric(
    {"w2": Value("2-Wasserstein distance", "lower", beside=("real",))},
    "gancore.scoring.points:w2",
    of="points",
)
"""The 2-Wasserstein distance, with that of as many other real samples beside it."""

OURS = (FID, ISC, KID, PRC, MODES, QUALITY, W2)
"""The core's metrics, whose keys no other may have."""
