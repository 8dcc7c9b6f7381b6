"""Boards run from the command line: jobs, reuse, failures, and being killed in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import Gan, scores_of
from processes import ending

from gancore.errors import RecipeError
from gancore.leaderboard.board import Board
from gancore.leaderboard.evaluate import evaluate
from gancore.leaderboard.job import Job
from gancore.leaderboard.plan import plan
from gancore.training import Run

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("boards")]

BASE = """
data.name = "digits"
[generator]
name = "mlp"
width = 16
depth = 1
[critic]
name = "mlp"
width = 16
depth = 1
[loss]
name = "wasserstein"
[train]
steps = 4
batch_size = 16
[score]
metrics = ["fid"]
samples = 100
extractor = "digits"
"""
BOARD = """
recipe = "base.toml"
baseline = "none"
seeds = {seeds}
set = ["score.every=2"]
[budget]
count = {count}
[[entry]]
name = "none"
[[entry]]
name = "gp"
label = "<script>penalty</script>"
set = ["plugin.0.name=gp"]
[[entry]]
name = "boom"
set = ["plugin.0.name=gp", "plugin.0.weight=1e300"]
"""


def board(folder: Path, *, seeds: list[int], count: int = 4) -> Path:
    (folder / "base.toml").write_text(BASE)
    path = folder / "board.toml"
    path.write_text(BOARD.format(seeds=seeds, count=count))
    return path


def command(path: Path, out: Path, *options: str) -> list[str]:
    gan = [sys.executable, "-m", "gancore", "leaderboard", str(path), "--out", str(out)]
    return [*gan, "--device", "cpu", *options]


def run(path: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(path, out, *options), capture_output=True, text=True, timeout=600)


def scores(out: Path) -> dict[str, list[float]]:
    found = json.loads((out / "leaderboard.json").read_text())
    return {
        each["name"]: each["scores"]["fid"]["values"] for each in found["entries"] if each["scores"]
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("board")
    finished = run(board(folder, seeds=[0, 1]), folder / "out", "--jobs", "2")
    return folder, finished


def test_a_failed_run_is_a_row_and_not_the_end(done: tuple[Path, Any]) -> None:
    folder, finished = done
    assert finished.returncode == 1, finished.stderr
    assert "Traceback" not in finished.stderr
    found = json.loads((folder / "out" / "leaderboard.json").read_text())
    entries = {each["name"]: each for each in found["entries"]}
    assert [each["seed"] for each in entries["boom"]["failed"]] == [0, 1]
    assert all("penalty/gp is inf" in each["error"] for each in entries["boom"]["failed"])
    assert found["entries"][-1]["name"] == "boom"
    for name in ("none", "gp"):
        assert len(entries[name]["scores"]["fid"]["values"]) == 2
        assert entries[name]["failed"] == []
    assert entries["gp"]["scores"]["fid"]["verdict"] == "undecided"
    assert entries["gp"]["plugins"]["gp"].startswith("gancore-gp==")
    assert entries["boom"]["cost"] == {}
    assert set(entries["gp"]["cost"]) >= {"time_ratio", "flops_ratio", "memory_ratio"}
    assert entries["none"]["cost"]["flops_ratio"] == 1.0
    assert entries["gp"]["cost"]["flops_ratio"] > 1.4
    assert found["budget"] == {"unit": "critic_updates", "count": 4}
    assert found["environment"]["threads"] == 1
    assert found["protocol"]["samples"] == 100
    assert "seed" not in found["protocol"]


def test_lines_tell_what_is_done_and_what_is_left(done: tuple[Path, Any]) -> None:
    _, finished = done
    lines = finished.stdout.splitlines()
    assert sum("starts at step 0 of 4" in line for line in lines) == 6
    assert any(
        re.search(r"^none seed 0: fid [\d.]+ in 0:\d\d \| \d/6 runs, ", line) for line in lines
    )
    assert any(line.startswith("boom seed 1: failed: penalty/gp is inf") for line in lines)
    assert "\x1b" not in finished.stdout


def test_three_files_are_written(done: tuple[Path, Any]) -> None:
    folder, finished = done
    text = (folder / "out" / "leaderboard.md").read_text()
    assert text.strip() in finished.stdout
    assert "&lt;script&gt;" in text
    page = (folder / "out" / "leaderboard.html").read_text()
    assert "<script>penalty" not in page
    assert "&lt;script&gt;penalty" in page


def test_runs_that_a_queue_makes_one_by_one_score_the_same(
    done: tuple[Path, Any], tmp_path: Path, gan: Gan
) -> None:
    folder, _ = done
    options = [board(tmp_path, seeds=[1]), "--out", tmp_path / "out", "--device", "cpu"]
    code, lines, _ = gan("leaderboard", *options, "--commands")
    assert code == 0
    assert [re.findall(r"runs/(\w+)-seed1", line)[0] for line in lines.splitlines()] == [
        *("none", "gp", "boom")
    ]
    codes = [
        subprocess.run(line, shell=True, cwd="/", capture_output=True, check=False).returncode
        for line in lines.splitlines()
    ]
    assert codes == [0, 0, 1]
    code, said, _ = gan("leaderboard", *options, "--no-cost")
    assert code == 1
    assert said.count(", done before |") == 2
    one, two = scores(tmp_path / "out"), scores(folder / "out")
    assert one == {name: [two[name][1]] for name in two}


def test_what_is_done_is_not_done_again(done: tuple[Path, Any]) -> None:
    folder, _ = done
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("scores.json")}
    assert len(before) == 4
    again = run(folder / "board.toml", folder / "out")
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("scores.json")} == before
    assert "measuring" not in again.stdout
    assert again.stdout.count(", done before |") == 4
    assert again.stdout.count("starts at step") == 2  # those that failed are tried again


def test_another_recipe_is_another_run(done: tuple[Path, Any]) -> None:
    folder, _ = done
    loaded = Board.load(folder / "board.toml")
    recipes = loaded.within_budget(loaded.recipes(folder), {})
    planned = plan(loaded, recipes, folder / "out", device="cpu")
    assert sum(job.path.is_dir() for job in planned) == 6
    threads = loaded.model_copy(update={"threads": 2})
    assert not any(
        job.path.is_dir() for job in plan(threads, recipes, folder / "out", device="cpu")
    )
    changed = {
        name: each.model_copy(update={"optimizer": each.optimizer.model_copy(update={"lr": 1e-3})})
        for name, each in recipes.items()
    }
    assert not any(job.path.is_dir() for job in plan(loaded, changed, folder / "out", device="cpu"))


def test_done_is_what_has_the_scores_of_its_recipe(tmp_path: Path, gan: Gan) -> None:
    """Somebody scores a run by hand, otherwise or too early: the board makes its own again."""
    one = board(tmp_path, seeds=[0])
    base, _ = one.read_text().split('[[entry]]\nname = "gp"')
    one.write_text(base)
    out = tmp_path / "out"
    first = run(one, out, "--no-cost")
    assert first.returncode == 0, first.stderr
    (folder,) = (out / "runs").iterdir()
    before = (out / "leaderboard.json").read_text()
    assert gan("score", folder, "--metrics", "isc")[0] == 0
    added = run(one, out, "--no-cost")
    assert added.returncode == 0, added.stderr
    assert ", done before |" in added.stdout
    (entry,) = json.loads((out / "leaderboard.json").read_text())["entries"]
    assert entry["scores"] == json.loads(before)["entries"][0]["scores"]
    assert gan("score", folder, "--samples", 64)[0] == 0
    assert run(one, out, "--no-cost").returncode == 0
    assert scores(out) == {
        each["name"]: each["scores"]["fid"]["values"] for each in json.loads(before)["entries"]
    }

    planned = Job("none", 0, Run(folder).read_table(), folder)
    assert planned.is_scored()
    for broken in (
        {"step": 2},
        {"scores": {"isc": 3.0}},
        {"protocol": {**scores_of(Run(folder))["protocol"], "samples": 64}},
        {"protocol": {**scores_of(Run(folder))["protocol"], "extractor": "fashion"}},
        {"protocol": None},
    ):
        found = scores_of(Run(folder))
        Run(folder).write_json(folder / "scores.json", {**found, **broken})
        assert not planned.is_scored()
        Run(folder).write_json(folder / "scores.json", found)
    assert planned.is_scored()
    Run(folder).metrics_path.write_text("no record\n" + Run(folder).metrics_path.read_text())
    assert not planned.is_scored()
    mended = run(one, out, "--no-cost")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    assert planned.is_scored()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("score.samples=99", "score.samples is 99, and 100 in the entry 'none'"),
        ("data.flip=true", "data.flip is True, and False in the entry 'none'"),
    ],
)
def test_a_board_has_one_protocol(tmp_path: Path, change: str, told: str) -> None:
    path = board(tmp_path, seeds=[0])
    path.write_text(path.read_text().replace('["plugin.0.name=gp"]', f'["{change}"]'))
    loaded = Board.load(path)
    with pytest.raises(RecipeError, match=told):
        plan(loaded, loaded.recipes(tmp_path), tmp_path, device="cpu")


def test_a_board_that_has_not_begun_has_a_result(tmp_path: Path) -> None:
    loaded = Board.load(board(tmp_path, seeds=[0]))
    planned = plan(
        loaded, loaded.within_budget(loaded.recipes(tmp_path), {}), tmp_path, device="cpu"
    )
    result = evaluate(loaded, planned, {})
    assert [entry.missing for entry in result.entries] == [(0,), (0,), (0,)]
    json.dumps(result.table(), allow_nan=False)


def alive(folder: Path) -> list[int]:
    """Return the processes whose command line names the folder."""
    found = []
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if str(folder).encode() in each.read_bytes():
                found.append(int(each.parent.name))
        except OSError:
            continue
    return found


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.1)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_board_that_was_killed_goes_on_until_it_is_stopped(tmp_path: Path) -> None:
    """With 40,000 steps a run does not end by itself before the signal comes."""
    out = tmp_path / "out"
    start = command(board(tmp_path, seeds=[1], count=40_000), out, "--no-cost")

    def steps() -> list[int]:
        return [int(each.name[5:]) for each in out.glob("runs/none-*/checkpoints/step-*")]

    with ending(subprocess.Popen(start, stdout=subprocess.DEVNULL)) as killed:
        until(steps)
        killed.kill()
    until(lambda: not alive(out))  # the run saves, and ends
    reached = max(steps())
    with ending(
        subprocess.Popen(start, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ) as stopped:
        (log,) = out.glob("runs/none-*/log.txt")
        until(lambda: f"from step {reached}; " in log.read_text())
        until(lambda: max(steps()) > reached)
        stopped.send_signal(signal.SIGINT)
        said = stopped.communicate(timeout=60)[0]
    assert stopped.returncode == 130
    assert "stopped" in said
    assert "stopped by SIGTERM: saved" in log.read_text()
    assert not alive(out)

    reached = max(steps())
    with ending(subprocess.Popen(start, stdout=subprocess.DEVNULL)) as waiting:
        until(lambda: f"from step {reached}; " in log.read_text())
        (deaf,) = {*alive(out)} - {waiting.pid}
        os.kill(deaf, signal.SIGSTOP)
        waiting.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(3)
        waiting.send_signal(signal.SIGINT)
        assert waiting.wait(60) == 130
    until(lambda: not alive(out))
