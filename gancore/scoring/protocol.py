"""What a score may be called under its protocol: FID is in Inception's features only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gancore.files.stored import Number, Stored, Text, Whole

INCEPTION = "inception-v3-compat"
CANONICAL = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""SHA-256 of the Inception weights that make a Fréchet distance the FID of the field."""

NAMES = {
    "fid": "FID",
    "isc": "Inception Score",
    "kid": "KID",
    "precision": "precision",
    "recall": "recall",
    "modes": "modes covered",
    "quality": "share of high-quality samples",
    "w2": "2-Wasserstein distance",
}

HIGHER_IS_BETTER = frozenset({"isc", "precision", "recall", "modes", "quality"})
"""Of all the others, lower is better."""


class Features(Stored):
    """The features that scores were taken in; points have none."""

    extractor: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_.+-]{1,100}$")
    weights_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{8,64}$")

    @model_validator(mode="after")
    def _with_weights(self) -> Self:
        if self.extractor is not None and self.weights_sha256 is None:
            raise PydanticCustomError("unavailable", "an extractor without weights_sha256")
        return self


class Reference(Stored):
    """The real samples."""

    name: Text
    split: Text
    samples: Whole
    sha256: Text | None = None


class Protocol(Features):
    """All that is shown of how scores were taken."""

    reference: Reference
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
    """scores.json."""

    scores: dict[Text, Number]
    protocol: Protocol
    spread: Number | None = None
    notes: list[Text] = Field(default=[])
    step: Whole | None = None


def answers(scores: Scores | None, asked: Mapping[str, Any], step: int) -> bool:
    """Return whether a scores.json has all that a recipe's `[score]` asks for, of this step."""
    if scores is None or scores.step != step:
        return False
    return (
        scores.protocol.samples == asked["samples"]
        and scores.protocol.extractor in (None, asked["extractor"])
        and all(key in scores.scores for key in keys(asked["metrics"]))
    )


def keys(metrics: Iterable[str]) -> list[str]:
    """Return what the scores of a recipe's metrics are called in scores.json."""
    pairs = {"prc": ("precision", "recall")}
    return [key for metric in metrics for key in pairs.get(metric, (metric,))]


def better(key: str, value: float, than: float) -> bool:
    """Return whether one value of the score `key` is better than another."""
    return value > than if key in HIGHER_IS_BETTER else value < than


def score_name(key: str, protocol: Mapping[str, Any]) -> str:
    """Return what a report calls the score `key` taken under this protocol.

    Features other than those of Inception are named; Inception's with other weights than the
    canonical ones are named by the weights' hash, and the distance in them is not called FID.
    """
    name = NAMES.get(key, key)
    extractor = protocol.get("extractor")
    if extractor is None or (extractor == INCEPTION and protocol["weights_sha256"] == CANONICAL):
        return name
    if extractor == INCEPTION:
        weights = protocol["weights_sha256"][:8]
        return f"{'Fréchet distance' if key == 'fid' else name} (Inception weights {weights})"
    return f"{name} ({extractor} features)"


def shown_scores(found: Mapping[str, Any]) -> dict[str, str]:
    """Return each score's name and value as text, of {"scores": {…}, "protocol": {…}}."""
    scores, shown = found["scores"], {}
    for key in scores:
        if key in NAMES:
            text = f"{scores[key]:.4g}"
            if f"{key}_std" in scores:
                text += f" ± {scores[f'{key}_std']:.2g}"
            if f"{key}_real" in scores:
                text += f" (real samples: {scores[f'{key}_real']:.4g})"
            shown[score_name(key, found["protocol"])] = text
    return shown


def shown_protocol(protocol: Mapping[str, Any]) -> str:
    """Return in one line what a score was taken from and with."""
    reference = protocol["reference"]
    parts = [
        f"{protocol['samples']:,} samples against {reference['samples']:,} of {reference['name']} "
        f"({reference['split']})",
        f"seed {protocol['seed']}",
    ]
    if "extractor" in protocol:
        weights = protocol["weights_sha256"][:8]
        parts.insert(1, f"extractor {protocol['extractor']} (weights {weights})")
        parts.append(f"torch-fidelity {protocol['versions']['torch-fidelity']}")
    return ", ".join(parts)
