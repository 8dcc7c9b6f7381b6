"""Scores and how they were taken: what scores.json holds, and what a score may be called.

FID is in Inception's features only. A file may hold scores of a metric that is not installed here:
such a score goes by its key, and lower is taken for better.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gancore.files.stored import Number, Stored, Text, Whole
from gancore.recipe import Score
from gancore.scoring.metrics import BESIDE, metric, metric_of

INCEPTION = "inception-v3-compat"
CANONICAL = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the Inception weights that make a Fréchet distance the FID of the field."""


class FeatureSpace(Stored):
    """The features that scores were taken in; points have none."""

    extractor: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.+-]{1,100}$")
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{8,64}$")

    @model_validator(mode="after")
    def _with_weights(self) -> Self:
        if self.extractor is not None and self.weights_sha256 is None:
            raise PydanticCustomError("unavailable", "an extractor without weights_sha256")
        return self


class RealSamples(Stored):
    """What the generated samples were compared with."""

    name: Text
    split: Text
    samples: Whole
    sha256: Text | None = None


class Protocol(FeatureSpace):
    """All that is shown of how scores were taken."""

    reference: RealSamples
    samples: Whole
    seed: Whole
    versions: dict[Text, Text]

    @model_validator(mode="after")
    def _with_versions(self) -> Self:
        if self.extractor is not None and "torch-fidelity" not in self.versions:
            raise PydanticCustomError(
                "unavailable", "an extractor without torch-fidelity's version"
            )
        return self


class Scores(Stored):
    """scores.json.

    metrics  what brought the metrics that are not the core's own, and a hash of their code
    """

    scores: dict[Text, Number]
    protocol: Protocol
    metrics: dict[Text, Text] = Field(default={})
    spread: Number | None = None
    notes: list[Text] = Field(default=[])
    step: Whole | None = None

    def together_with(self, before: Scores) -> Scores:
        """Return these and others of the same protocol; where both have one, this is taken."""
        both = {"scores": {**before.scores, **self.scores}}
        metrics = {**before.metrics, **self.metrics}
        return self.model_copy(update=both | ({"metrics": metrics} if metrics else {}))


def answers(scores: Scores | None, asked: Score, step: int) -> bool:
    """Return whether scores have all that a recipe's `[score]` asks for, of this step.

    Raises MissingError for a metric that is not installed.
    """
    if scores is None or scores.step != step:
        return False
    taken = scores.protocol
    return (
        taken.samples == asked.samples
        and taken.extractor in (None, asked.extractor)
        and all(key in scores.scores for key in keys(asked.metrics))
    )


def keys(metrics: Iterable[str]) -> list[str]:
    """Return what the scores of a recipe's metrics are called in scores.json.

    Raises MissingError for a metric that is not installed.
    """
    return [key for name in metrics for key in metric(name).values]


def better(key: str, value: float, than: float) -> bool:
    """Return whether one value of the score `key` is better than another."""
    return value > than if higher_is_better(key) else value < than


def higher_is_better(key: str, otherwise: bool = False) -> bool:
    """Return whether a higher score is better; `otherwise` where its metric is not installed."""
    known = metric_of(key)
    return otherwise if known is None else known.values[key].better == "higher"


def by_difference(key: str) -> bool:
    """Return whether values of a score compare by their difference, and never by their ratio."""
    known = metric_of(key)
    return known is not None and known.values[key].scale == "difference"


def score_name(key: str, space: FeatureSpace) -> str:
    """Return what a report calls the score `key` taken in these features.

    A score in features other than Inception's names them. One in Inception's by other weights than
    the canonical ones shows the hash of those weights, and the distance is not called FID.
    """
    known = metric_of(key)
    if known is None:
        return key
    value = known.values[key]
    if space.extractor is None or not known.needs:
        return value.name
    if space.extractor != INCEPTION:
        return f"{value.name} ({space.extractor} features)"
    if space.weights_sha256 == CANONICAL:
        return value.name
    weights = (space.weights_sha256 or "")[:8]
    return f"{value.elsewhere or value.name} (Inception weights {weights})"


def shown_scores(scores: Scores) -> dict[str, str]:
    """Return each score's name and value as text, with what stands beside it."""
    table = scores.scores
    return {
        score_name(key, scores.protocol): _shown(key, table)
        for key in table
        if not any(key == f"{other}_{ending}" for other in table for ending in BESIDE)
    }


def _shown(key: str, table: Mapping[str, float]) -> str:
    text = f"{table[key]:.4g}"
    if f"{key}_std" in table:
        text += f" ± {table[f'{key}_std']:.2g}"
    if f"{key}_real" in table:
        text += f" (real samples: {table[f'{key}_real']:.4g})"
    return text


def shown_protocol(protocol: Protocol, seeds: str | None = None) -> str:
    """Return in one line what a score was taken from and with.

    seeds: what to tell of several runs instead of the seed of one
    """
    reference = protocol.reference
    parts = [
        f"{protocol.samples:,} samples against {reference.samples:,} of {reference.name} "
        f"({reference.split})",
        f"seed {seeds or protocol.seed}",
    ]
    if protocol.extractor is not None:
        weights = (protocol.weights_sha256 or "")[:8]
        parts.insert(1, f"extractor {protocol.extractor} (weights {weights})")
        parts.append(f"torch-fidelity {protocol.versions['torch-fidelity']}")
    return ", ".join(parts)
