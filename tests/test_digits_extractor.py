"""The `digits` extractor: accuracy, metadata, and its scores through torch-fidelity."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from extractors import digits_train
from safetensors import safe_open
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from gancore.scoring.digits import DigitsExtractor

NAME = "digits-under-test"


class Images(Dataset[Tensor]):
    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


@pytest.fixture(scope="module")
def registered() -> Iterator[str]:
    torch_fidelity.register_feature_extractor(NAME, DigitsExtractor)
    yield NAME
    del FEATURE_EXTRACTORS_REGISTRY[NAME]


@pytest.fixture(scope="module")
def images() -> Tensor:
    """All 1,797 digits as uint8, made here rather than by the code under test."""
    values = torch.from_numpy(load_digits().images)
    return (values * 255 / 16 + 0.5).floor().to(torch.uint8).unsqueeze(1)


@pytest.fixture(scope="module")
def halves(images: Tensor) -> tuple[Tensor, Tensor]:
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    return images[order[:898]], images[order[898:]]


@pytest.fixture(scope="module")
def noise(images: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, images.shape, dtype=torch.uint8, generator=generator)


@pytest.fixture(scope="module")
def metadata() -> dict[str, Any]:
    with safe_open(DigitsExtractor.DEFAULT_WEIGHTS, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["gancore"])
    return found


def score(first: Tensor, second: Tensor, **settings: Any) -> dict[str, float]:
    # save_cpu_ram: in this process; else torch-fidelity starts up to four DataLoader workers
    result: dict[str, float] = torch_fidelity.calculate_metrics(
        input1=Images(first),
        input2=Images(second),
        feature_extractor=NAME,
        cuda=False,
        cache=False,
        verbose=False,
        save_cpu_ram=True,
        **settings,
    )
    return result


def frechet(first: Tensor, second: Tensor) -> float:
    """The Frechet distance by its formula, in float64, with the symmetric root of C1 C2."""
    means, covariances = [], []
    for images in (first, second):
        features = DigitsExtractor(NAME, ["64"])(images)[0].double().numpy()
        means.append(features.mean(axis=0))
        centered = features - means[-1]
        covariances.append(centered.T @ centered / (len(features) - 1))
    root = np.real(scipy.linalg.sqrtm(covariances[0]))
    cross = np.real(scipy.linalg.sqrtm(root @ covariances[1] @ root))
    return float(((means[0] - means[1]) ** 2).sum() + np.trace(sum(covariances) - 2 * cross))


def test_accuracy_and_metadata(images: Tensor, metadata: dict[str, Any]) -> None:
    labels = torch.from_numpy(load_digits().target)
    held_out = torch.tensor(metadata["held_out"])
    assert len(set(held_out.tolist())) == len(held_out) == 450
    share = labels[held_out].bincount() / labels.bincount()
    assert share.sub(0.25).abs().max() < 0.01  # stratified
    logits = DigitsExtractor(NAME, ["logits"])(images[held_out])[0]
    measured = (logits.argmax(dim=1) == labels[held_out]).double().mean().item()
    assert measured >= 0.98
    assert measured == pytest.approx(metadata["accuracy"], abs=1e-9)
    assert metadata["scaling"] == "uint8 = round(v * 255 / 16) for v in 0..16"
    assert "scikit-learn" in metadata


def test_data_and_split_are_the_recorded_ones(images: Tensor, metadata: dict[str, Any]) -> None:
    made, labels = digits_train.load_data()
    assert made.dtype == torch.uint8
    assert torch.equal(made, images)
    fit, held_out = digits_train.split(labels)
    assert held_out.tolist() == metadata["held_out"]
    assert sorted(fit.tolist() + held_out.tolist()) == list(range(1797))


def test_features_are_standardized_on_the_training_images(
    images: Tensor, metadata: dict[str, Any]
) -> None:
    fit = np.setdiff1d(np.arange(len(images)), metadata["held_out"])
    features = DigitsExtractor(NAME, ["64"])(images[fit])[0]
    assert features.mean(dim=0).abs().max() < 1e-4
    assert features.var(dim=0).sub(1).abs().max() < 1e-3


@pytest.mark.usefixtures("registered")
def test_halves_of_real_data_are_close(halves: tuple[Tensor, Tensor]) -> None:
    # measured: FID 0.491, IS 8.43, KID -0.0002, precision 0.900, recall 0.889
    found = score(*halves, fid=True, isc=True, kid=True, prc=True, kid_subset_size=500)
    assert 0 < found["frechet_inception_distance"] < 1.5
    assert 8 < found["inception_score_mean"] < 10
    assert abs(found["kernel_inception_distance_mean"]) < 0.02
    assert min(found["precision"], found["recall"]) > 0.8


@pytest.mark.usefixtures("registered")
def test_noise_is_far(images: Tensor, noise: Tensor) -> None:
    # measured: FID 47 to 48, IS 1.9
    found = score(noise, images, fid=True, isc=True)
    assert found["frechet_inception_distance"] > 30
    assert found["inception_score_mean"] < 3


@pytest.mark.usefixtures("registered")
def test_fid_is_the_formula(halves: tuple[Tensor, Tensor], noise: Tensor) -> None:
    for other in (halves[1], noise):
        found = score(halves[0], other, fid=True)["frechet_inception_distance"]
        assert found == pytest.approx(frechet(halves[0], other), rel=1e-4)


@pytest.mark.usefixtures("registered")
def test_fid_grows_with_corruption(images: Tensor) -> None:
    # measured: 0.13, 0.49, 1.8, 5.3
    generator = torch.Generator().manual_seed(0)
    found = []
    for deviation in (8, 16, 32, 64):
        noisy = images + deviation * torch.randn(images.shape, generator=generator)
        corrupted = noisy.round().clamp(0, 255).to(torch.uint8)
        found.append(score(corrupted, images, fid=True)["frechet_inception_distance"])
    assert found == sorted(found)
    assert found[-1] > 20 * found[0] > 0


@pytest.mark.slow
def test_script_reproduces_the_weights(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metadata: dict[str, Any]
) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "digits.safetensors"
    try:
        digits_train.main(path)
    finally:
        torch.set_num_threads(threads)
    with safe_open(path, "pt") as file:
        made = json.loads(file.metadata()["gancore"])
    assert made.keys() == metadata.keys()
    assert made["held_out"] == metadata["held_out"]
    assert made["accuracy"] >= 0.98  # the bytes depend on the machine and on torch's version
    assert f"accuracy {made['accuracy']:.4f}" in capsys.readouterr().out
    DigitsExtractor(NAME, ["64"], feature_extractor_weights_path=path)
