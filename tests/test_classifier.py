"""What the packaged extractors share: the contract with torch-fidelity, and training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from extractors import digits_train, fashion_train
from extractors.fitting import accuracy, fit
from helpers import DIGITS, Gan
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from gancore.data import Dataset
from gancore.errors import ScoreError
from gancore.scoring import score
from gancore.scoring.classifier import ClassifierExtractor
from gancore.scoring.digits import DigitsExtractor, DigitsNet
from gancore.scoring.fashion import FashionExtractor, FashionNet

NAME = "under-test"
BOTH = ["64", "logits"]
Extractor = type[ClassifierExtractor]

extractors = pytest.mark.parametrize("cls", [DigitsExtractor, FashionExtractor])


def some(cls: Extractor, count: int = 9) -> Tensor:
    """Noise of the shape that an extractor takes."""
    generator = torch.Generator().manual_seed(0)
    shape = (count, *cls.sample_shape)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def metadata(cls: Extractor) -> dict[str, Any]:
    with safe_open(cls.DEFAULT_WEIGHTS, "pt") as file:
        assert set(file.metadata()) == {"gancore"}
        found: dict[str, Any] = json.loads(file.metadata()["gancore"])
    return found


@extractors
def test_the_shipped_weights_are_small_and_say_how_they_were_made(cls: Extractor) -> None:
    assert cls.DEFAULT_WEIGHTS.stat().st_size < 1_000_000
    recorded = {"accuracy", "split", "augmentation", "epochs", "seed", "scaling", "torch"}
    assert recorded <= metadata(cls).keys()


@pytest.mark.parametrize("order", [["64", "logits"], ["logits", "64"], ["64"], ["logits"]])
@extractors
def test_features_come_in_the_requested_order(cls: Extractor, order: list[str]) -> None:
    images = some(cls)
    extractor = cls(NAME, order)
    found = extractor.convert_features_tuple_to_dict(extractor(images))
    features, logits = extractor.net(images)
    expected = {"64": features, "logits": logits}
    assert list(found) == order
    for name in order:
        assert torch.equal(found[name], expected[name])
        assert found[name].shape == (9, {"64": 64, "logits": 10}[name])
        assert found[name].dtype == torch.float32
        assert not found[name].requires_grad


@pytest.mark.parametrize(
    ("cls", "shape"), [(DigitsExtractor, (1, 8, 8)), (FashionExtractor, (1, 32, 32))]
)
def test_class_says_what_it_gives(cls: Extractor, shape: tuple[int, ...]) -> None:
    assert cls.get_provided_features_list() == ("64", "logits")
    layers = map(cls.get_default_feature_layer_for_metric, ("isc", "fid", "kid", "prc"))
    assert list(layers) == ["logits", "64", "64", "64"]
    assert cls.feature_dim == 64
    assert cls.sample_shape == shape
    assert cls.weights_path() == cls.DEFAULT_WEIGHTS
    assert cls.weights_path("other") == Path("other")


@extractors
def test_net_takes_float_as_uint8(cls: Extractor) -> None:
    net = cls.NET().eval()
    for ours, same in zip(net(some(cls)), net(some(cls).float()), strict=True):
        assert torch.equal(ours, same)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((2, 1, "s", "s"), torch.float32),
        ((2, 3, "s", "s"), torch.uint8),
        ((2, 1, 16, 16), torch.uint8),
        ((1, "s", "s"), torch.uint8),
    ],
)
@extractors
def test_refuses_other_input(cls: Extractor, shape: tuple[Any, ...], dtype: torch.dtype) -> None:
    side = cls.sample_shape[-1]
    wrong = tuple(side if size == "s" else size for size in shape)
    with pytest.raises(ValueError, match="takes uint8") as error:
        cls(NAME, BOTH)(torch.zeros(wrong, dtype=dtype))
    kind = str(dtype).removeprefix("torch.")
    assert str(error.value) == (
        f"{NAME} takes uint8 images of shape (B, 1, {side}, {side}), not {kind} of shape {wrong}"
    )


@extractors
def test_refuses_what_is_not_a_tensor(cls: Extractor) -> None:
    with pytest.raises(ValueError, match="takes a tensor, not ndarray"):
        cls(NAME, BOTH)(np.zeros((1, *cls.sample_shape), dtype=np.uint8))


@extractors
def test_refuses_another_dtype_inside(cls: Extractor) -> None:
    with pytest.raises(ValueError, match="computes in float32, not float64"):
        cls(NAME, BOTH, feature_extractor_internal_dtype="float64")


@extractors
def test_honours_given_weights(cls: Extractor, tmp_path: Path) -> None:
    net = cls.NET().eval()
    save_file(net.state_dict(), tmp_path / "other.safetensors")
    extractor = cls(
        NAME, ["64"], feature_extractor_weights_path=str(tmp_path / "other.safetensors"), cuda=False
    )
    assert torch.equal(extractor(some(cls))[0], net(some(cls))[0])


@pytest.mark.parametrize(
    ("cls", "other"), [(DigitsExtractor, FashionNet), (FashionExtractor, DigitsNet)]
)
def test_refuses_other_weights(
    cls: Extractor, other: type[torch.nn.Module], tmp_path: Path
) -> None:
    torch.save(cls.NET().state_dict(), tmp_path / "pickle.pth")
    save_file(other().state_dict(), tmp_path / "other.safetensors")
    whole = cls.DEFAULT_WEIGHTS.read_bytes()
    for length, file in ((0, "empty"), (4, "four bytes"), (len(whole) // 2, "half")):
        (tmp_path / file).write_bytes(whole[:length])
    for file in ("pickle.pth", "other.safetensors", "empty", "four bytes", "half"):
        said = f"{file} does not hold the weights of a {cls.NET.__name__}.*out for the packaged"
        with pytest.raises(ScoreError, match=said) as error:
            cls(NAME, BOTH, feature_extractor_weights_path=tmp_path / file)
        assert str(error.value).isprintable()
    with pytest.raises(FileNotFoundError):
        cls(NAME, BOTH, feature_extractor_weights_path=tmp_path / "none")


@pytest.mark.parametrize("name", ["digits", "fashion"])
def test_broken_weights_of_a_score_are_told_as_such(name: str, tmp_path: Path) -> None:
    path = tmp_path / "broken\x1b.safetensors"
    path.write_bytes(b"x" * 100)
    cls = {"digits": DigitsExtractor, "fashion": FashionExtractor}[name]
    fakes = some(cls, 64)
    with pytest.raises(ScoreError, match=r"broken\\x1b.safetensors does not hold the") as error:
        score(fakes, Dataset("n", fakes), metrics=["fid"], extractor_name=name, weights=str(path))
    assert "score.weights" in str(error.value)


@pytest.mark.parametrize("name", ["digits", "inception-v3-compat"])
def test_weights_of_something_else_are_refused_before_the_training(
    name: str, gan: Gan, tmp_path: Path
) -> None:
    path, recipe = tmp_path / "other", tmp_path / "recipe.toml"
    if name == "digits":
        save_file(FashionNet().state_dict(), path)
    else:
        torch.save(FashionNet().state_dict(), path)
    recipe.write_text(DIGITS.replace('extractor = "digits"', f'extractor = "{name}"'))
    settings = [f"--set=score.weights={path}", '--set=score.metrics=["kid"]']
    code, out, err = gan("run", recipe, *settings, "--out", tmp_path / "run")
    assert code == 1
    assert f"{path} does not hold the weights of" in err
    assert len(err.splitlines()) == 1
    assert "step" not in out
    assert not (tmp_path / "run" / "recipe.toml").exists()


@extractors
def test_meta_device(cls: Extractor) -> None:
    batch = torch.empty(3, *cls.sample_shape, dtype=torch.uint8, device="meta")
    features, logits = cls(NAME, BOTH).to("meta")(batch)
    assert features.is_meta
    assert (features.shape, logits.shape) == ((3, 64), (3, 10))
    with torch.device("meta"):
        loaded = cls(NAME, BOTH)
    assert not any(tensor.is_meta for tensor in loaded.state_dict().values())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@extractors
def test_cuda_agrees_with_cpu(cls: Extractor) -> None:
    extractor = cls(NAME, BOTH)
    expected = extractor(some(cls))
    for ours, other in zip(extractor.cuda()(some(cls).cuda()), expected, strict=True):
        torch.testing.assert_close(ours.cpu(), other, rtol=1e-2, atol=1e-2)  # TF32 convolutions


@pytest.mark.parametrize(
    ("script", "cls"), [(digits_train, DigitsExtractor), (fashion_train, FashionExtractor)]
)
def test_training_is_deterministic_and_leaves_the_random_state(script: Any, cls: Extractor) -> None:
    images, labels = some(cls, 300), torch.arange(300) % 10
    before = torch.get_rng_state()
    first, second = (script.train(images, labels, epochs=1) for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name]), name
    embedded = first.embedding(images)  # the features' moments are those of the images as they are
    torch.testing.assert_close(first.standardize.running_mean, embedded.mean(dim=0))
    torch.testing.assert_close(first.standardize.running_var, embedded.var(dim=0))


def test_fit_learns_and_accuracy_counts() -> None:
    """Bright against dark squares: two of the ten classes, which anything can tell apart."""
    labels = torch.arange(200) % 2
    images = (labels * 200)[:, None, None, None].expand(200, 1, 8, 8).to(torch.uint8)
    net = fit(
        DigitsNet,
        images,
        labels,
        augment=lambda batch: batch.float(),
        epochs=2,
        batch=20,
        peak_lr=3e-3,
        seed=0,
    )
    assert accuracy(net, images, labels) == 1.0
    assert accuracy(net, images, labels * 0) == 0.5
