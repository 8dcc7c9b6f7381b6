"""Boards, verdicts in text, and the gate; the sweep is in test_sweep.py."""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers import Gan

from gancore.errors import InputError, RecipeError
from gancore.leaderboard.board import Board
from gancore.leaderboard.compare import gate, regressed
from gancore.leaderboard.result import Result
from gancore.leaderboard.statistics import Comparison, Verdict
from gancore.leaderboard.text import markdown, notes
from gancore.recipe import Recipe
from gancore.training import Run

ROOT = Path(__file__).parents[1]
PROTOCOL = {
    "extractor": "digits",
    "weights_sha256": "ab" * 32,
    "reference": {"name": "digits", "split": "all", "samples": 1797, "sha256": "cd" * 32},
    "samples": 1797,
    "seed": 0,
    "versions": {"torch-fidelity": "0.4.0", "torch": "2.14.1"},
}
BOARD = """
recipe = "base.toml"
baseline = "none"
seeds = [0, 1, 2]
[budget]
count = 100
[[entry]]
name = "none"
[[entry]]
name = "gp"
set = ["plugin.0.name=gp"]
"""
BASE = """
data.name = "digits"
generator.name = "mlp"
critic.name = "mlp"
loss.name = "wasserstein"
[train]
steps = 7
critic_steps = 5
[score]
extractor = "digits"
"""


