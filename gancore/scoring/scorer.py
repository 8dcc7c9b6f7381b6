"""From samples and a data set to scores: whether they can be taken, and taking them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from importlib.metadata import version

import torch
from torch import Tensor

from gancore import entrypoints
from gancore.checks import guard
from gancore.data import Dataset
from gancore.errors import ContractError, GancoreError, PluginError, ScoreError, UnfitError
from gancore.isolation.caller import leaving_no_trace
from gancore.isolation.randomness import Stream
from gancore.scoring import fidelity, points
from gancore.scoring.extractors import Extractor, extractor
from gancore.scoring.features import BATCH, Features, Reference
from gancore.scoring.inputs import Inputs
from gancore.scoring.metrics import CORE, Counts, Metric, installed, named
from gancore.scoring.protocol import INCEPTION, Protocol, RealSamples, Scores
from gancore.scoring.sampling import Progress
from gancore.text import shown

LARGEST = 1e100
"""A score of this size is none, and no file may hold it."""

FEWEST_POINTS = 4

Asked = Mapping[str, Metric]


@leaving_no_trace
def score(
    fake: Tensor,
    real: Dataset,
    *,
    metrics: Iterable[str],
    extractor_name: str = INCEPTION,
    weights: str | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> Scores:
    """Score generated samples, and say how.

    fake     uint8 (N, C, H, W) images, or float32 (N, d) points
    real     the reference, all of it
    metrics  names of installed ones that take such data
    seed     for what metrics draw
    device   where the extractor computes
    progress called as images go through the extractor

    An extractor that takes three channels gets grey images three times over. Raises UnfitError for
    metrics of other data, images that the extractor can't take, and too few samples; ScoreError
    for samples, features or scores that are inf or nan, and for weights that can't be had;
    PluginError for a metric or extractor that is not installed or can't be used; ContractError for
    a metric that breaks its contract.
    """
    asked = named(metrics)
    refuse_lost(asked)
    refuse_unlike(asked, real)
    chosen = extractor(extractor_name, weights) if uses_features(asked) else None
    refuse_unfit(asked, real, len(fake), tuple(fake.shape[1:]), chosen)
    if not real.is_images:
        _refuse_broken_points(fake, "generated")
    device = torch.device(device)
    protocol = _protocol(len(fake), real, seed, device, chosen)
    parts = Parts(fake.cpu(), real.to("cpu"), seed, asked, chosen, device, progress)
    table: dict[str, float] = {}
    for name, metric in asked.items():
        table |= _answer(name, metric, parts.of(metric))
    if wrong := [key for key, number in table.items() if not abs(number) <= LARGEST]:
        where = f" in the features of {chosen.name!r}" if chosen else ""
        raise ScoreError(
            f"{', '.join(wrong)}{where} came out as inf or nan: features too large, or all alike, "
            "have no such score"
        )
    origins = {
        name: entrypoints.origin(point)
        for name, point in ((name, entrypoints.get("metric", name)) for name in asked)
        if point.distribution != CORE
    }
    scores = Scores(scores=table, protocol=protocol)
    return scores.model_copy(update={"metrics": origins}) if origins else scores


def score_points(fake: Tensor, real: Dataset, *, metrics: Iterable[str], seed: int = 0) -> Scores:
    """Score generated points (N, d), as `score` does."""
    return score(fake, real, metrics=metrics, seed=seed)


class Parts:
    """What metrics are computed from, each part once for all metrics that need it."""

    def __init__(
        self,
        fake: Tensor,
        real: Dataset,
        seed: int,
        asked: Asked,
        chosen: Extractor | None,
        device: torch.device,
        progress: Progress | None,
    ) -> None:
        self._fake, self._real, self._seed = fake, real, seed
        self._generated: Mapping[str, Tensor] = {}
        if chosen is None:
            return
        features = Features(chosen, kinds(asked), device, progress)
        self._generated = finite(features(fake, "scoring"), chosen, "generated")
        self._reference = Reference(
            real,
            chosen,
            lambda images: finite(features(images, "real samples"), chosen, "real")["features"],
            keep=any("reference_features" in metric.needs for metric in asked.values()),
            about={"batch_size": BATCH, "device": device.type, "dtype": "float32"},
        )

    def of(self, metric: Metric) -> Inputs:
        """Return what a metric needs, and no more."""
        needs = metric.needs
        return Inputs(
            self._fake,
            self._real,
            seed=self._seed,
            features=self._generated["features"] if "features" in needs else None,
            logits=self._generated["logits"] if "logits" in needs else None,
            reference_features=(
                self._reference.features if "reference_features" in needs else None
            ),
            reference_statistics=(
                self._reference.statistics if "reference_statistics" in needs else None
            ),
        )


def _answer(name: str, metric: Metric, inputs: Inputs) -> dict[str, float]:
    """Return a metric's numbers. Raises ContractError for others, and for changed inputs."""
    Stream(inputs.seed, f"metric/{name}").seed_global(0)
    shared = copy(inputs)  # a metric may give its own other attributes
    before = shared.checksums()
    with guard.named(f"metric {name}"):
        answer = metric(inputs)
    if not isinstance(answer, Mapping) or {*answer} != {*metric.keys}:
        given = ", ".join(map(str, answer)) if isinstance(answer, Mapping) else repr(answer)
        raise ContractError(
            f"metric {name} answered {shown(given)}, expected numbers for {', '.join(metric.keys)}"
        )
    if shared.checksums() != before:
        raise ContractError(
            f"metric {name} changes what it is computed from, which other metrics share: clone it"
        )
    try:
        return {key: float(answer[key]) for key in metric.keys}
    except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: torch before 2.12
        raise ContractError(
            f"metric {name} answered {shown(str(dict(answer)))}, expected a number for each key"
        ) from error


