"""Scoring: metrics of generated samples, each score with the protocol that it was taken under.

FID, Inception Score, KID, precision and recall are torch-fidelity's; those of points are exact.
Other packages bring metrics of their own. The names below resolve when they are first used
(PEP 562), so that what a score is called, and which way is better, is known without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gancore.scoring.extractors import Extractor, extractor, weights_sha256
    from gancore.scoring.generator import (
        check_scoring,
        check_section,
        score_generator,
        try_scoring,
    )
    from gancore.scoring.inputs import Inputs, Statistics
    from gancore.scoring.metrics import Counts, Metric, Value
    from gancore.scoring.protocol import Scores
    from gancore.scoring.sampling import generate
    from gancore.scoring.scorer import score, score_points

_HOME = {
    "Counts": "metrics",
    "Extractor": "extractors",
    "Inputs": "inputs",
    "Metric": "metrics",
    "Scores": "protocol",
    "Statistics": "inputs",
    "Value": "metrics",
    "check_scoring": "generator",
    "check_section": "generator",
    "extractor": "extractors",
    "generate": "sampling",
    "score": "scorer",
    "score_generator": "generator",
    "score_points": "scorer",
    "try_scoring": "generator",
    "weights_sha256": "extractors",
}

__all__ = [
    "Counts",
    "Extractor",
    "Inputs",
    "Metric",
    "Scores",
    "Statistics",
    "Value",
    "check_scoring",
    "check_section",
    "extractor",
    "generate",
    "score",
    "score_generator",
    "score_points",
    "try_scoring",
    "weights_sha256",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gancore.scoring' has no attribute {name!r}")
    home = import_module(f"gancore.scoring.{_HOME[name]}")
    globals()[name] = getattr(home, name)
    return globals()[name]


def __dir__() -> list[str]:
    return __all__