def entry(name: str, values: list[float], **scores: Any) -> dict[str, Any]:
    """An entry of leaderboard.json as `result` writes it, for comparisons and texts."""
    return {
        "name": name,
        "label": scores.pop("label", name),
        "plugins": {},
        "generator_updates": 20,
        "critic_updates": 100,
        "seconds": [1.0] * len(values),
        "failed": [],
        "missing": [],
        "collapsed": [],
        "scores": {
            "fid": {
                "median": sorted(values)[len(values) // 2],
                "low": min(values),
                "high": max(values),
                "values": values,
                "seeds": list(range(len(values))),
                "verdict": "baseline",
                **scores,
            }
        },
        "cost": {"time_ratio": 1.5, "flops_ratio": 1.67, "memory_ratio": 1.2},
    }


def board(**values: list[float]) -> dict[str, Any]:
    return {
        "format": 1,
        "metric": "fid",
        "higher_is_better": [],
        "baseline": "none",
        "entries": [entry(name, each) for name, each in values.items()],
        "protocol": copy.deepcopy(PROTOCOL),
        "environment": {},
        "budget": {"unit": "critic_updates", "count": 100},
        "seeds": [0, 1, 2],
        "threads": 1,
        "statistics": {},
    }


def parsed(table: dict[str, Any]) -> Result:
    return Result.model_validate_json(json.dumps(table))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.toml").write_text(BASE)
    (tmp_path / "board.toml").write_text(BOARD)
    return tmp_path


def test_a_budget_of_critic_updates_sets_the_steps(folder: Path) -> None:
    loaded = Board.load(folder / "board.toml")
    recipes = loaded.within_budget(loaded.recipes(folder), {})
    assert {name: each.train.steps for name, each in recipes.items()} == {"none": 20, "gp": 20}
    assert [each.name for each in recipes["gp"].plugin] == ["gp"]
    assert recipes["none"].plugin == ()


def test_a_budget_of_passes_buys_fewer_updates_where_they_cost_more(folder: Path) -> None:
    text = BOARD.replace("count = 100", 'count = 100\nunit = "passes"')
    (folder / "board.toml").write_text(text)
    loaded = Board.load(folder / "board.toml")
    recipes = loaded.within_budget(loaded.recipes(folder), {"none": 1.0, "gp": 2.0})
    assert {name: each.train.steps for name, each in recipes.items()} == {"none": 20, "gp": 10}
    with pytest.raises(RecipeError, match="passes are counted in costs: drop --no-cost"):
        loaded.within_budget(loaded.recipes(folder), {})


def test_passes_are_priced_over_the_budgets_updates_and_not_the_recipes(
    folder: Path, gan: Gan
) -> None:
    """R1 every 300th update is due in 3 of 700, but in all of a recipe's single one."""
    (folder / "base.toml").write_text(BASE.replace("steps = 7\ncritic_steps = 5", "steps = 1"))
    lazy = 'set = ["plugin.0.name=r1", "plugin.1.name=lazy", "plugin.1.every=300"]'
    text = BOARD.replace("count = 100", 'count = 700\nunit = "passes"')
    entry = f'[[entry]]\nname = "lazy"\n{lazy}\n'
    (folder / "board.toml").write_text(text.replace("=gp", "=r1") + entry)
    out = folder / "out"
    code, _, err = gan("leaderboard", folder / "board.toml", "--out", out, "--commands")
    assert code == 0, err
    costs = json.loads((out / "costs.json").read_text())["costs"]
    price = 1 + (costs["gp"]["flops_ratio"] - 1) * 3 / 700
    assert costs["lazy"]["flops_ratio"] == pytest.approx(price)
    (path,) = (out / "runs").glob("lazy-seed0-*")
    assert Run(path).read_recipe().train.steps == int(700 / price)


def test_paths_in_a_board_are_relative_to_its_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of its recipes' files, as everywhere else, to the current folder."""
    boards, here = folder / "boards", folder / "here"
    boards.mkdir()
    here.mkdir()
    (folder / "link").symlink_to(boards, target_is_directory=True)
    its = 'data.name = "folder"\ndata.path = "images"'
    (folder / "own.toml").write_text(BASE.replace('data.name = "digits"', its))
    (boards / "b.toml").write_text(
        """
        recipe = "../own.toml"
        baseline = "own"
        seeds = [0]
        entry = [
            {name = "own"},
            {name = "set", set = ["data.path=2024", "score.weights = ../w.pth"]},
            {name = "up", set = ['data.path="../a b"', "plugin.0.name=tensorboard",
                "plugin.0.folder=logs"]},
            {name = "far", set = ["data.path=/far/./x", "score.weights=~/w"]},
            {name = "home", set = ["data.path=./~x", "plugin.0.name=tensorboard",
                'plugin.0.folder=""', "score.weights="]},
        ]
        """
    )
    monkeypatch.setenv("HOME", "/home/me")
    found = []
    for current, path in ((here, "../boards"), (boards, "."), (folder, "link"), (here, boards)):
        monkeypatch.chdir(current)
        recipes = Board.load(Path(path, "b.toml")).recipes(Path(path))
        assert recipes["own"].data.options["path"] == "images"
        of = [recipes[name] for name in ("set", "up", "far", "home")]
        found.append(
            [each.data.options["path"] for each in of]
            + [each.score.weights for each in of]
            + [each.options["folder"] for recipe in of for each in recipe.plugin]
        )
    paths = [f"{boards}/2024", f"{folder}/a b", "/far/./x", f"{boards}/~x"]
    weights = [f"{folder}/w.pth", None, "/home/me/w", None]
    assert found == [[*paths, *weights, f"{boards}/logs", ""]] * 4


def test_without_a_budget_recipes_keep_their_steps(folder: Path) -> None:
    (folder / "board.toml").write_text(BOARD.replace("[budget]\ncount = 100", ""))
    loaded = Board.load(folder / "board.toml")
    assert {
        each.train.steps for each in loaded.within_budget(loaded.recipes(folder), {}).values()
    } == {7}


def test_a_budget_that_does_not_come_out_even_is_refused(folder: Path) -> None:
    (folder / "board.toml").write_text(BOARD.replace("count = 100", "count = 101"))
    loaded = Board.load(folder / "board.toml")
    with pytest.raises(RecipeError, match=r"101 critic updates .* 'none', which makes 5 a step"):
        loaded.within_budget(loaded.recipes(folder), {})


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('baseline = "none"', 'baseline = "nine"', "there is no entry 'nine'; there is none, gp"),
        ('name = "gp"\n', 'name = "none"\n', "two entries have one name"),
        ("[0, 1, 2]", "[]", "seeds: expected .*at least 1"),
        ("[0, 1, 2]", "[0, 0]", "seeds: expected different ones, from 0"),
        ("[0, 1, 2]", "[-1]", "seeds: expected different ones, from 0"),
        ("count = 100", "cuont = 100", "budget.cuont: unknown key. Did you mean 'count'"),
        ("count = 100", "count = 0", "budget.count: expected .*greater than or equal to 1"),
        ("baseline =", "basline =", "unknown key. Did you mean 'baseline'"),
        ('name = "gp"', 'name = "../gp"', r"entry.1.name: "),
        ('name = "gp"', 'nam = "gp"', r"entry.1.name: missing"),
        ("[budget]", "[budget", r"board.toml:5:8: "),
    ],
)
def test_a_wrong_board_is_told_in_one_line(folder: Path, old: str, new: str, message: str) -> None:
    assert old in BOARD
    (folder / "board.toml").write_text(BOARD.replace(old, new))
    with pytest.raises(RecipeError, match=message):
        Board.load(folder / "board.toml")