def _protocol(
    samples: int, real: Dataset, seed: int, device: torch.device, chosen: Extractor | None
) -> Protocol:
    """Say how so many samples are scored: the same for all metrics of this extractor."""
    about: dict[str, str | int | float] = {}
    packages = ["gancore", "torch"]
    if chosen is not None:
        packages += ["torchvision", "torch-fidelity"]
        about = {
            "extractor": chosen.name,
            "weights_sha256": chosen.weights_sha256(),
            "batch_size": BATCH,
            "dtype": "float32",
            "device": device.type,
            **fidelity.settings(samples, len(real)),
        }
    elif not real.is_images:
        packages += ["numpy", "scipy"]
        about = {"dtype": "float64", **points.settings(samples, len(real))}
    return Protocol.model_validate(
        {
            **about,
            "reference": RealSamples(
                name=shown(real.name, 999),
                split=shown(real.split, 999),
                samples=len(real),
                sha256=real.sha256,
            ),
            "samples": samples,
            "seed": seed,
            "versions": {name: version(name) for name in packages},
        }
    )


def uses_features(asked: Asked) -> bool:
    """Whether one of the metrics is computed from an extractor's features or logits."""
    return any(metric.needs for metric in asked.values())


def kinds(asked: Asked) -> frozenset[str]:
    """Return what an extractor has to make: of `features` and `logits`."""
    needs = frozenset[str]().union(*(metric.needs for metric in asked.values()))
    return (needs & {"logits"}) | ({"features"} if needs - {"logits"} else set())


def refuse_mixed(asked: Asked) -> None:
    """Raise UnfitError for metrics of images beside metrics of points."""
    of_images, of_points = (
        ", ".join(name for name, metric in asked.items() if metric.of == kind)
        for kind in ("images", "points")
    )
    if of_images and of_points:
        raise UnfitError(
            f"score.metrics: {of_images} are of images, {of_points} of points: leave out the ones "
            "or the others"
        )


def refuse_unlike(asked: Asked, real: Dataset) -> None:
    """Raise UnfitError for metrics that can't be computed for these data."""
    if not real.is_images and len(real) < FEWEST_POINTS:
        raise UnfitError(f"{real.name!r} has {len(real)} points: too few to score against")
    if wrong := ", ".join(name for name, metric in asked.items() if not _takes(name, metric, real)):
        what = "images, such as those" if real.is_images else "the points"
        possible = ", ".join(name for name, metric in installed() if _takes(name, metric, real))
        raise UnfitError(
            f"score.metrics: {wrong} can't be computed for {what} of {real.name!r}: choose of "
            f"{possible}, or [] to train without scoring"
        )
    if not real.is_images:
        _refuse_broken_points(real.samples, "real")


def _takes(name: str, metric: Metric, real: Dataset) -> bool:
    with guard.named(f"`fits` of metric {name}"):
        return metric.takes(real)


