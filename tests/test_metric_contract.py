"""The contract kit of metrics: ours keep it, and each way to break it is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from gancore.errors import ContractError
from gancore.scoring import Inputs, Metric, Value
from gancore.scoring.metrics import installed, metric
from gancore.testing import CheckFailed
from gancore.testing.metric import check_metric

OURS = ("fid", "isc", "kid", "modes", "prc", "quality", "w2")


def test_ours_are_all_that_is_installed() -> None:
    assert tuple(name for name, _ in installed()) == OURS


@pytest.mark.parametrize("name", OURS)
def test_ours_keep_it(name: str) -> None:
    check_metric(metric(name))


def away(inputs: Inputs) -> dict[str, float]:
    """Return the distance of both kinds' mean sizes, which fading images make larger."""
    ours, theirs = (x.float().abs().mean(0) for x in (inputs.samples, inputs.reference.samples))
    return {"away": (ours - theirs).norm().item()}


def made(
    compute: Callable[[Inputs], Mapping[str, float]] = away,
    of: Any = "both",
    needs: Any = frozenset(),
    **value: Any,
) -> Metric:
    values = {"away": Value("away", **{"better": "lower", **value})}
    return Metric(values, compute, of=of, needs=needs)


def test_one_of_images_and_points_alike_keeps_it() -> None:
    check_metric(made())


def drawing(inputs: Inputs) -> dict[str, float]:
    return {"away": away(inputs)["away"] + 1e-3 * torch.rand(()).item()}


def changing(inputs: Inputs) -> dict[str, float]:
    inputs.samples.mul_(1)
    return away(inputs)


def writing(inputs: Inputs) -> dict[str, float]:
    inputs.reference.samples.numpy()[0] = 0  # past torch's counter
    return away(inputs)


def scaled(factor: float) -> Callable[[Inputs], dict[str, float]]:
    return lambda inputs: {"away": factor * away(inputs)["away"]}


BROKEN: dict[str, tuple[Metric, str]] = {
    "drawn": (made(drawing), "the same samples and seed gave"),
    "changed": (made(changing), "it changes what it is computed from"),
    "changed past torch": (made(writing), "it changes what it is computed from"),
    "the wrong way": (made(better="higher"), "that get worse is .* higher is better"),
    "a constant": (made(lambda inputs: {"away": 1.0}), "that get worse is 1, 1, 1, 1"),
    "another key": (
        made(lambda inputs: {"far": 1.0}),
        r"answered \['far'\], and declares \['away'",
    ),
    "none": (made(lambda inputs: None), "answered None"),  # type: ignore[arg-type,return-value]
    "no deviation": (made(beside=("std",)), r"declares \['away', 'away_std'\]"),
    "a deviation below 0": (
        made(lambda inputs: {**away(inputs), "away_std": -1.0}, beside=("std",)),
        "away_std is -1.0",
    ),
    "inf": (made(lambda inputs: {"away": float("inf")}), "away is inf: expected a finite float"),
    "a tensor": (made(lambda inputs: {"away": torch.ones(())}), "expected a finite float"),  # type: ignore[dict-item]
    "more than a share": (made(scaled(100), scale="proportion"), "a proportion is from 0 to 1"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_breaks_it_is_told(name: str) -> None:
    broken, told = BROKEN[name]
    with pytest.raises(CheckFailed, match=told):
        check_metric(broken)


def test_each_number_is_checked_for_its_order() -> None:
    def two(inputs: Inputs) -> dict[str, float]:
        return {"away": away(inputs)["away"], "away_too": -away(inputs)["away"]}

    lower = Value("away", "lower")
    check_metric(Metric({"away": lower, "away_too": Value("too", "higher", "difference")}, two))
    with pytest.raises(CheckFailed, match="away_too of images"):
        check_metric(Metric({"away": lower, "away_too": lower}, two))


def test_what_is_not_named_in_needs_is_not_there() -> None:
    def features(inputs: Inputs) -> dict[str, float]:
        return {"away": inputs.features.std().item()}

    with pytest.raises(ContractError, match="asks for features, which its `needs` do not name"):
        check_metric(made(features, of="images"))
    check_metric(made(features, of="images", needs={"features"}, better="higher"))


def test_a_metric_brings_what_it_is_to_see() -> None:
    """Fading makes images smooth; a metric of smoothness is to be shown noise."""

    def roughness(inputs: Inputs) -> dict[str, float]:
        images = inputs.samples.float()
        return {"away": (images[..., 1:] - images[..., :-1]).abs().mean().item()}

    def noise(images: Tensor, level: float) -> Tensor:
        drawn = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
        return (images + 200 * level * drawn).clamp(0, 255).to(torch.uint8)

    rough = made(roughness, of="images")
    check_metric(rough, degrade=noise)
    with pytest.raises(CheckFailed, match="that get worse is"):
        check_metric(made(roughness, of="images", better="higher"), degrade=noise)


def test_data_that_it_does_not_take_are_told() -> None:
    values = {"away": Value("away", "lower")}
    choosy = Metric(values, away, fits=lambda data: len(data) > 10_000)
    with pytest.raises(CheckFailed, match="its `fits` refuses images"):
        check_metric(choosy)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Value("", "lower"), "expected a name"),
        (lambda: Value("\x1b[2J", "lower"), "expected a name"),
        (lambda: Value("x", "up"), "better: expected one of higher, lower"),
        (lambda: Value("x", "lower", "ratio"), "scale: expected one of log, proportion"),
        (lambda: Value("x", "lower", beside=("max",)), "beside: expected of std, real"),
        (lambda: Metric({}, away), "values: expected keys"),
        (lambda: Metric({"Away": Value("x", "lower")}, away), "values: expected keys"),
        (lambda: made(of="video"), "of: expected images, points or both"),
        (lambda: made(of="images", needs={"labels"}), "needs: expected of features, logits"),
        (lambda: made(of="both", needs={"features"}), "points have no features"),
    ],
)
def test_what_is_declared_is_checked_where_it_is_written(
    make: Callable[[], object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        make()
