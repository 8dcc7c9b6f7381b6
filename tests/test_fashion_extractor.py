"""The `fashion` extractor: accuracy, and its scores of real, mixed and broken Fashion-MNIST."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from extractors import fashion_train
from safetensors import safe_open
from torch import Tensor

from gancore.data import Dataset
from gancore.data.mnist import DEBIAN, fashion_mnist
from gancore.scoring import score
from gancore.scoring.fashion import FashionExtractor

pytestmark = pytest.mark.skipif(
    not (DEBIAN / "t10k-images-idx3-ubyte.gz").is_file(),
    reason="needs Fashion-MNIST, which Debian's package dataset-fashion-mnist brings",
)

COUNT = 2000
"""Images to score: a fraction of the test split, for speed."""


@pytest.fixture(scope="module")
def test_split() -> Dataset:
    return fashion_mnist(path=str(DEBIAN), split="test")


def metadata(path: Path) -> dict[str, Any]:
    with safe_open(path, "pt") as file:
        found: dict[str, Any] = json.loads(file.metadata()["gancore"])
    return found


def reference(data: Dataset) -> Dataset:
    """The last images of the split, which no test below scores."""
    return Dataset("rest", data.samples[-COUNT:])


def fid(fake: Tensor, real: Dataset) -> float:
    scores = score(fake, real, metrics=["fid"], extractor_name="fashion")
    assert scores.protocol.extractor == "fashion"
    return scores.scores["fid"]


def of_classes(data: Dataset, shares: dict[int, int]) -> Tensor:
    """So many images of each class, from the split's beginning."""
    assert data.labels is not None
    return torch.cat([data.samples[data.labels == each][:n] for each, n in shares.items()])


def test_it_gets_nine_in_ten_held_out_images_right(test_split: Dataset) -> None:
    recorded = metadata(FashionExtractor.DEFAULT_WEIGHTS)
    extractor = FashionExtractor("under-test", ["64", "logits"])
    features, logits = (
        torch.cat(each)
        for each in zip(*(extractor(part) for part in test_split.samples.split(1000)), strict=True)
    )
    measured = (logits.argmax(dim=1) == test_split.labels).double().mean().item()
    assert measured >= 0.9
    # rounding differs between machines: an image or two may fall the other way
    assert measured == pytest.approx(recorded["accuracy"], abs=3e-4)
    assert test_split.sha256 == recorded["test_sha256"]
    # standardized on the training images, so nearly so on these
    assert features.mean(dim=0).abs().max() < 0.1
    assert features.var(dim=0).sub(1).abs().max() < 0.2


def test_fid_tells_other_mixes_and_noise_from_real_images(test_split: Dataset) -> None:
    real = reference(test_split)
    noise = torch.randint(
        0, 256, (COUNT, 1, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    same = fid(test_split.samples[:COUNT], real)
    uneven = fid(
        of_classes(test_split, {each: 350 if each < 5 else 50 for each in range(10)}), real
    )
    three = fid(of_classes(test_split, {0: 667, 5: 667, 9: 666}), real)
    # measured: 0.40, 7.9, 26, 33
    assert 0 < same < 0.5
    assert 10 * same < uneven < three < fid(noise, real)


def test_is_of_real_images_and_of_one_class(test_split: Dataset) -> None:
    images = {"all": test_split.samples[:COUNT], "one": of_classes(test_split, {8: 900})}
    found = {
        name: score(each, test_split, metrics=["isc"], extractor_name="fashion").scores["isc"]
        for name, each in images.items()
    }
    # measured: 7.9 and 1.1
    assert 7 < found["all"] < 10
    assert 1 <= found["one"] < 2


@pytest.mark.slow
@pytest.mark.skipif(
    os.environ.get("GANCORE_SLOW") != "1", reason="takes minutes: set GANCORE_SLOW=1"
)
def test_script_reproduces_the_weights(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    path = tmp_path / "fashion.safetensors"
    try:
        fashion_train.main(path)
    finally:
        torch.set_num_threads(threads)
    made = metadata(path)
    recorded = metadata(FashionExtractor.DEFAULT_WEIGHTS)
    assert made.keys() == recorded.keys()
    assert made["train_sha256"] == recorded["train_sha256"]
    assert made["accuracy"] >= 0.9  # the bytes depend on the machine and on torch's version
    assert f"accuracy {made['accuracy']:.4f}" in capsys.readouterr().out
    FashionExtractor("under-test", ["64"], feature_extractor_weights_path=path)
