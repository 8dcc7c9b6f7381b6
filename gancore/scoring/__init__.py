"""Scoring: FID, IS, KID, precision and recall by torch-fidelity, with the protocol they need."""

from gancore.scoring.extractors import Extractor, extractor
from gancore.scoring.fidelity import score, score_generator

__all__ = ["Extractor", "extractor", "score", "score_generator"]
