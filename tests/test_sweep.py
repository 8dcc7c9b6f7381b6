"""Boards of local processes: jobs, reuse, failures, and being killed in the middle.

What is the same whoever makes the runs is in test_executor.py, where that takes no process.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from executors import installed
from helpers import Gan
from processes import ending

from gancore.cli import main
from gancore.errors import RecipeError
from gancore.leaderboard.board import Board
from gancore.leaderboard.evaluate import evaluate
from gancore.leaderboard.executor import Terms, make_runs
from gancore.leaderboard.job import Job
from gancore.leaderboard.plan import plan
from gancore.leaderboard.sweep import Local
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
seeds = [0]
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


ENTRIES = {text.split('"')[1]: f"[[entry]]{text}" for text in BOARD.split("[[entry]]")[1:]}


def board(folder: Path, *names: str, count: int = 4) -> Path:
    """Write a board of these entries, by default of all."""
    (folder / "base.toml").write_text(BASE)
    path = folder / "board.toml"
    head = BOARD.partition("[[entry]]")[0].format(count=count)
    path.write_text(head + "".join(ENTRIES[name] for name in names or ENTRIES))
    return path


def scores(out: Path) -> dict[str, list[float]]:
    found = json.loads((out / "leaderboard.json").read_text())
    return {
        each["name"]: each["scores"]["fid"]["values"] for each in found["entries"] if each["scores"]
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str, str]:
    """A board whose runs are processes; the board's own is this one, which spares its imports."""
    folder = tmp_path_factory.mktemp("board")
    options = ("--out", str(folder / "out"), "--jobs", "2", "--device", "cpu")
    out, err = io.StringIO(), io.StringIO()
    code = 0
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(sys, "argv", ["gan", "leaderboard", str(board(folder)), *options])
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return folder, code, out.getvalue(), err.getvalue()


