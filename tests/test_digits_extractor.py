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
from safetensors import safe_open
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from gancore.scoring import digits_train
from gancore.scoring.digits import DigitsExtractor, DigitsNet

NAME = "digits-under-test"
BOTH = ["64", "logits"]


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
    assert {"split", "seed", "epochs", "augmentation", "torch", "scikit-learn"} <= metadata.keys()
    assert DigitsExtractor.DEFAULT_WEIGHTS.stat().st_size < 1_000_000


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


@pytest.mark.parametrize("order", [["64", "logits"], ["logits", "64"], ["64"], ["logits"]])
def test_features_come_in_the_requested_order(images: Tensor, order: list[str]) -> None:
    extractor = DigitsExtractor(NAME, order)
    found = extractor.convert_features_tuple_to_dict(extractor(images[:5]))
    features, logits = extractor.net(images[:5])
    expected = {"64": features, "logits": logits}
    assert list(found) == order
    for name in order:
        assert torch.equal(found[name], expected[name])
        assert found[name].shape == (5, {"64": 64, "logits": 10}[name])
        assert found[name].dtype == torch.float32
        assert not found[name].requires_grad


def test_class_says_what_it_gives() -> None:
    assert DigitsExtractor.get_provided_features_list() == ("64", "logits")
    layers = map(DigitsExtractor.get_default_feature_layer_for_metric, ("isc", "fid", "kid", "prc"))
    assert list(layers) == ["logits", "64", "64", "64"]
    assert DigitsExtractor.feature_dim == 64
    assert DigitsExtractor.sample_shape == (1, 8, 8)
    assert DigitsExtractor.weights_path() == DigitsExtractor.DEFAULT_WEIGHTS
    assert DigitsExtractor.weights_path("other") == Path("other")


def test_net_takes_float_as_uint8(images: Tensor) -> None:
    net = DigitsNet().eval()
    for ours, same in zip(net(images[:9]), net(images[:9].float()), strict=True):
        assert torch.equal(ours, same)


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


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (torch.zeros(2, 1, 8, 8), r"not float32 of shape \(2, 1, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), r"not uint8 of shape \(2, 3, 8, 8\)"),
        (torch.zeros(2, 1, 16, 16, dtype=torch.uint8), r"not uint8 of shape \(2, 1, 16, 16\)"),
        (torch.zeros(1, 8, 8, dtype=torch.uint8), r"not uint8 of shape \(1, 8, 8\)"),
    ],
)
def test_refuses_other_input(bad: Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=r"takes uint8 images of shape \(B, 1, 8, 8\), " + said):
        DigitsExtractor(NAME, BOTH)(bad)


def test_refuses_what_is_not_a_tensor() -> None:
    with pytest.raises(ValueError, match="takes a tensor, not ndarray"):
        DigitsExtractor(NAME, BOTH)(np.zeros((1, 1, 8, 8), dtype=np.uint8))


def test_refuses_another_dtype_inside() -> None:
    with pytest.raises(ValueError, match="computes in float32, not float64"):
        DigitsExtractor(NAME, BOTH, feature_extractor_internal_dtype="float64")


def test_honours_given_weights(tmp_path: Path, images: Tensor) -> None:
    net = DigitsNet().eval()
    save_file(net.state_dict(), tmp_path / "other.safetensors")
    extractor = DigitsExtractor(
        NAME, ["64"], feature_extractor_weights_path=str(tmp_path / "other.safetensors"), cuda=False
    )
    assert torch.equal(extractor(images[:5])[0], net(images[:5])[0])


def test_refuses_other_weights(tmp_path: Path) -> None:
    torch.save(DigitsNet().state_dict(), tmp_path / "pickle.pth")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    for file in ("pickle.pth", "other.safetensors"):
        with pytest.raises(ValueError, match="does not hold the weights of a DigitsNet") as error:
            DigitsExtractor(NAME, BOTH, feature_extractor_weights_path=tmp_path / file)
        assert "\n" not in str(error.value)
    with pytest.raises(FileNotFoundError):
        DigitsExtractor(NAME, BOTH, feature_extractor_weights_path=tmp_path / "none")


def test_meta_device() -> None:
    batch = torch.empty(3, 1, 8, 8, dtype=torch.uint8, device="meta")
    features, logits = DigitsExtractor(NAME, BOTH).to("meta")(batch)
    assert features.is_meta
    assert (features.shape, logits.shape) == ((3, 64), (3, 10))
    with torch.device("meta"):
        loaded = DigitsExtractor(NAME, BOTH)
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_agrees_with_cpu(images: Tensor) -> None:
    extractor = DigitsExtractor(NAME, BOTH)
    expected = extractor(images)
    for ours, other in zip(extractor.cuda()(images.cuda()), expected, strict=True):
        torch.testing.assert_close(ours.cpu(), other, rtol=1e-2, atol=1e-2)  # TF32 convolutions


def test_training_is_deterministic_and_leaves_the_random_state() -> None:
    images, labels = digits_train.load_data()
    before = torch.get_rng_state()
    first, second = (digits_train.train(images[:300], labels[:300], epochs=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name


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
    DigitsExtractor(NAME, BOTH, feature_extractor_weights_path=path)
