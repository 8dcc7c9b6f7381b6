"""Scoring a generator, and refusing early what can't be scored."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gancore.data import Dataset
from gancore.distributed.ranks import Ranks
from gancore.errors import ScoreError
from gancore.isolation.caller import leaving_no_trace
from gancore.recipe import Score
from gancore.scoring.extractors import extractor, find_extractor
from gancore.scoring.metrics import Counts, named
from gancore.scoring.protocol import Scores
from gancore.scoring.sampling import Progress, generate
from gancore.scoring.scorer import (
    refuse_few,
    refuse_lost,
    refuse_mixed,
    refuse_unfit,
    refuse_unlike,
    refuse_weights,
    score,
    try_images,
    uses_features,
)

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
) -> Scores | None:
    """Sample a calibrated generator and score it, with the spread of the samples.

    The samples are those that `gan sample` writes. The spread is their total variance, in pixels
    or coordinates, as a share of the real data's: near 0 where a generator has collapsed.

    ranks: processes that share the sampling; the first scores, the others return None after it

    Raises ScoreError for samples that hold inf or nan, and as `score`.
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
    try:
        if faults:
            raise ScoreError(f"there is nothing to score: {faults[0]}")
        if not ranks.is_first:
            return None
        scores = score(
            samples,
            data,
            metrics=section.metrics,
            extractor_name=section.extractor,
            weights=section.weights,
            seed=seed,
            device=device,
            progress=progress,
        )
        spread = total_variance(samples) / max(total_variance(data.samples), 1e-12)
        return scores.model_copy(update={"spread": spread})
    finally:
        ranks.wait()


def total_variance(samples: Tensor) -> float:
    """Return the sum of the variances of all pixels or coordinates, over about 10,000 samples."""
    chosen = samples[:: max(1, len(samples) // 10_000)].flatten(1).double()
    return chosen.var(dim=0, correction=0).sum().item()


@leaving_no_trace
def check_section(section: Score) -> None:
    """Raise now, before there are data, what no data would mend: ScoreError, PluginError."""
    asked = named(section.metrics)
    refuse_mixed(asked)
    length = None
    if uses_features(asked):
        length = find_extractor(section.extractor, section.weights).feature_dim
    refuse_few(asked, Counts(section.samples, None, length))


@leaving_no_trace
def check_scoring(data: Dataset, section: Score, *, weights: bool = True) -> None:
    """Raise now what scoring after the training would: ScoreError, PluginError.

    weights: whether to look at the extractor's too, which may have to be fetched
    """
    if not section.metrics:
        return
    asked = named(section.metrics)
    refuse_unlike(asked, data)
    chosen = None
    if uses_features(asked):
        chosen = find_extractor(section.extractor, section.weights)
    refuse_unfit(asked, data, section.samples, data.shape, chosen)
    if chosen is None or not weights:
        return
    chosen = extractor(section.extractor, section.weights)
    if section.weights is not None:  # those that are not ours may be of something else
        refuse_weights(chosen, section.weights, asked)


@leaving_no_trace
def try_scoring(samples: Tensor, data: Dataset, section: Score, device: torch.device | str) -> None:
    """Raise what scores would fail with, by a few generated samples: ScoreError, PluginError."""
    asked = named(section.metrics)
    refuse_lost(asked)
    if uses_features(asked):
        chosen = extractor(section.extractor, section.weights)
        real = data.samples[: len(samples)].cpu()
        try_images(torch.cat([samples, real]), asked, chosen, device)
    elif not data.is_images:
        few = Counts(len(samples), len(data))
        able = [name for name, metric in asked.items() if not metric.refuses(few)]
        score(data.samples[: len(samples)].cpu(), data, metrics=able)
