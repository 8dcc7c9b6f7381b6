"""Rows, measures, the gate, and `gan try` as its users call it."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from scipy import stats

from gancore.errors import GancoreError, InputError
from gancore_truth.card import Card, Settings, measured
from gancore_truth.columns import number
from gancore_truth.flow import flow
from gancore_truth.gate import Earlier, differences
from gancore_truth.measured import Measure, allowed, apart, marks
from gancore_truth.pairs import Funnels, Shift
from gancore_truth.rows import Row, rows
from gancore_truth.transport import Training

pytestmark = pytest.mark.slow

TINY = Settings(
    seeds=2, training=Training(updates=6, width=8, samples=64), flow_updates=3, cost_rounds=1
)


def card(*asked: str, against: tuple[str, ...] = (), settings: Settings = TINY) -> Card:
    pairs = [Funnels.radial(2), Shift.along(3)]
    lines = measured(rows(asked, against), pairs, settings, lambda *told: None)
    return Card(tuple(lines), tuple(pair.name for pair in pairs), settings)


def test_rows_are_read() -> None:
    row = Row.of("r1:gamma=0.5+lazy:every=4,targets=['r1']")
    assert row.plugins == (
        ("r1", (("gamma", 0.5),)),
        ("lazy", (("every", 4), ("targets", ["r1"]))),
    )
    assert [loaded.name for loaded in row.load()] == ["r1", "lazy"]
    assert Row.of("none").plugins == ()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpp", "Did you mean 'gp'"),
        ("gp:wieght=1", "wieght"),
        ("gp:weight=-1", "greater than 0"),
        ("gp:weight", "is no option: write OPTION=VALUE"),
        ("+gp", "names no plugin"),
        ("sn+clip", "can't be combined"),
        ("lazy:targets=['r1']", "no penalty of this recipe"),
        ("hinge", "exactly one loss"),
    ],
)
def test_wrong_rows_are_told(text: str, message: str) -> None:
    with pytest.raises(GancoreError, match=message):
        Row.of(text)


def test_the_rows_of_a_card() -> None:
    assert [row.name for row in rows(["gp:weight=1"])] == [
        *("none", "gp:weight=1", "gp", "r1:gamma=1", "r2:gamma=1", "sn", "clip")
    ]
    ours = rows(["gp", "none"], ["gp", "r1"])
    assert [(row.name, row.asked) for row in ours] == [
        *(("none", True), ("gp", True), ("r1", False))
    ]


def test_an_interval_is_students() -> None:
    values = (1.0, 2.0, 4.0)
    low, high = stats.t.interval(0.95, 2, loc=7 / 3, scale=stats.sem(values))
    told = Measure(values).table()
    assert (told["low"], told["high"]) == pytest.approx((low, high))
    assert Measure((3.0,)).table() == {"value": 3, "low": 3, "high": 3, "values": [3]}


def test_the_best_and_its_ties() -> None:
    column = {
        "far": Measure((5.0, 5.1, 4.9)),
        "near": Measure((1.02, 1.0, 1.01)),
        "tie": Measure((1.0, 1.06, 1.1)),
    }
    assert marks(column, lambda value: abs(value - 1)) == {"near": "best", "tie": "tie"}
    assert marks({"a": Measure((2.0,)), "b": Measure((2.0,))}, abs) == {"a": "best", "b": "tie"}
    assert marks({}, abs) == {}
    assert not apart(Measure((1.0, 2.0)), Measure((1.1, 2.1)))


def test_how_far_two_cards_may_be_apart() -> None:
    one, other = Measure((10.0, 10.5, 9.5)), Measure((10.0, 11.0, 9.0, 10.0))
    pooled = math.sqrt((2 * 0.25 + 3 * (2 / 3)) / 5)
    quantile = stats.t.ppf(1 - 0.001 / 7 / 2, 5)
    assert allowed(one, other, 7) == pytest.approx(quantile * pooled * math.sqrt(1 / 3 + 1 / 4))
    exact = stats.norm.ppf(1 - 0.001 / 2) * 0.01 * 100 * math.sqrt(2)
    assert allowed(Measure((100.0,)), Measure((99.0,)), 1) == pytest.approx(exact)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.9671, ".967"), (1.0612, "1.06"), (2812.3, "2.8e+03"), (-0.5, "-.500"), (0.0, ".000")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


def test_clipped_critics_let_gradients_vanish_or_explode() -> None:
    """Gulrajani et al., 2017, figure 1b."""
    small, large = (Row.of(f"clip:limit={limit}").load() for limit in (0.01, 0.1))
    vanishing, exploding = flow(small, seed=0), flow(large, seed=0)
    penalized = flow(Row.of("gp").load(), seed=0)
    assert vanishing.slope > 0.5
    assert exploding.slope < -0.3
    assert abs(penalized.slope) < 0.1
    assert vanishing.border > 0.3 > 0.05 > penalized.border


def test_a_card_is_the_same_again_and_is_json() -> None:
    one, other = card("gp", "cr").table(), card("gp", "cr").table()
    for table in (one, other):
        json.loads(json.dumps(table, allow_nan=False))
        for row in table["rows"]:
            for key in ("time_ratio", "memory_ratio"):
                row["cost"].pop(key, None)
    assert one == other
    assert one["settings"]["asked"] == ["gp", "cr"]
    assert set(one["rows"][0]) == {
        *("name", "plugins", "transport", "local", "scales", "flow", "cost", "refused")
    }
    refused = {row["name"]: row["refused"] for row in one["rows"]}
    assert refused["gp"] == {}
    assert "images" in refused["cr"]["transport/funnels1-2"]
    assert torch.get_num_threads() >= 1


def saved(tmp_path: Path, made: Card) -> Path:
    path = tmp_path / "card.json"
    path.write_text(json.dumps(made.table()))
    return path


def test_the_gate_passes_what_is_the_same_and_tells_what_is_not(tmp_path: Path) -> None:
    path = saved(tmp_path, card("r1:gamma=1"))
    assert differences(card("r1:gamma=1"), Earlier.read(path)) == []
    faults = differences(card("r1:gamma=2"), Earlier.read(path))  # as a ½ left out would be
    assert any("dirac, wasserstein, mean Re λ was -0.5, is -1" in fault for fault in faults)
    with pytest.raises(InputError, match="no asked row of r2's plugins. It was asked for r1:gamma"):
        differences(card("r2"), Earlier.read(path))


def test_the_gate_judges_neither_time_nor_memory(tmp_path: Path) -> None:
    made = card("r2")
    table = made.table()
    for row in table["rows"]:
        for key in ("time_ratio", "memory_ratio"):
            row["cost"][key]["values"] = [1000.0]
    path = tmp_path / "card.json"
    path.write_text(json.dumps(table))
    assert differences(made, Earlier.read(path)) == []
    for row in table["rows"]:
        row["cost"]["flops_ratio"]["values"] = [1000.0]
    path.write_text(json.dumps(table))
    (fault,) = differences(made, Earlier.read(path))
    assert fault.startswith("r2: flops_ratio was 1000")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no card"),
        ("[]", "card.json"),
        ("{}", "format"),
        ('{"format": 2, "settings": {"asked": [], "pairs": []}, "rows": []}', "has format 2"),
    ],
)
def test_what_is_no_card_is_told(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "card.json").write_text(text)
    with pytest.raises(InputError, match=message):
        Earlier.read(tmp_path / "card.json")


def gan_try(*arguments: object, **environment: str) -> tuple[int, str, str]:
    command = [sys.executable, "-m", "gancore", "try", *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env={**os.environ, "COLUMNS": "100", **environment},
    )
    return done.returncode, done.stdout, done.stderr


def test_gan_try(tmp_path: Path) -> None:
    out = tmp_path / "card"
    small = ("--updates", 5, "--seeds", 2, "--dimensions", 2)
    code, table, err = gan_try("gp:one_sided=true", "--against", "cr", "--out", out, *small)
    assert code == 0, err
    assert "gp:one_sided=true" in table
    assert "images" in table
    assert "Traceback" not in table + err
    assert {path.name for path in out.iterdir()} == {"card.json", "card.md", "card.png"}
    assert (out / "card.png").read_bytes().startswith(b"\x89PNG")
    assert "gp:one\\_sided=true" in (out / "card.md").read_text()

    again = ("gp:one_sided=true", "--expect", out / "card.json", *small)
    code, _, err = gan_try(*again)
    assert code == 0, err
    code, _, err = gan_try("gp:weight=1000", "--expect", out / "card.json", *small)
    assert code == 1
    assert "not what the card says" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gpp"], "Did you mean 'gp'"),
        (["--expect", "card.json"], "name them"),
        (["gp", "--expect", "nowhere.json"], "nowhere.json is no card"),
        (["gp", "--dimensions", "2,x"], "expected whole numbers"),
        (["gp", "--dimensions", "0"], "expected whole numbers"),
    ],
)
def test_mistakes_are_told_in_a_line(arguments: list[str], message: str) -> None:
    code, _, err = gan_try(*arguments)
    assert code == 2
    assert message in err
    assert "Traceback" not in err


def test_a_strangers_file_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "card.png").write_text("mine")
    code, _, err = gan_try("gp", "--out", tmp_path)
    assert code == 2
    assert "is no card's" in err
    assert (tmp_path / "card.png").read_text() == "mine"