def refuse_few(asked: Asked, counts: Counts) -> None:
    """Raise UnfitError for too few samples, as far as their numbers are known."""
    for name, metric in asked.items():
        with guard.named(f"`refuses` of metric {name}"):
            reason = metric.refuses(counts)
        if reason:
            raise UnfitError(reason)


def refuse_lost(asked: Asked) -> None:
    """Raise PluginError for a metric whose path of what computes it leads nowhere."""
    for name, metric in asked.items():
        try:
            metric.function  # noqa: B018
        except Exception as error:  # an import may raise anything
            reason = shown(" ".join(f"{type(error).__name__}: {error}".split()), 300)
            raise PluginError(
                f"metric {name}: {metric.compute!r}, which computes it, can't be imported: {reason}"
                ". Reinstall or remove its package"
            ) from error


def refuse_unfit(
    asked: Asked, real: Dataset, samples: int, shape: tuple[int, ...], chosen: Extractor | None
) -> None:
    """Raise UnfitError for generated samples of a shape or number that has no such scores."""
    if chosen is not None:
        channels, *size = chosen.sample_shape
        fits = shape[0] == channels or (channels in (None, 3) and shape[0] == 1)
        pairs = zip(size, shape[1:], strict=True)
        if not fits or any(want not in (None, got) for want, got in pairs):
            wanted = "×".join("any" if n is None else str(n) for n in chosen.sample_shape)
            raise UnfitError(
                f"extractor {chosen.name!r} takes {wanted} images, these are "
                f"{'×'.join(map(str, shape))}: choose another score.extractor"
            )
    length = None if chosen is None else chosen.feature_dim
    refuse_few(asked, Counts(samples, len(real), length))


def refuse_weights(chosen: Extractor, weights: str, asked: Asked) -> None:
    """Raise ScoreError for a file that does not hold the weights of this extractor."""
    try:
        Features(chosen, kinds(asked), torch.device("cpu"), None)
    except GancoreError:
        raise
    except Exception as error:  # what reads them is the extractor's own
        reason = shown(" ".join(f"{type(error).__name__}: {error}".split()), 1000)
        raise ScoreError(
            f"score.weights: {shown(weights, 4096)} does not hold the weights of "
            f"{chosen.name}: {reason}. Leave it out for the extractor's own"
        ) from error


def try_images(images: Tensor, asked: Asked, chosen: Extractor, device: torch.device | str) -> None:
    """Raise ScoreError where the extractor can't make what metrics need of images (B, C, H, W)."""
    try:
        chosen.weights_sha256()
        made = Features(chosen, kinds(asked), torch.device(device), None)(images, "trial")
    except (GancoreError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever an extractor of somebody else's raises
        reason = shown(" ".join(f"{type(error).__name__}: {error}".split()), 300)
        raise ScoreError(
            f"extractor {chosen.name!r} makes no features of images for {', '.join(asked)} "
            f"({reason}): choose another score.extractor, or other score.metrics"
        ) from error
    for kind, rows in finite(made, chosen, "trial").items():
        wanted = chosen.feature_dim if kind == "features" else rows.shape[-1]
        if rows.shape != (len(images), wanted):
            raise ScoreError(
                f"extractor {chosen.name!r} makes {kind} {tuple(rows.shape)} of {len(images)} "
                f"images, expected ({len(images)}, {wanted}): choose another score.extractor"
            )


def finite(made: Mapping[str, Tensor], chosen: Extractor, kind: str) -> Mapping[str, Tensor]:
    """Return features, of `kind` images, that are all finite. Raises ScoreError with the count."""
    broken = torch.stack([~rows.flatten(1).isfinite().all(1) for rows in made.values()]).any(0)
    if wrong := int(broken.sum()):
        raise ScoreError(
            f"extractor {chosen.name!r} makes inf or nan of {wrong:,} of {len(broken):,} {kind} "
            "images: choose another score.extractor, or other score.weights"
        )
    return made


def _refuse_broken_points(samples: Tensor, kind: str) -> None:
    """Raise ScoreError with the count of points (N, d) that are inf or nan."""
    if wrong := int((~samples.isfinite().all(1)).sum()):
        raise ScoreError(
            f"{wrong:,} of {len(samples):,} {kind} points hold inf or nan, which have no distance "
            "to any other: look for where they come from"
        )
