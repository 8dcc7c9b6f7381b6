"""A run and a board of the version before still open: what is in tests/earlier was made by it."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT, started
from safetensors.torch import load_file

import gancore
from gancore.leaderboard.board import Board
from gancore.leaderboard.costs import measure_costs
from gancore.scoring.sampling import generate

EARLIER = ROOT / "tests" / "earlier"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EARLIER / "run", tmp_path / "run"))


def went(*arguments: object) -> tuple[str, str]:
    """Run gan in a process of its own; return what it printed."""
    code, out, err = started(*arguments)
    assert code == 0, out + err
    return out, err


def last(run: Path) -> Path:
    return run / "checkpoints" / "step-000006"


def test_the_earlier_run_is_as_it_was() -> None:
    """None of it was made by the code that is tested here."""
    manifest = json.loads((last(EARLIER / "run") / "manifest.json").read_text())
    for name, sha256 in manifest.items():
        assert hashlib.sha256((last(EARLIER / "run") / name).read_bytes()).hexdigest() == sha256
    assert "shape" not in json.loads((last(EARLIER / "run") / "state.json").read_text())


def test_its_report(run: Path) -> None:
    out, err = went("report", run)
    assert (out.splitlines()[-1], err) == (f"report in {run / 'report.html'}", "")
    html = (run / "report.html").read_text()
    for text in ("6 of 6 steps, seed 0", "1.436 (real samples: 0.7216)", "Value surface"):
        assert text in html


def test_its_samples_and_scores(run: Path, tmp_path: Path) -> None:
    went("sample", run, "-n", 64, "--out", tmp_path / "samples.npz")
    samples = np.load(tmp_path / "samples.npz")["arr_0"]
    assert samples.shape == (64, 2)
    before = json.loads((run / "scores.json").read_text())
    (run / "scores.json").unlink()
    out, _ = went("score", run)
    assert "2-Wasserstein distance  1.436 (real samples: 0.7216)" in out
    now = json.loads((run / "scores.json").read_text())
    assert now["scores"] == pytest.approx(before["scores"], rel=1e-4)
    assert now["protocol"]["reference"] == before["protocol"]["reference"]
    real = gancore.Run.open(run).read().recipe.data
    assert (real.name, real.options["std"]) == ("gaussians8", 0.02)
    # eight modes on a circle of radius √2, blurred: a variance of 1 + 0.02² in each coordinate
    share = samples.astype(np.float64).var(axis=0).sum() / (2 + 2 * 0.02**2)
    assert now["spread"] == pytest.approx(share, rel=0.2)
    assert now["spread"] == pytest.approx(before["spread"], rel=1e-3)


def test_its_networks(run: Path) -> None:
    generator, critic = gancore.load_generator(run), gancore.load_critic(run)
    averaged = load_file(last(run) / "ema.safetensors")
    for name, weight in generator.state_dict().items():
        assert torch.equal(weight, averaged[f"module.{name}"])
    trained = load_file(last(run) / "critic.safetensors")
    assert critic.state_dict().keys() == trained.keys()
    assert all(torch.equal(weight, trained[name]) for name, weight in critic.state_dict().items())
    assert generate(generator, 3, seed=0).shape == (3, 2)


def test_it_goes_on(run: Path) -> None:
    """Its core's code is another, which is told and has to be forced."""
    longer = ["run", run / "recipe.toml", "--out", run, "--resume", "--set", "train.steps=8"]
    code, _, err = started(*longer)
    assert code == 2
    assert "gancore's own code, in " in err
    before = (run / "metrics.jsonl").read_text().splitlines()
    out, _ = went(*longer, "--force")
    assert "from step 6; seed 0" in out
    after = (run / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in after[: len(before)]] == list(map(json.loads, before))
    assert json.loads(after[-1])["step"] == 8
    about = json.loads((run / "environment.json").read_text())
    assert about["from_step"] == 6
    assert about["earlier"] == [
        {
            key: value
            for key, value in json.loads((EARLIER / "run/environment.json").read_text()).items()
            if key != "earlier"
        }
    ]
    assert json.loads((run / "scores.json").read_text())["step"] == 8


def test_its_values(run: Path) -> None:
    saved = gancore.Run.open(run).read()
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [dict(record.values) for record in saved.records] == lines
    assert [(record.step, record.seconds) for record in saved.records] == [
        (line["step"], line["seconds"]) for line in lines
    ]
    assert saved.step == 6
    assert saved.recipe.train.steps == saved.table["train"]["steps"] == 6
    assert saved.environment is not None
    assert saved.scores is not None
    assert saved.environment.table() == json.loads((run / "environment.json").read_text())
    assert saved.scores.table() == json.loads((run / "scores.json").read_text())
    assert saved.expected is None


def test_its_board_is_read(tmp_path: Path) -> None:
    path = EARLIER / "board" / "leaderboard.json"
    board = json.loads(path.read_text())
    out, _ = went("compare", path, path)
    assert all(entry["name"] in out for entry in board["entries"])
    for entry in board["entries"]:
        for score in entry["scores"].values():
            score["values"] = [10 * value for value in score["values"]]
    (tmp_path / "worse.json").write_text(json.dumps(board))
    code, out, err = started("compare", path, tmp_path / "worse.json")
    assert (code in (0, 1), err) == (True, "")  # two seeds can't tell for sure
    assert "10" in out


def test_its_costs_are_read(tmp_path: Path) -> None:
    """They are taken under the key of now; under their own, of other code, they are not."""
    board = Board.load(EARLIER / "board.toml")
    made = {name: SimpleNamespace(time_ratio=5.0) for name in ("none", "gp")}

    def costs() -> dict[str, dict[str, Any]]:
        executor: Any = SimpleNamespace(where="here", measure=lambda recipes: made)
        recipes = board.recipes(EARLIER)
        kept = measure_costs(board, recipes, tmp_path, executor=executor, tell=str)
        return {name: cost.table() for name, cost in kept.items()}

    earlier = json.loads((EARLIER / "board" / "costs.json").read_text())
    (tmp_path / "costs.json").write_text(json.dumps(earlier))
    assert costs() == {name: {"time_ratio": 5.0} for name in made}
    key = json.loads((tmp_path / "costs.json").read_text())["key"]
    assert key != earlier["key"]
    (tmp_path / "costs.json").write_text(json.dumps({**earlier, "key": key}))
    assert costs() == earlier["costs"]
