"""The README's promises: its plugin is whole and works, its commands and links exist."""

from __future__ import annotations

import re
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
import torch
from helpers import trainer

from gancore import CriticStep
from gancore.cli import COMMANDS
from gancore.leaderboard.board import Board, Budget
from gancore.plugins import HOOKS, wrap

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(language: str, number: int = 0) -> str:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)[number]


def test_the_plugin_in_twenty_lines_works_and_is_that_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = block("python")
    assert len(source.splitlines()) <= 20
    (tmp_path / "gancore_drift.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    drift = import_module("gancore_drift").Drift(weight=0.5)
    weights = torch.tensor([3.0, -4.0], requires_grad=True)
    step = CriticStep(
        lambda x: x @ weights, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 2)
    )
    assert drift.penalty(step).item() == pytest.approx(0.5 * (9 + 16) / 2)
    values = trainer(plugins=[drift]).critic_update(0)
    assert values["penalty/drift"] > 0
    assert wrap(drift).name == "drift"


def test_its_package_and_recipe_are_valid_toml() -> None:
    package = tomllib.loads(block("toml", 0))
    assert package["project"]["entry-points"]["gancore.plugins"] == {"drift": "gancore_drift:Drift"}
    assert tomllib.loads(block("toml", 1)) == {"plugin": [{"name": "drift", "weight": 0.01}]}


def test_its_board_is_valid(tmp_path: Path) -> None:
    source = block("toml", 2)
    assert len(source.splitlines()) <= 20
    (tmp_path / "board.toml").write_text(source, encoding="utf-8")
    board = Board.load(tmp_path / "board.toml")
    assert board.budget == Budget(count=500)
    recipes = board.within_budget(board.recipes(ROOT), {})
    assert [recipe.train.steps for recipe in recipes.values()] == [100, 100]
    assert recipes["drift"].plugin[0].name == "drift"


def test_commands_hooks_and_files_exist() -> None:
    assert set(re.findall(r"^    gan (\w+)", README, re.M)) == set(COMMANDS) - {"doctor"}
    for hook in HOOKS:
        assert f"`{hook}`" in README
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link).exists(), link
