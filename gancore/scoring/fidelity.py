"""The adapter to torch-fidelity."""

from __future__ import annotations

import math
from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import isc_features_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric
from torch_fidelity.metric_prc import prc_features_to_metric

from gancore.data import Dataset
from gancore.errors import GancoreError, ScoreError
from gancore.isolation.caller import leaving_no_trace
from gancore.scoring.extractors import Extractor, extractor, found_extractor
from gancore.scoring.features import BATCH, Features, Reference
from gancore.scoring.sampling import Progress
from gancore.text import shown

KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
ISC_SPLITS = 10
NEIGHBOUR = 3
"""Whose distance is a sample's radius in precision and recall (Kynkäänniemi et al., 2019)."""

KEYS = {
    "fid": {"fid": "frechet_inception_distance"},
    "isc": {"isc": "inception_score_mean", "isc_std": "inception_score_std"},
    "kid": {"kid": "kernel_inception_distance_mean", "kid_std": "kernel_inception_distance_std"},
    "prc": {"precision": "precision", "recall": "recall"},
}
"""Our metric → our score → torch-fidelity's name for it."""


@leaving_no_trace
def score(
    fake: Tensor,
    real: Dataset,
    *,
    metrics: Iterable[str],
    extractor_name: str = "inception-v3-compat",
    weights: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score generated images and say how: {"scores": {…}, "protocol": {…}}.

    fake     uint8 (N, C, H, W)
    real     the reference, all of it
    metrics  of fid (Heusel et al., 2017), isc (Salimans et al., 2016), kid (Bińkowski et al.,
             2018), prc (Kynkäänniemi et al., 2019)
    seed     for the shuffles and subsets of isc and kid
    progress called as images go through the extractor

    Grey images are repeated to three channels for an extractor that takes three. Raises
    ScoreError for images that the extractor can't take, for fewer samples than FID has features,
    for features or scores that are inf or nan, and for weights that can't be had; PluginError for
    an unknown extractor.
    """
    metrics = tuple(metrics)
    chosen = extractor(extractor_name, weights)
    _check(chosen, metrics, len(fake), tuple(fake.shape[1:]), real)
    settings = {
        "isc_splits": ISC_SPLITS,
        "kid_subsets": KID_SUBSETS,
        "kid_subset_size": min(KID_SUBSET_SIZE, len(fake), len(real)),
    }
    device = torch.device(device)
    features = Features(chosen, metrics, device, progress)
    generated = _finite(features(fake, "scoring"), chosen, "generated")
    reference = Reference(
        real,
        chosen,
        lambda images: _finite(features(images, "real samples"), chosen, "real")["features"],
        keep=not {"kid", "prc"}.isdisjoint(metrics),
        about={"batch_size": BATCH, "device": device.type, "dtype": "float32"},
    )
    found: dict[str, Any] = {}
    draws = seed % 2**32  # as many as NumPy has
    if "isc" in metrics:
        found |= isc_features_to_metric(generated["logits"], splits=ISC_SPLITS, rng_seed=draws)
    if "kid" in metrics:
        found |= kid_features_to_metric(
            generated["features"], reference.features, rng_seed=draws, verbose=False, **settings
        )
    if "prc" in metrics:
        found |= prc_features_to_metric(
            generated["features"],
            reference.features,
            prc_neighborhood=NEIGHBOUR,
            save_cpu_ram=True,
            verbose=False,
        )
    if "fid" in metrics:
        statistics = fid_features_to_statistics(generated["features"])
        found |= fid_statistics_to_metric(statistics, reference.statistics, verbose=False)
    scores = {
        key: float(found[theirs]) for metric in metrics for key, theirs in KEYS[metric].items()
    }
    if wrong := [key for key, value in scores.items() if not math.isfinite(value)]:
        raise ScoreError(
            f"{', '.join(wrong)} in the features of {chosen.name!r} came out as inf or nan: "
            "features too large, or all alike, have no such score"
        )
    return {
        "scores": scores,
        "protocol": {
            "extractor": chosen.name,
            "weights_sha256": chosen.weights_sha256(),
            "reference": {
                "name": real.name,
                "split": real.split,
                "samples": len(real),
                "sha256": real.sha256,
            },
            "samples": len(fake),
            "seed": seed,
            "batch_size": BATCH,
            "dtype": "float32",
            "device": device.type,
            **settings,
            "versions": {
                name: version(name)
                for name in ("gancore", "torch", "torchvision", "torch-fidelity")
            },
        },
    }


def _finite(features: dict[str, Tensor], chosen: Extractor, kind: str) -> dict[str, Tensor]:
    """Return features, of `kind` images, that are all finite. Raises ScoreError with the count."""
    broken = torch.stack([~each.flatten(1).isfinite().all(1) for each in features.values()]).any(0)
    if wrong := int(broken.sum()):
        raise ScoreError(
            f"extractor {chosen.name!r} makes inf or nan of {wrong:,} of {len(broken):,} {kind} "
            "images: choose another score.extractor, or other score.weights"
        )
    return features


def check_images(
    real: Dataset,
    metrics: Iterable[str],
    samples: int,
    *,
    extractor_name: str,
    weights: str | None,
    are_read: bool = True,
) -> None:
    """Raise what `score` would for so many generated images like the real ones.

    are_read: whether the weights are looked at, and fetched if need be
    """
    metrics = tuple(metrics)
    _check(found_extractor(extractor_name, weights), metrics, samples, real.shape, real)
    if not are_read:
        return
    chosen = extractor(extractor_name, weights)
    if weights is not None:  # those that are not ours may be of something else
        try:
            Features(chosen, metrics, torch.device("cpu"), None)
        except GancoreError:
            raise
        except Exception as error:  # what reads them is the extractor's own
            reason = shown(" ".join(f"{type(error).__name__}: {error}".split()), 1000)
            raise ScoreError(
                f"score.weights: {shown(weights, 4096)} does not hold the weights of "
                f"{chosen.name}: {reason}. Leave it out for the extractor's own"
            ) from error


def check_counts(chosen: Extractor, metrics: Iterable[str], samples: int, real: int | None) -> None:
    """Raise ScoreError for too few samples; how many real ones there are may be unknown yet."""
    fewest = samples if real is None else min(samples, real)
    there = f"{samples} generated" + ("" if real is None else f" and {real} real")
    if "fid" in metrics and fewest < chosen.feature_dim:
        remedy = "raise score.samples, or use kid" if fewest == samples else "use kid"
        remedy += ", or w2 where the data are points" if real is None else ""
        raise ScoreError(
            f"FID in {chosen.feature_dim} features needs as many samples of each kind, and here "
            f"are {there}: {remedy}"
        )
    if "isc" in metrics and samples < ISC_SPLITS:
        raise ScoreError(f"IS needs {ISC_SPLITS} samples or more, here are {samples}")
    if "prc" in metrics and fewest <= NEIGHBOUR:
        remedy = "raise score.samples" if fewest == samples else "leave prc out"
        raise ScoreError(
            f"prc looks at each sample's neighbour number {NEIGHBOUR}, and here are {there}: "
            f"{remedy}"
        )


def try_images(
    images: Tensor,
    metrics: Iterable[str],
    *,
    extractor_name: str,
    weights: str | None,
    device: torch.device | str,
) -> None:
    """Raise ScoreError where the extractor can't make what `score` needs of images."""
    chosen = extractor(extractor_name, weights)
    try:
        chosen.weights_sha256()
        made = Features(chosen, tuple(metrics), torch.device(device), None)(images, "trial")
    except (GancoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever an extractor of somebody else's raises
        reason = shown(" ".join(f"{type(error).__name__}: {error}".split()), 300)
        raise ScoreError(
            f"extractor {chosen.name!r} makes no features of images for {', '.join(metrics)} "
            f"({reason}): choose another score.extractor, or other score.metrics"
        ) from error
    for kind, found in _finite(made, chosen, "trial").items():
        wanted = chosen.feature_dim if kind == "features" else found.shape[-1]
        if found.shape != (len(images), wanted):
            raise ScoreError(
                f"extractor {chosen.name!r} makes {kind} {tuple(found.shape)} of {len(images)} "
                f"images, expected ({len(images)}, {wanted}): choose another score.extractor"
            )


def _check(
    chosen: Extractor,
    metrics: tuple[str, ...],
    samples: int,
    shape: tuple[int, ...],
    real: Dataset,
) -> None:
    if not real.is_images:
        raise ScoreError(f"{real.name!r} is points, not images: score_points scores those")
    if wrong := [each for each in metrics if each not in KEYS]:
        raise ScoreError(
            f"score.metrics: {', '.join(wrong)} can't be computed for images, such as those of "
            f"{real.name!r}: choose of {', '.join(KEYS)}, or [] to train without scoring"
        )
    channels, *size = chosen.sample_shape
    fits = shape[0] == channels or (channels in (None, 3) and shape[0] == 1)
    if not fits or any(want not in (None, got) for want, got in zip(size, shape[1:], strict=True)):
        wanted = "×".join("any" if n is None else str(n) for n in chosen.sample_shape)
        raise ScoreError(
            f"extractor {chosen.name!r} takes {wanted} images, these are "
            f"{'×'.join(map(str, shape))}: choose another score.extractor"
        )
    check_counts(chosen, metrics, samples, len(real))