def test_the_boards_in_the_repository_are_valid() -> None:
    paths = sorted((ROOT / "recipes" / "boards").glob("*.toml"))
    assert {path.stem for path in paths} >= {"digits", "gaussians8", "gaussians25", "swissroll"}
    for path in paths:
        loaded = Board.load(path)
        recipes = loaded.within_budget(loaded.recipes(path.parent), {})
        assert all(isinstance(each, Recipe) for each in recipes.values())
        assert len(loaded.seeds) >= (3 if path.stem == "fashion" else 5)


# The gate


STEADY = [1.00, 1.02, 0.98, 1.01, 0.99]


def times(factor: float) -> list[float]:
    wobble = [1.01, 0.99, 1.0, 1.005, 0.995]
    return [factor * value * each for value, each in zip(STEADY, wobble, strict=True)]


def test_a_tie_passes_and_a_regression_does_not() -> None:
    before = parsed(board(none=STEADY, gp=STEADY))
    found = gate(before, parsed(board(none=times(1.0), gp=times(1.2))), "fid")
    assert {name: each.verdict for name, each in found.items()} == {"none": "tie", "gp": "worse"}
    assert [name for name, each in found.items() if regressed(each, 0.0)] == ["gp"]
    assert regressed(found["gp"], 0.15)
    assert not regressed(found["gp"], 0.25)
    better = gate(before, parsed(board(none=times(1.0), gp=times(0.8))), "fid")
    assert better["gp"].verdict == "better"
    assert not regressed(better["gp"], 0.0)


def difference(mean: float, verdict: Verdict) -> Comparison:
    return Comparison(
        seeds_compared=5, scale="difference", ratio=mean, ratio_low=mean - 0.1,
        ratio_high=mean + 0.1, p=0.01, detectable=0.05, verdict=verdict,
    )  # fmt: skip


@pytest.mark.parametrize("sign", [1, -1])
def test_a_tolerance_of_differences_is_one(sign: int) -> None:
    """Of scores that can be 0 it is a size of theirs: 0.3 worse is within 0.4, not 0.2."""
    worse = difference(sign * 0.3, "worse")
    assert regressed(worse, 0.0)
    assert regressed(worse, 0.2)
    assert not regressed(worse, 0.4)
    for verdict in ("tie", "undecided", "better"):
        assert not regressed(difference(sign * 0.3, verdict), 0.0)


def test_a_tolerance_of_differences_passes_the_command(gan: Gan, tmp_path: Path) -> None:
    before, after = [0.0, 0.1, 0.2, 0.1, 0.0], [0.3, 0.41, 0.5, 0.4, 0.31]
    for name, values in (("before", before), ("after", after)):
        (tmp_path / f"{name}.json").write_text(json.dumps(board(none=values)))
    both = tmp_path / "before.json", tmp_path / "after.json"
    assert gan("compare", *both)[0] == 1
    assert gan("compare", *both, "--tolerance", "0.2")[0] == 1
    assert gan("compare", *both, "--tolerance", "0.4")[0] == 0


def test_the_gate_divides_the_later_by_the_earlier() -> None:
    before, after = parsed(board(none=STEADY, gone=STEADY)), parsed(board(none=times(1.2)))
    found = gate(before, after, "fid")
    assert found.keys() == {"none"}
    assert found["none"].ratio == pytest.approx(1.2, rel=1e-3)


