"""Scoring: FID, IS, KID, precision and recall by torch-fidelity; exact scores for points.

Each comes with the protocol that it was taken under.
"""

from gancore.scoring.extractors import Extractor, extractor
from gancore.scoring.fidelity import score
from gancore.scoring.generator import check_scoring, score_generator
from gancore.scoring.names import HIGHER_IS_BETTER, better, score_name, shown_protocol, shown_scores
from gancore.scoring.points import score_points

__all__ = [
    "HIGHER_IS_BETTER",
    "Extractor",
    "better",
    "check_scoring",
    "extractor",
    "score",
    "score_generator",
    "score_name",
    "score_points",
    "shown_protocol",
    "shown_scores",
]
