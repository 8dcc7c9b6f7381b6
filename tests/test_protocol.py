"""What a score may be called."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from gancore.errors import MissingError
from gancore.recipe import Score
from gancore.scoring.protocol import (
    Protocol,
    RealSamples,
    Scores,
    answers,
    better,
    score_name,
    shown_protocol,
    shown_scores,
)

CANONICAL = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""As torch-fidelity's release has it; its first eight digits are in the file's name there."""

REAL = RealSamples(name="ring", split="train", samples=20)
POINTS = Protocol(reference=REAL, samples=9, seed=1, versions={})


def protocol(extractor: str, weights: str = CANONICAL) -> Protocol:
    return Protocol(
        extractor=extractor,
        weights_sha256=weights,
        samples=10,
        seed=3,
        reference=REAL,
        versions={"torch-fidelity": "0.4.0"},
    )


@pytest.mark.parametrize(
    ("key", "extractor", "weights", "name"),
    [
        ("fid", "inception-v3-compat", CANONICAL, "FID"),
        ("isc", "inception-v3-compat", CANONICAL, "Inception Score"),
        ("fid", "inception-v3-compat", "ab" * 32, "Fréchet distance (Inception weights abababab)"),
        ("isc", "inception-v3-compat", "ab" * 32, "Inception Score (Inception weights abababab)"),
        ("fid", "digits", "ab" * 32, "FID (digits features)"),
        ("fid", "digits", CANONICAL, "FID (digits features)"),
    ],
)
def test_only_canonical_inception_makes_an_fid(
    key: str, extractor: str, weights: str, name: str
) -> None:
    assert score_name(key, protocol(extractor, weights)) == name


def test_the_canonical_weights_are_those_that_torch_fidelity_downloads() -> None:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    from gancore.scoring import protocol

    assert protocol.CANONICAL == CANONICAL
    assert URL_INCEPTION_V3.endswith(f"-{CANONICAL[:8]}.pth")


def test_scores_are_shown_with_spread_and_floor() -> None:
    scores = {"isc": 5.4321, "isc_std": 0.123, "fid": 12.345, "w2": 0.3, "w2_real": 0.25}
    assert shown_scores(Scores(scores=scores, protocol=protocol("digits"))) == {
        "Inception Score (digits features)": "5.432 ± 0.12",
        "FID (digits features)": "12.35",
        "2-Wasserstein distance": "0.3 (real samples: 0.25)",  # points have no features
    }
    modes = Scores(scores={"modes": 8.0}, protocol=POINTS)
    assert shown_scores(modes) == {"modes covered": "8"}


def test_scores_of_metrics_that_are_not_installed_go_by_their_keys() -> None:
    scores = {"sharp": 0.5, "sharp_std": 0.25, "sharp_other": 2.0}
    shown = shown_scores(Scores(scores=scores, protocol=protocol("digits")))
    assert shown == {"sharp": "0.5 ± 0.25", "sharp_other": "2"}


def test_the_protocol_in_one_line() -> None:
    assert shown_protocol(protocol("digits")) == (
        "10 samples against 20 of ring (train), extractor digits (weights 6726825d), seed 3, "
        "torch-fidelity 0.4.0"
    )
    assert shown_protocol(POINTS) == "9 samples against 20 of ring (train), seed 1"
    assert shown_protocol(POINTS, "1, 2") == "9 samples against 20 of ring (train), seed 1, 2"


def test_what_a_score_is_called_and_which_way_is_better_is_known_without_torch() -> None:
    code = (
        "import sys\n"
        "from gancore.scoring.protocol import better, keys\n"
        "import gancore.scoring.metrics, gancore.scoring\n"
        "assert better('isc', 2.0, 1.0) and not better('fid', 2.0, 1.0)\n"
        "assert keys(['prc', 'w2']) == ['precision', 'recall', 'w2']\n"
        "heavy = {'torch', 'torch_fidelity', 'scipy', 'gancore.scoring.points'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_what_answers_a_recipe_s_section() -> None:
    scores = Scores(scores={"precision": 0.5, "recall": 0.5}, protocol=protocol("digits"), step=7)
    section = Score(metrics=("prc",), samples=10, extractor="digits")
    assert answers(scores, section, 7)
    assert not answers(None, section, 7)
    assert not answers(scores, section, 8)
    for other in ({"samples": 11}, {"extractor": "fashion"}, {"metrics": ("prc", "fid")}):
        assert not answers(scores, section.model_copy(update=other), 7)
    half = scores.model_copy(update={"scores": {"precision": 0.5}})
    assert not answers(half, section, 7)
    points = Scores(scores={"w2": 1.0}, protocol=POINTS, step=7)
    assert answers(points, Score(metrics=("w2",), samples=9, extractor="any"), 7)
    with pytest.raises(MissingError, match=r"no metric 'sharp' is installed"):
        answers(scores, section.model_copy(update={"metrics": ("sharp",)}), 7)


def test_scores_of_one_protocol_are_kept_together() -> None:
    before = Scores(scores={"fid": 1.0, "isc": 2.0}, protocol=POINTS, metrics={"x": "a"})
    now = Scores(scores={"fid": 3.0}, protocol=POINTS, step=2)
    assert now.together_with(before).table() == {
        "scores": {"fid": 3.0, "isc": 2.0},
        "protocol": POINTS.table(),
        "metrics": {"x": "a"},
        "step": 2,
    }
    assert "metrics" not in now.together_with(now).table()


def test_scores_keep_what_a_file_has_beside_them() -> None:
    table = {
        "scores": {"w2": 1.0},
        "protocol": {**POINTS.table(), "w2_samples": 9},
        "spread": 0.5,
        "of somebody else's": [1],
    }
    assert Scores.model_validate_json(json.dumps(table)).table() == table


def test_which_way_is_better() -> None:
    assert better("fid", 1.0, 2.0)
    assert better("w2", 1.0, 2.0)
    assert better("kid", -0.1, 0.0)
    assert better("isc", 2.0, 1.0)
    assert better("modes", 8.0, 7.0)
    assert better("quality", 0.9, 0.8)
    assert better("precision", 0.9, 0.8)
    assert not any(better(key, 1.0, 1.0) for key in ("fid", "isc"))
    assert not any(better(key, float("nan"), 1.0) for key in ("fid", "isc"))
