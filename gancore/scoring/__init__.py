"""Scoring: FID, IS, KID, precision and recall by torch-fidelity; exact scores for points.

Each comes with the protocol that it was taken under.
"""

from gancore.scoring.extractors import Extractor, extractor, weights_sha256
from gancore.scoring.fidelity import score
from gancore.scoring.generator import check_scoring, check_section, score_generator, try_scoring
from gancore.scoring.points import score_points
from gancore.scoring.sampling import generate

__all__ = [
    "Extractor",
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