def test_higher_is_better_turns_the_gate_round() -> None:
    before, after = board(none=STEADY), board(none=times(0.8))
    for each in (before, after):
        each["entries"][0]["scores"]["isc"] = each["entries"][0]["scores"].pop("fid")
    found = gate(parsed(before), parsed(after), "isc")["none"]
    assert regressed(found, 0.2)
    assert not regressed(found, 0.3)


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        (("protocol", "samples"), 999, "protocol.samples: was 1797, is 999"),
        (("protocol", "extractor"), "fashion", "protocol.extractor: was 'digits', is 'fashion'"),
        (("protocol", "more"), 3, "protocol.more: was None, is 3"),
        (("budget", "unit"), "passes", "budget.unit: was 'critic_updates', is 'passes'"),
        (("protocol", "weights_sha256"), "ef" * 32, "protocol.weights_sha256: was 'abab"),
        (("budget", "count"), 50, "budget.count: was 100, is 50"),
    ],
)
def test_unlike_protocols_are_not_compared(key: tuple[str, str], value: Any, line: str) -> None:
    after = board(none=STEADY)
    after[key[0]][key[1]] = value
    with pytest.raises(InputError, match=line):
        gate(parsed(board(none=STEADY)), parsed(after), "fid")


def test_versions_may_differ() -> None:
    after = board(none=STEADY)
    after["protocol"]["versions"]["torch"] = "9.9"
    assert gate(parsed(board(none=STEADY)), parsed(after), "fid")["none"].verdict == "tie"


def compared(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gancore", "compare", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        **options,
    )


def test_compare_from_the_command_line(tmp_path: Path) -> None:
    files = {"before": board(none=STEADY, gp=STEADY, old=STEADY)}
    files["same"] = board(none=STEADY, gp=STEADY)
    files["worse"] = board(none=STEADY, gp=times(1.2))
    files["other"] = {**board(none=STEADY), "budget": None}
    for name, each in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(each))
    (tmp_path / "broken.json").write_text("{")
    before = tmp_path / "before.json"
    same = compared(before, tmp_path / "same.json")
    assert (same.returncode, same.stderr) == (0, "")
    assert "tie" in same.stdout
    assert "current ÷ baseline" in same.stdout
    assert "decided by: by their sign where all seeds differ alike, Holm's" in same.stdout
    assert "not compared, for want of a score in both: old" in same.stdout
    worse = compared(before, tmp_path / "worse.json")
    assert worse.returncode == 1
    assert "decided by: paired t-test of logarithms over 5 seeds, by their sign" in worse.stdout
    assert "regression in FID (digits features): gp" in worse.stderr
    assert compared(before, tmp_path / "worse.json", "--tolerance", "0.3").returncode == 0
    for wrong, message in (
        ("other", "these leaderboards can't be compared:\n  budget"),
        ("broken", "is no JSON"),
        ("absent", "can't be read"),
    ):
        found = compared(before, tmp_path / f"{wrong}.json")
        assert found.returncode == 2
        assert message in found.stderr
        assert "Traceback" not in found.stderr
    assert compared(before, before, "--metric", "kid").returncode == 2


def test_compare_heads_differences_as_such(gan: Gan, tmp_path: Path) -> None:
    (tmp_path / "before.json").write_text(json.dumps(board(none=STEADY)))
    (tmp_path / "after.json").write_text(json.dumps(board(none=[-0.1, 0.2, 0.0, 0.1, 0.3])))
    code, out, _ = gan("compare", tmp_path / "before.json", tmp_path / "after.json")
    assert code == 0
    assert "current − baseline" in out
    assert "current ÷ baseline" not in out
    assert "decided by: paired t-test over 5 seeds\n" in out


@pytest.mark.parametrize("tolerance", ["nan", "inf", "-inf", "-0.1"])
def test_a_tolerance_that_lets_all_pass_is_refused(
    tolerance: str, gan: Gan, tmp_path: Path
) -> None:
    (tmp_path / "before.json").write_text(json.dumps(board(none=STEADY)))
    (tmp_path / "after.json").write_text(json.dumps(board(none=times(1.2))))
    both = tmp_path / "before.json", tmp_path / "after.json"
    code, out, err = gan("compare", *both, f"--tolerance={tolerance}")
    assert (code, out) == (2, "")
    (line,) = err.splitlines()
    assert line.startswith(f"error: --tolerance {tolerance}: expected a finite number from 0 on")


