"""Scores against torch-fidelity's own on exported pictures, and the refusals."""

from __future__ import annotations

import hashlib
import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
import torch
from helpers import Pictures
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch_fidelity import calculate_metrics
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from gancore.data import Dataset
from gancore.data.digits import digits
from gancore.errors import PluginError, ScoreError
from gancore.report import save_images
from gancore.scoring import extractor, fidelity, score
from gancore.scoring.digits import DigitsExtractor
from gancore.scoring.extractors import inception_path
from gancore.scoring.features import Features


def noisy(count: int) -> Tensor:
    """Real digits, dirtied: something to score."""
    torch.manual_seed(0)
    images = digits().samples[:count].float()
    return (images + 40 * torch.randn_like(images)).round().clamp(0, 255).to(torch.uint8)


def in_our_words(theirs: dict[str, float]) -> dict[str, float]:
    """Return torch-fidelity's scores by our keys."""
    return {
        "fid": theirs["frechet_inception_distance"],
        "isc": theirs["inception_score_mean"],
        "isc_std": theirs["inception_score_std"],
        "kid": theirs["kernel_inception_distance_mean"],
        "kid_std": theirs["kernel_inception_distance_std"],
        "precision": theirs["precision"],
        "recall": theirs["recall"],
    }


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
    assert ours.scores == pytest.approx(in_our_words(theirs), rel=1e-6)
    protocol = ours.protocol
    assert protocol.samples == 300
    assert protocol.table()["kid_subset_size"] == 300
    assert protocol.reference.table() == {
        "name": "digits",
        "split": "all",
        "samples": 1797,
        "sha256": real.sha256,
    }
    assert protocol.weights_sha256 == extractor("digits").weights_sha256()