@pytest.fixture
def inline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have an executor that makes runs in this process."""
    with installed(tmp_path_factory.mktemp("site")):
        yield


def test_a_failed_run_is_a_row_and_not_the_end(done: tuple[Path, int, str, str]) -> None:
    folder, code, _, err = done
    assert code == 1, err
    assert "Traceback" not in err
    found = json.loads((folder / "out" / "leaderboard.json").read_text())
    entries = {each["name"]: each for each in found["entries"]}
    (failed,) = entries["boom"]["failed"]
    assert failed["seed"] == 0
    assert "penalty/gp is inf" in failed["error"]
    assert found["entries"][-1]["name"] == "boom"
    for name in ("none", "gp"):
        assert len(entries[name]["scores"]["fid"]["values"]) == 1
        assert entries[name]["failed"] == []
    assert entries["gp"]["plugins"]["gp"].startswith("gancore-gp==")
    assert entries["boom"]["cost"] == {}
    assert set(entries["gp"]["cost"]) >= {"time_ratio", "flops_ratio", "memory_ratio"}
    assert entries["none"]["cost"]["flops_ratio"] == 1.0
    assert entries["gp"]["cost"]["flops_ratio"] > 1.4
    assert found["budget"] == {"unit": "critic_updates", "count": 4}
    assert found["environment"]["threads"] == 1
    assert found["protocol"]["samples"] == 100


def test_lines_tell_what_is_done_and_what_is_left(done: tuple[Path, int, str, str]) -> None:
    _, _, said, _ = done
    lines = said.splitlines()
    assert sum("starts at step 0 of 4" in line for line in lines) == 3
    assert any(
        re.search(r"^none seed 0: fid [\d.]+ in 0:\d\d \| \d/3 runs, ", line) for line in lines
    )
    assert any(line.startswith("boom seed 0: failed: penalty/gp is inf") for line in lines)
    assert "\x1b" not in said


def test_three_files_are_written(done: tuple[Path, int, str, str]) -> None:
    folder, _, said, _ = done
    text = (folder / "out" / "leaderboard.md").read_text()
    assert text.strip() in said
    assert "&lt;script&gt;" in text
    page = (folder / "out" / "leaderboard.html").read_text()
    assert "<script>penalty" not in page
    assert "&lt;script&gt;penalty" in page


def test_runs_that_a_queue_makes_one_by_one_score_the_same(
    done: tuple[Path, int, str, str], tmp_path: Path, gan: Gan, inline: None
) -> None:
    folder = done[0]
    options = [board(tmp_path, "none"), "--out", tmp_path / "out", "--device", "cpu"]
    code, line, _ = gan("leaderboard", *options, "--commands")
    assert code == 0
    assert re.findall(r"runs/(\w+)-seed0", line.splitlines()[0])[0] == "none"
    made = subprocess.run(line, shell=True, cwd="/", capture_output=True, check=False)
    assert made.returncode == 0, made.stderr
    code, said, _ = gan("leaderboard", *options, "--no-cost", "--executor", "inline")
    assert code == 0
    assert said.count(", done before |") == 1
    assert scores(tmp_path / "out") == {"none": scores(folder / "out")["none"]}


def test_another_recipe_is_another_run(done: tuple[Path, int, str, str]) -> None:
    folder = done[0]
    loaded = Board.load(folder / "board.toml")
    recipes = loaded.within_budget(loaded.recipes(folder), {})
    planned = plan(loaded, recipes, folder / "out", device="cpu")
    assert sum(job.path.is_dir() for job in planned) == 3
    threads = loaded.model_copy(update={"threads": 2})
    assert not any(
        job.path.is_dir() for job in plan(threads, recipes, folder / "out", device="cpu")
    )
    changed = {
        name: each.model_copy(update={"optimizer": each.optimizer.model_copy(update={"lr": 1e-3})})
        for name, each in recipes.items()
    }
    assert not any(job.path.is_dir() for job in plan(loaded, changed, folder / "out", device="cpu"))


def test_done_is_what_has_the_scores_of_its_recipe(tmp_path: Path, gan: Gan, inline: None) -> None:
    """Somebody scores a run by hand, otherwise or too early: the board makes its own again."""
    path, out = board(tmp_path, "none"), tmp_path / "out"

    def again() -> str:
        options = ("--out", out, "--no-cost", "--executor", "inline", "--device", "cpu")
        code, said, err = gan("leaderboard", path, *options)
        assert code == 0, err
        return str(said)

    again()
    (folder,) = (out / "runs").iterdir()
    (before,) = json.loads((out / "leaderboard.json").read_text())["entries"]
    assert gan("score", folder, "--metrics", "isc")[0] == 0
    assert ", done before |" in again()
    (entry,) = json.loads((out / "leaderboard.json").read_text())["entries"]
    assert entry["scores"] == before["scores"]
    assert gan("score", folder, "--samples", 64)[0] == 0
    assert ", done before |" not in again()
    assert scores(out) == {"none": before["scores"]["fid"]["values"]}

    planned = Job("none", 0, Run(folder).read_table(), folder)
    assert planned.is_scored()
    assert planned.saved is not None
    whole = (folder / "scores.json").read_text()
    known = json.loads(whole)
    for change in (
        {"step": 2},
        {"scores": {"isc": 3.0}},
        {"protocol": {**known["protocol"], "samples": 64}},
        {"protocol": {**known["protocol"], "extractor": "fashion"}},
        {"protocol": None},
    ):
        (folder / "scores.json").write_text(json.dumps({**known, **change}))
        assert not planned.is_scored()
        assert planned.saved is None
        (folder / "scores.json").write_text(whole)
    assert planned.is_scored()
    Run(folder).metrics_path.write_text("no record\n" + Run(folder).metrics_path.read_text())
    assert not planned.is_scored()
    assert ", done before |" not in again()
    assert planned.is_scored()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("score.samples=99", "score.samples is 99, and 100 in the entry 'none'"),
        ("data.flip=true", "data.flip is True, and False in the entry 'none'"),
    ],
)
def test_a_board_has_one_protocol(tmp_path: Path, change: str, told: str) -> None:
    path = board(tmp_path)
    path.write_text(path.read_text().replace('["plugin.0.name=gp"]', f'["{change}"]'))
    loaded = Board.load(path)
    with pytest.raises(RecipeError, match=told):
        plan(loaded, loaded.recipes(tmp_path), tmp_path, device="cpu")


def test_a_board_that_has_not_begun_has_a_result(tmp_path: Path) -> None:
    loaded = Board.load(board(tmp_path))
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
    path, out = board(tmp_path, "none", count=40_000), tmp_path / "out"
    gan = [sys.executable, "-m", "gancore", "leaderboard", str(path), "--out", str(out)]

    def steps() -> list[int]:
        return [int(each.name[5:]) for each in out.glob("runs/none-*/checkpoints/step-*")]

    start = [*gan, "--device", "cpu", "--no-cost"]
    with ending(subprocess.Popen(start, stdout=subprocess.DEVNULL)) as killed:
        until(steps)
        killed.kill()
    until(lambda: not alive(out))  # the run saves, and ends
    reached = max(steps())

    loaded = Board.load(path)
    recipes = loaded.within_budget(loaded.recipes(tmp_path), {})
    (job,) = plan(loaded, recipes, out, device="cpu")
    log = job.path / "log.txt"

    def stop(jobs: Sequence[Job]) -> None:
        if max(steps()) > reached and not stopped:
            stopped.append(f"from step {reached}; " in log.read_text())
            os.kill(os.getpid(), signal.SIGINT)

    stopped: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        make_runs(Local(Terms("", 1, 1, 0.0, "cpu", pytest.fail)), [job], stop)
    assert stopped == [True]
    assert "stopped by SIGTERM: saved" in log.read_text()
    assert not alive(out)