def test_a_terminal_may_lack_characters(tmp_path: Path) -> None:
    (tmp_path / "board.json").write_text(json.dumps(board(none=STEADY)))
    same = tmp_path / "board.json"
    found = compared(
        same, same, encoding="latin-1", env={**os.environ, "PYTHONIOENCODING": "latin-1"}
    )
    assert (found.returncode, found.stderr) == (0, "")
    assert "FID (digits features) ?" in found.stdout
    assert "current ÷ baseline" in found.stdout


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[1]")
    with pytest.raises(InputError, match=r"is no leaderboard.json"):
        Result.read(tmp_path / "x.json")


# The text


def against(ratio: float, verdict: str, **changes: Any) -> dict[str, Any]:
    return {
        "seeds_compared": 5,
        "scale": "ratio",
        "ratio": ratio,
        "ratio_low": ratio - 0.1,
        "ratio_high": ratio + 0.1,
        "p": 0.01,
        "detectable": 1.12,
        "verdict": verdict,
        **changes,
    }


def told() -> dict[str, Any]:
    whole = board(none=STEADY)
    gp = entry("gp", times(0.5), label="gp | <b>λ</b>", **against(0.5, "better"))
    lost = entry("lost", [1.0])
    lost |= {"scores": {}, "seconds": [], "cost": {}, "failed": [{"seed": 1, "error": "a|b\n<i>"}]}
    gp |= {"collapsed": [3], "missing": [4]}
    whole["entries"] = [gp, whole["entries"][0], lost]
    return whole


def test_the_table_is_markdown_that_nothing_breaks() -> None:
    lines = markdown(parsed(told())).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 5
    unescaped = [line.replace(r"\|", "").count("|") for line in table]
    assert set(unescaped) == {10}
    assert not any("<b>" in line or "<i>" in line for line in lines)
    assert "gp \\| &lt;b&gt;λ&lt;/b&gt;" in table[2]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    about = ["time", "FLOPs", "memory", "runs"]
    assert cells[0] == ["", "entry", "FID (digits features) ↓", "÷ none", "verdict", *about]
    assert cells[2][2:5] == ["0.505 (0.49 to 0.508)", "0.50 (0.40 to 0.60)", "better"]
    assert cells[2][5:] == ["1.50×", "1.67×", "1.20×", "5, 1 collapsed, 1 missing"]
    assert cells[3] == ["2", "none", "1 (0.98 to 1.02)", "−", "baseline", *cells[2][5:8], "5"]
    assert cells[4][2:] == ["−", "−", "no score", "−", "−", "−", "0, 1 failed"]
    assert [row[0] for row in cells[2:]] == ["1", "2", ""]


def test_the_notes_say_what_the_numbers_are() -> None:
    text = "\n".join(notes(parsed(told())))
    assert "1,797 samples against 1,797 of digits" in text
    assert "seed 0, 1, 2" in text
    assert "100 critic updates an entry" in text
    assert "differences of 12 % " in text
    assert "lost, seed 1, failed: a|b" in text
    assert "gp | <b>λ</b> collapsed with seeds 3." in text
    assert "has not finished seeds 4" in text


def test_what_is_seen_is_told_from_the_steadiest_on() -> None:
    whole = told()
    for name, least in (("loose", 1.5), ("firm", 1.07), ("unseen", None)):
        whole["entries"].append(entry(name, times(0.9), **against(0.9, "tie", detectable=least)))
    (line,) = [line for line in notes(parsed(whole)) if line.startswith("Verdicts")]
    assert line.endswith("of 7 % (the steadiest entry) to 50 % (the least steady).")
    for each in whole["entries"]:
        for score in each["scores"].values():
            score["scale"] = "difference"
    (line,) = [line for line in notes(parsed(whole)) if line.startswith("Verdicts")]
    assert line.endswith("of 1.1 (the steadiest entry) to 1.5 (the least steady).")
    assert "logarithms" not in line


def test_two_seeds_decide_nothing_and_the_note_says_so() -> None:
    whole = told()
    whole["entries"][0]["scores"]["fid"] |= {"seeds_compared": 2, "verdict": "undecided"}
    (told_of, *_) = [line for line in notes(parsed(whole)) if "in common" in line]
    assert told_of == "2 seeds in common with the baseline decide nothing: that takes 3."