@pytest.mark.parametrize("metrics", [["isc"], ["fid"], ["kid"]])
def test_one_metric_alone_is_what_it_is_among_others(metrics: list[str]) -> None:
    fake, real = noisy(100), digits()
    alone = score(fake, real, metrics=metrics, extractor_name="digits").scores
    together = score(fake, real, metrics=["fid", "isc", "kid"], extractor_name="digits").scores
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
def test_inception_scores_are_those_of_torch_fidelitys_own_command(
    inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same weights on the exported pictures, colour and grey, which is repeated.

    FID of so few means nothing, so that it is refused, but it is a number to compare.
    """
    monkeypatch.setattr("gancore.scoring.scorer.refuse_few", lambda *args: None)
    torch.manual_seed(0)
    metrics = ["isc", "kid", "prc", "fid"]
    real = digits().samples[:14]
    fake = (real[:12] + 40 * torch.randn(12, 3, 8, 8)).round().clamp(0, 255).to(torch.uint8)
    ours = score(
        fake, Dataset("real", real), metrics=metrics, weights=str(inception_weights), seed=5
    )
    save_images(fake, tmp_path / "fake")
    save_images(real, tmp_path / "real")
    command = (
        f"{sys.executable} -m torch_fidelity.fidelity --cpu --json --silent --no-cache "
        f"--save-cpu-ram --input1 {tmp_path / 'fake'} --input2 {tmp_path / 'real'} "
        f"--feature-extractor-weights-path {inception_weights} "
        f"--feature-extractor inception-v3-compat --kid-subset-size 12 --rng-seed 5 "
        f"--{' --'.join(metrics)}"
    ).split()
    theirs = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert ours.scores == pytest.approx(in_our_words(theirs), rel=1e-5)
    assert ours.scores["isc"] > 1
    assert ours.protocol.extractor == "inception-v3-compat"


def test_absent_inception_weights_say_where_to_put_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def offline(*args: object, **kwargs: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    with pytest.raises(ScoreError) as caught:
        extractor("inception-v3-compat")
    message = str(caught.value)
    assert "Name or service not known" in message
    assert f"{inception_path().name} is not in {inception_path().parent}" in message
    assert message.endswith("or name it by --set score.weights=PATH")
    assert "\n" not in message
    assert not list(tmp_path.rglob("*.pth*"))


def test_inception_weights_of_another_hash_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    answer = io.BytesIO(b"a page that says sorry")
    answer.length = None  # type: ignore[attr-defined]
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: answer)
    digest = hashlib.sha256(b"a page that says sorry").hexdigest()
    with pytest.raises(ScoreError, match=f"its SHA256 is {digest}, expected 6726825d"):
        extractor("inception-v3-compat")
    assert not inception_path().exists()


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


def test_any_seed_of_a_recipe_can_be_scored_with() -> None:
    fake, real = noisy(64), digits()
    for metrics in (["isc", "kid"], ["prc"]):
        for seed in (2**63 - 1, 2**32 + 7, 7):
            found = score(fake, real, metrics=metrics, extractor_name="digits", seed=seed)
            assert found.protocol.seed == seed
            assert all(map(math.isfinite, found.scores.values()))
    score(noisy(4), real, metrics=["prc"], extractor_name="digits")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"fake": noisy(63)}, ScoreError, "FID in 64 features .* 63 generated"),
        ({"fake": noisy(9), "metrics": ["isc"]}, ScoreError, "IS needs 10"),
        ({"fake": noisy(3), "metrics": ["prc"]}, ScoreError, "neighbour number 3, and here are 3"),
        ({"fake": noisy(70).repeat(1, 3, 1, 1)}, ScoreError, "takes 1×8×8 images, these are 3×8×8"),
        (
            {"real": Dataset("ring", torch.zeros(99, 2))},
            ScoreError,
            "fid can't be computed for the points of 'ring': choose of w2,",
        ),
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


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "gancore"


def seen(fake: Tensor, real: Dataset, metrics: list[str], **options: Any) -> tuple[set[str], Any]:
    """Return what went through the extractor, and the scores."""
    what = set()
    scores = score(
        fake,
        real,
        metrics=metrics,
        extractor_name="digits",
        progress=lambda name, done, total: what.add(name),
        **options,
    ).scores
    return what, scores


BOTH = {"scoring", "real samples"}


def test_features_of_the_real_samples_are_computed_once(cache: Path) -> None:
    fake, real = noisy(200), digits()
    assert seen(fake, real, ["isc"])[0] == {"scoring"}
    first = seen(fake, real, ["fid"])
    assert first[0] == BOTH
    assert {path.name.split("-")[0] for path in cache.iterdir()} == {"statistics"}
    again = seen(fake, digits(), ["isc", "fid"])
    assert again[0] == {"scoring"}
    assert again[1]["fid"] == first[1]["fid"]
    with_kid = seen(fake, real, ["fid", "kid"])  # which wants more than the statistics
    assert with_kid[0] == BOTH
    assert with_kid[1]["fid"] == first[1]["fid"]
    assert seen(fake, real, ["kid", "prc"]) == (
        {"scoring"},
        {**seen(fake, real, ["prc"])[1], **{k: v for k, v in with_kid[1].items() if "kid" in k}},
    )


@pytest.mark.parametrize("what", ["data", "count", "weights", "threads", "machine"])
def test_what_defines_the_features_is_what_they_are_kept_by(
    cache: Path, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, real = noisy(200), digits()
    before = seen(fake, real, ["fid"])[1]["fid"]
    options = {}
    match what:
        case "data":
            samples = real.samples.clone()
            samples[0, 0, 0, 0] += 1
            real = Dataset("digits", samples, split="all")
        case "count":
            real = Dataset("digits", real.samples[:1000], split="all")
        case "weights":
            tensors = load_file(DigitsExtractor.DEFAULT_WEIGHTS)
            save_file({name: 1.01 * tensor for name, tensor in tensors.items()}, tmp_path / "w")
            options = {"weights": str(tmp_path / "w")}
        case "threads":
            torch.set_num_threads(2)
        case "machine":
            monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    try:
        found, scores = seen(fake, real, ["fid"], **options)
    finally:
        torch.set_num_threads(1)
    assert found == BOTH
    assert (scores["fid"] == pytest.approx(before, rel=1e-6)) == (
        what in ("threads", "machine", "data")
    )


@pytest.mark.parametrize("damage", [b"", b"nonsense", None])
def test_damaged_statistics_are_made_anew(cache: Path, damage: bytes | None) -> None:
    fake, real = noisy(200), digits()
    first = seen(fake, real, ["fid"])
    kept = next(cache.iterdir())
    content = bytearray(kept.read_bytes())
    content[-9] ^= 1
    kept.write_bytes(bytes(content) if damage is None else damage)
    assert seen(fake, real, ["fid"]) == first
    assert seen(fake, real, ["fid"]) == ({"scoring"}, first[1])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_counted(
    cache: Path, monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Of generated images or real ones; those are not kept for the next time either."""
    fake, real, whole = noisy(100), digits(), Features.__call__

    def fail(which: str) -> None:
        def broken(self: Features, images: Tensor, what: str) -> dict[str, Tensor]:
            found = whole(self, images, what)
            if what == which:
                found["features"][3:10, 5] = value
            return found

        monkeypatch.setattr(Features, "__call__", broken)

    for which, told in (
        ("scoring", "7 of 100 generated images"),
        ("real samples", "7 of 1,797 real images"),
        ("real samples", "7 of 1,797 real images"),
    ):
        fail(which)
        with pytest.raises(ScoreError, match=f"'digits' makes inf or nan of {told}"):
            score(fake, real, metrics=["fid"], extractor_name="digits")


def test_a_score_that_comes_out_as_nan_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    nan = {"inception_score_mean": float("nan"), "inception_score_std": 0.0}
    monkeypatch.setattr(fidelity, "isc_features_to_metric", lambda *args, **options: nan)
    with pytest.raises(ScoreError, match="^isc in the features of 'digits' came out as inf or nan"):
        score(noisy(100), digits(), metrics=["isc"], extractor_name="digits")
