"""Scoring a generator: images by torch-fidelity, points exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gancore.data import Dataset
from gancore.distributed.ranks import Ranks
from gancore.errors import ScoreError
from gancore.isolation.caller import leaving_no_trace
from gancore.recipe import FEATURES, Score
from gancore.scoring.extractors import found_extractor
from gancore.scoring.fidelity import check_counts, check_images, score, try_images
from gancore.scoring.points import check_points, score_points
from gancore.scoring.sampling import Progress, generate

COLLAPSED = 0.1
"""A generator whose samples have less than this share of the real data's variance has collapsed."""


@leaving_no_trace
def score_generator(
    generator: nn.Module,
    data: Dataset,
    section: Score,
    *,
    seed: int,
    device: torch.device | str,
    progress: Progress | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Any]:
    """Sample a calibrated generator and score it: {"scores": …, "protocol": …, "spread": …}.

    The samples are those that `gan sample` writes. The spread is their total variance, in pixels
    or coordinates, as a share of the real data's: near 0 where a generator has collapsed.

    ranks: processes that share the sampling; the first scores, the others return {} after it

    Raises ScoreError for samples that hold inf or nan, and as `score` and `score_points`.
    """
    ranks = ranks or Ranks()
    faults: list[str] = []
    samples = generate(
        generator,
        section.samples,
        seed=seed,
        progress=progress,
        ranks=ranks,
        broken=faults.append,
    )
    found = {}
    try:
        if faults:
            raise ScoreError(f"there is nothing to score: {faults[0]}")
        if ranks.is_first:
            found = _score(samples, data, section, seed=seed, device=device, progress=progress)
    finally:
        ranks.wait()
    return found


def _score(
    samples: Tensor,
    data: Dataset,
    section: Score,
    *,
    seed: int,
    device: torch.device | str,
    progress: Progress | None,
) -> dict[str, Any]:
    if data.is_images:
        found = score(
            samples,
            data,
            metrics=section.metrics,
            extractor_name=section.extractor,
            weights=section.weights,
            seed=seed,
            device=device,
            progress=progress,
        )
    else:
        found = score_points(samples, data, metrics=section.metrics, seed=seed)
    return {**found, "spread": total_variance(samples) / max(total_variance(data.samples), 1e-12)}


def total_variance(samples: Tensor) -> float:
    """Return the sum of the variances of all pixels or coordinates, over about 10,000 samples."""
    chosen = samples[:: max(1, len(samples) // 10_000)].flatten(1).double()
    return chosen.var(dim=0, correction=0).sum().item()


@leaving_no_trace
def check_section(section: Score) -> None:
    """Raise now, before there are data, what no data would mend: ScoreError, PluginError."""
    of_images = [each for each in section.metrics if each in FEATURES]
    of_points = [each for each in section.metrics if each not in FEATURES]
    if of_images and of_points:
        raise ScoreError(
            f"score.metrics: {', '.join(of_images)} are of images, {', '.join(of_points)} of "
            "points: leave out the ones or the others"
        )
    if of_images:
        chosen = found_extractor(section.extractor, section.weights)
        check_counts(chosen, of_images, section.samples, None)


@leaving_no_trace
def check_scoring(data: Dataset, section: Score, *, weights: bool = True) -> None:
    """Raise now what scoring after the training would: ScoreError, PluginError.

    weights: whether to look at the extractor's too, which may have to be fetched
    """
    if not section.metrics:
        return
    if not data.is_images:
        check_points(data, section.metrics)
        return
    check_images(
        data,
        section.metrics,
        section.samples,
        extractor_name=section.extractor,
        weights=section.weights,
        are_read=weights,
    )


@leaving_no_trace
def try_scoring(samples: Tensor, data: Dataset, section: Score, device: torch.device | str) -> None:
    """Raise what scores would fail with, by a few generated samples: ScoreError, PluginError."""
    if section.metrics and not data.is_images:
        score_points(data.samples[: len(samples)].cpu(), data, metrics=section.metrics)
    elif section.metrics:
        try_images(
            torch.cat([samples, data.samples[: len(samples)].cpu()]),
            section.metrics,
            extractor_name=section.extractor,
            weights=section.weights,
            device=device,
        )
