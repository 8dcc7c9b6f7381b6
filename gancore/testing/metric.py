"""The contract of a metric: what its author runs on it, in a test.

    def test_contract():
        check_metric(METRIC)

A metric is computed of four sets of samples: real ones that are not of the reference, and three
that get worse. Features are an average over patches and logits a product with fixed weights, so
that no extractor is needed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from gancore.data import Dataset, Truth, to_uint8
from gancore.isolation.caller import leaving_no_trace
from gancore.isolation.randomness import Stream
from gancore.scoring.fidelity import statistics
from gancore.scoring.inputs import Inputs
from gancore.scoring.metrics import Metric
from gancore.testing.scene import CheckFailed

SAMPLES = 400
SHAPE = (1, 16, 16)
MODES = 4
LEVELS = (0.0, 0.15, 0.5, 1.0)
"""How far samples are degraded: not at all, and wholly."""


Degrade = Callable[[Tensor, float], Tensor]


@leaving_no_trace
def check_metric(metric: Metric, *, degrade: Degrade | None = None) -> None:
    """Compute a metric of samples that get worse, and compare with what it declares.

    It is deterministic. It answers the keys that it declares, with finite floats; shares are from
    0 to 1, and standard deviations are not negative. It leaves samples, reference and features
    unchanged. Of each kind of data that it is for, no number gets better, in its own direction, as
    samples get worse, and the worst samples score worse than the real ones.

    degrade  makes samples worse in a way that the metric is to see: of samples (N, *) and a level
             from 0, which leaves them as they are, to 1. By default images fade into grey noise,
             and points are drawn to where there is no mode

    Raises CheckFailed with what was found.
    """
    for kind in ("images", "points"):
        if metric.of in (kind, "both"):
            steps = list(_scenes(kind, metric, degrade))
            if not metric.takes(steps[0].reference):
                raise CheckFailed(f"its `fits` refuses {kind} that it is to be checked on")
            answers = [_answer(metric, inputs) for inputs in steps]
            _check_order(metric, kind, answers)


def _answer(metric: Metric, inputs: Inputs) -> Mapping[str, float]:
    """Return a metric's answer, which has been checked."""
    before = inputs.checksums()
    answers = []
    for global_seed in range(2):
        Stream(0, "metric").seed_global(global_seed)
        answers.append(metric(inputs))
    if inputs.checksums() != before:
        raise CheckFailed("it changes what it is computed from: clone that first")
    first, second = answers
    for answer in answers:
        _check_numbers(metric, answer)
    if dict(first) != dict(second):
        raise CheckFailed(
            f"the same samples and seed gave {dict(first)} and {dict(second)}: draw from a "
            "generator seeded by inputs.seed"
        )
    return first


def _check_numbers(metric: Metric, answer: Mapping[str, float]) -> None:
    if not isinstance(answer, Mapping) or {*answer} != {*metric.keys}:
        keys = [*answer] if isinstance(answer, Mapping) else answer
        raise CheckFailed(f"it answered {keys}, and declares {[*metric.keys]}")
    for key, number in answer.items():
        if not isinstance(number, float) or not math.isfinite(number):
            raise CheckFailed(f"{key} is {number!r}: expected a finite float")
    for key, value in metric.values.items():
        if value.scale == "proportion" and not 0 <= answer[key] <= 1:
            raise CheckFailed(f"{key} is {answer[key]}, and a proportion is from 0 to 1")
        if "std" in value.beside and answer[f"{key}_std"] < 0:
            raise CheckFailed(
                f"{key}_std is {answer[f'{key}_std']}, and a deviation is not below 0"
            )


def _check_order(metric: Metric, kind: str, answers: list[Mapping[str, float]]) -> None:
    """Raise CheckFailed unless numbers get worse with samples; steps in between may be ties."""
    for key, value in metric.values.items():
        numbers = [answer[key] for answer in answers]
        ordered = sorted(numbers, reverse=value.better == "higher")
        if numbers != ordered or numbers[0] == numbers[-1]:
            shown = ", ".join(f"{number:.4g}" for number in numbers)
            raise CheckFailed(
                f"{key} of {kind} that get worse is {shown}, and it says that {value.better} is "
                "better"
            )


def _scenes(kind: str, metric: Metric, degrade: Degrade | None) -> Iterator[Inputs]:
    """Yield what the metric is computed from, at each level of degradation."""
    drawn = torch.Generator().manual_seed(0)
    make, spoil = (_images, _faded) if kind == "images" else (_points, _drawn_together)
    truth = Truth(_centres(), 0.1) if kind == "points" else None
    reference = Dataset("checked", make(drawn), truth=truth)
    samples = make(drawn)
    for level in LEVELS:
        worse = (degrade or spoil)(samples, level)
        if kind == "points":
            yield Inputs(worse, reference, seed=3)
            continue
        real = _features(reference.samples)
        needs = metric.needs
        yield Inputs(
            worse,
            reference,
            seed=3,
            features=_features(worse) if "features" in needs else None,
            logits=_logits(worse) if "logits" in needs else None,
            reference_features=real if "reference_features" in needs else None,
            reference_statistics=statistics(real) if "reference_statistics" in needs else None,
        )


def _images(drawn: torch.Generator) -> Tensor:
    """Return images (N, 1, 16, 16) with one bright patch of 4×4 each, of 16 places."""
    place = torch.arange(SAMPLES) % 16
    images = 0.1 * torch.randn(SAMPLES, *SHAPE, generator=drawn) - 0.8
    for number, where in enumerate(place.tolist()):
        row, column = 4 * (where // 4), 4 * (where % 4)
        images[number, :, row : row + 4, column : column + 4] += 1.5
    return to_uint8(images)


def _faded(images: Tensor, level: float) -> Tensor:
    """Return images that fade into one grey with noise."""
    pixels = 127.5 + 20 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return ((1 - level) * images.float() + level * pixels).round().clamp(0, 255).to(torch.uint8)


def _centres() -> Tensor:
    return torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])


def _points(drawn: torch.Generator) -> Tensor:
    """Return points (N, 2) around four modes."""
    centres = _centres()[torch.arange(SAMPLES) % MODES]
    return centres + 0.1 * torch.randn(SAMPLES, 2, generator=drawn)


def _drawn_together(points: Tensor, level: float) -> Tensor:
    """Return points that are drawn to the middle, where there is no mode."""
    middle = 0.1 * torch.randn(points.shape, generator=torch.Generator().manual_seed(1))
    return (1 - level) * points + level * middle


def _features(images: Tensor) -> Tensor:
    """Return features (N, 16): the means over patches of 4×4, about −1 … 1."""
    return avg_pool2d(images.float() / 127.5 - 1, 4).flatten(1)


def _logits(images: Tensor) -> Tensor:
    """Return logits (N, 16), of which a bright patch raises one."""
    return 6 * _features(images)
