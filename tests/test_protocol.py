"""What a score may be called."""

from __future__ import annotations

from typing import Any

import pytest

from gancore.scoring.protocol import better, score_name, shown_protocol, shown_scores

CANONICAL = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
"""As torch-fidelity's release has it; its first eight digits are in the file's name there."""


def protocol(extractor: str, weights: str = CANONICAL) -> dict[str, Any]:
    return {
        "extractor": extractor,
        "weights_sha256": weights,
        "samples": 10,
        "seed": 3,
        "reference": {"name": "ring", "split": "train", "samples": 20},
        "versions": {"torch-fidelity": "0.4.0"},
    }


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
    assert shown_scores({"scores": scores, "protocol": protocol("digits")}) == {
        "Inception Score (digits features)": "5.432 ± 0.12",
        "FID (digits features)": "12.35",
        "2-Wasserstein distance (digits features)": "0.3 (real samples: 0.25)",
    }
    points = {"samples": 9, "seed": 1, "reference": protocol("digits")["reference"]}
    assert list(shown_scores({"scores": {"modes": 8.0}, "protocol": points})) == ["modes covered"]


def test_the_protocol_in_one_line() -> None:
    assert shown_protocol(protocol("digits")) == (
        "10 samples against 20 of ring (train), extractor digits (weights 6726825d), seed 3, "
        "torch-fidelity 0.4.0"
    )
    points = {"samples": 9, "seed": 1, "reference": protocol("digits")["reference"]}
    assert shown_protocol(points) == "9 samples against 20 of ring (train), seed 1"


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
