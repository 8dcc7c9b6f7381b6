"""The adapter to torch-fidelity."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from gancore.data import Dataset
from gancore.errors import ScoreError
from gancore.recipe import Score
from gancore.sampling import Progress, generate
from gancore.scoring.extractors import Extractor, extractor

BATCH = 64
KID_SUBSETS = 100
KID_SUBSET_SIZE = 1000
ISC_SPLITS = 10

KEYS = {
    "fid": {"fid": "frechet_inception_distance"},
    "isc": {"isc": "inception_score_mean", "isc_std": "inception_score_std"},
    "kid": {"kid": "kernel_inception_distance_mean", "kid_std": "kernel_inception_distance_std"},
    "prc": {"precision": "precision", "recall": "recall"},
}
"""Our metric → our score → torch-fidelity's name for it."""


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
    and for weights that can't be had; PluginError for an unknown extractor.
    """
    from torch_fidelity import calculate_metrics

    metrics = tuple(metrics)
    chosen = extractor(extractor_name, weights)
    subset = min(KID_SUBSET_SIZE, len(fake), len(real))
    _check(chosen, metrics, fake, real)
    device = torch.device(device)
    needs_real = set(metrics) != {"isc"}
    total = len(fake) + (len(real) if needs_real else 0)
    seen = _Counter(total, progress)
    found = calculate_metrics(
        input1=_Images(fake, chosen, seen),
        input2=_Images(real.samples.cpu(), chosen, seen) if needs_real else None,
        **dict.fromkeys(metrics, True),
        feature_extractor=chosen.registered,
        feature_extractor_weights_path=str(chosen.weights),
        cuda=device.type == "cuda",
        batch_size=BATCH,
        isc_splits=ISC_SPLITS,
        kid_subsets=KID_SUBSETS,
        kid_subset_size=subset,
        rng_seed=seed,
        cache=False,  # torch-fidelity's is keyed by name only: stale numbers
        save_cpu_ram=True,  # that is: no loader processes
        verbose=False,
    )
    return {
        "scores": {
            key: float(found[theirs]) for metric in metrics for key, theirs in KEYS[metric].items()
        },
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
            "isc_splits": ISC_SPLITS,
            "kid_subsets": KID_SUBSETS,
            "kid_subset_size": subset,
            "versions": {
                name: version(name)
                for name in ("gancore", "torch", "torchvision", "torch-fidelity")
            },
        },
    }


def score_generator(
    generator: nn.Module,
    data: Dataset,
    section: Score,
    *,
    seed: int,
    device: torch.device | str,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Sample a calibrated generator and score it by `section`: {"scores": …, "protocol": …}.

    The samples are those that `gan sample` writes.
    """
    return score(
        generate(generator, section.samples, seed=seed, progress=progress),
        data,
        metrics=section.metrics,
        extractor_name=section.extractor,
        weights=section.weights,
        seed=seed,
        device=device,
        progress=progress,
    )


class _Counter:
    """Tells the progress as images are asked for."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.done, self.total, self.progress = 0, total, progress

    def __call__(self) -> None:
        self.done += 1
        if self.progress and (self.done % BATCH == 0 or self.done == self.total):
            self.progress("scoring", min(self.done, self.total), self.total)


class _Images(torch.utils.data.Dataset[Tensor]):
    """uint8 images in the channels that the extractor takes."""

    def __init__(self, images: Tensor, chosen: Extractor, seen: _Counter) -> None:
        self.images = images
        self.seen = seen
        self.repeat = 3 if (chosen.sample_shape[0], images.shape[1]) == (3, 1) else 1

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        self.seen()
        return self.images[index].repeat(self.repeat, 1, 1)


def _check(chosen: Extractor, metrics: tuple[str, ...], fake: Tensor, real: Dataset) -> None:
    if not real.is_images:
        raise ScoreError(
            f"{', '.join(metrics)} compare images, and {real.name!r} is points: "
            "--set score.metrics=[] trains without scoring"
        )
    channels, *size = chosen.sample_shape
    shape = tuple(fake.shape[1:])
    fits = shape[0] == channels or (channels in (None, 3) and shape[0] == 1)
    if not fits or any(want not in (None, got) for want, got in zip(size, shape[1:], strict=True)):
        wanted = "×".join("any" if n is None else str(n) for n in chosen.sample_shape)
        raise ScoreError(
            f"extractor {chosen.name!r} takes {wanted} images, these are "
            f"{'×'.join(map(str, shape))}: choose another score.extractor"
        )
    fewest = min(len(fake), len(real))
    if "fid" in metrics and fewest < chosen.feature_dim:
        raise ScoreError(
            f"FID in {chosen.feature_dim} features needs as many samples of each kind, and here "
            f"are {len(fake)} generated and {len(real)} real: raise score.samples, or use kid"
        )
    if "isc" in metrics and len(fake) < ISC_SPLITS:
        raise ScoreError(f"IS needs {ISC_SPLITS} samples or more, here are {len(fake)}")
