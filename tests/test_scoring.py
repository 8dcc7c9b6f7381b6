"""Scores against torch-fidelity's own on exported pictures, and the refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Pictures
from torch import Tensor
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from gancore.data import Dataset
from gancore.data.digits import digits
from gancore.errors import PluginError, ScoreError
from gancore.report import save_images
from gancore.scoring import extractor, score
from gancore.scoring.digits import DigitsExtractor
from gancore.scoring.extractors import inception_path


def noisy(count: int) -> Tensor:
    """Real digits, dirtied: something to score."""
    torch.manual_seed(0)
    images = digits().samples[:count].float()
    return (images + 40 * torch.randn_like(images)).round().clamp(0, 255).to(torch.uint8)


def test_scores_are_those_of_torch_fidelity_on_the_exported_pictures(tmp_path: Path) -> None:
    fake, real = noisy(300), digits()
    ours = score(fake, real, metrics=["fid", "isc", "kid", "prc"], extractor_name="digits", seed=3)
    save_images(fake, tmp_path / "fake")
    save_images(real.samples, tmp_path / "real")
    theirs = calculate_metrics(
        input1=Pictures(tmp_path / "fake"),
        input2=Pictures(tmp_path / "real"),
        feature_extractor="gancore-digits",
        fid=True,
        isc=True,
        kid=True,
        prc=True,
        kid_subset_size=300,
        rng_seed=3,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    assert ours["scores"] == pytest.approx(
        {
            "fid": theirs["frechet_inception_distance"],
            "isc": theirs["inception_score_mean"],
            "isc_std": theirs["inception_score_std"],
            "kid": theirs["kernel_inception_distance_mean"],
            "kid_std": theirs["kernel_inception_distance_std"],
            "precision": theirs["precision"],
            "recall": theirs["recall"],
        },
        rel=1e-6,
    )
    protocol = ours["protocol"]
    assert protocol["samples"] == 300
    assert protocol["kid_subset_size"] == 300
    assert protocol["reference"] == {
        "name": "digits",
        "split": "all",
        "samples": 1797,
        "sha256": real.sha256,
    }
    assert protocol["weights_sha256"] == extractor("digits").weights_sha256()


@pytest.mark.parametrize("metrics", [["isc"], ["fid"], ["kid"]])
def test_one_metric_alone_is_what_it_is_among_others(metrics: list[str]) -> None:
    fake, real = noisy(100), digits()
    alone = score(fake, real, metrics=metrics, extractor_name="digits")["scores"]
    together = score(fake, real, metrics=["fid", "isc", "kid"], extractor_name="digits")["scores"]
    assert alone == pytest.approx({key: together[key] for key in alone})


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights of the true architecture: the canonical ones can't be downloaded here.

    Kaiming's, since default ones give features that do not depend on the image.
    """
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.manual_seed(0)
    shapes = inception_state()
    state = {
        key: torch.nn.init.kaiming_normal_(torch.empty_like(tensor)) if tensor.dim() > 1 else tensor
        for key, tensor in shapes.items()
    }
    torch.save(state, path)
    return path


def inception_state() -> dict[str, Tensor]:
    """Return the state of an Inception net built without its weights."""
    captured: dict[str, Tensor] = {}

    def capture(self: FeatureExtractorInceptionV3, state: object) -> None:
        captured.update(torch.nn.Module.state_dict(self))

    patch = pytest.MonkeyPatch()
    with patch.context() as context:
        context.setattr(FeatureExtractorInceptionV3, "load_state_dict", capture)
        context.setattr(torch, "load", lambda *args, **kwargs: None)
        FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048"], feature_extractor_weights_path="none"
        )
    return captured


@pytest.mark.slow
def test_inception_with_given_weights_and_grey_images(inception_weights: Path) -> None:
    """Grey is repeated to three channels: the same numbers as for the repeated images."""
    grey = Dataset("grey", digits().samples[:12])
    colour = Dataset("colour", grey.samples.repeat(1, 3, 1, 1))
    found = [
        score(
            noisy(12).repeat(1, channels, 1, 1),
            real,
            metrics=["isc", "kid"],
            weights=str(inception_weights),
        )
        for channels, real in ((1, grey), (3, colour))
    ]
    assert found[0]["scores"] == found[1]["scores"]
    assert found[0]["scores"]["isc"] > 1
    assert found[0]["protocol"]["extractor"] == "inception-v3-compat"


def test_absent_inception_weights_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(ScoreError) as caught:
        extractor("inception-v3-compat")
    message = str(caught.value)
    assert "Name or service not known" in message
    assert str(inception_path()) in message
    assert "score.weights" in message


class Evil:
    def __reduce__(self) -> Any:
        return print, ("ran",)


def test_inception_weights_are_never_unpickled_blindly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save({"weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ScoreError, match="no file of Inception weights"):
        extractor("inception-v3-compat", str(tmp_path / "evil.pth"))
    assert "ran" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"fake": noisy(63)}, ScoreError, "FID in 64 features .* 63 generated"),
        ({"fake": noisy(9), "metrics": ["isc"]}, ScoreError, "IS needs 10"),
        ({"fake": noisy(70).repeat(1, 3, 1, 1)}, ScoreError, "takes 1×8×8 images, these are 3×8×8"),
        ({"real": Dataset("ring", torch.zeros(99, 2))}, ScoreError, "'ring' is points"),
        ({"extractor_name": "digit"}, PluginError, "Did you mean 'digits'"),
        ({"weights": "/nowhere"}, ScoreError, "there is no file /nowhere"),
    ],
)
def test_what_can_not_be_scored_is_refused(
    changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    arguments = {
        "fake": noisy(70),
        "real": digits(),
        "metrics": ["fid"],
        "extractor_name": "digits",
        **changes,
    }
    with pytest.raises(error, match=message):
        score(arguments.pop("fake"), arguments.pop("real"), **arguments)


def test_extractor_facts() -> None:
    found = extractor("digits")
    assert (found.feature_dim, found.sample_shape) == (64, (1, 8, 8))
    assert found.weights == DigitsExtractor.DEFAULT_WEIGHTS
    assert extractor("digits") == found
