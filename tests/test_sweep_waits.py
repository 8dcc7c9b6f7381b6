"""A board that waits for folders that a killed one still holds, and loads its data once."""

from __future__ import annotations

import fcntl
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers import TOY, Gan

from gancore.data import Dataset
from gancore.errors import InputError, RunError
from gancore.files.storage import locked, wait_until_free
from gancore.leaderboard import sweep
from gancore.leaderboard.board import Board
from gancore.leaderboard.executor import Terms, make_runs
from gancore.leaderboard.job import Job
from gancore.leaderboard.result import EntryCost
from gancore.leaderboard.sweep import Local
from gancore.recipe import Recipe
from gancore.training import load_data


def local(parallel: int, tell: Callable[[str], None]) -> Local:
    return Local(Terms("", parallel, 1, 0.0, "cpu", tell))


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Two runs, which are done as soon as they are begun."""

    def start(folder: Path, **options: Any) -> subprocess.Popen[bytes]:
        return subprocess.Popen(["true"])

    def finish(job: Job, code: int, seconds: float) -> None:
        job.state, job.saved = "done", saved

    saved: Any = object()
    monkeypatch.setattr(sweep, "start", start)
    monkeypatch.setattr(Job, "finish", finish)
    monkeypatch.setattr(sweep, "POLL", 0.01)
    table = {"train": {"steps": 1}, "score": {"metrics": ["w2"]}}
    return [Job("a", seed, table, tmp_path / "runs" / f"a-{seed}") for seed in (0, 1)]


def test_a_board_waits_for_a_run_that_another_process_has(jobs: list[Job]) -> None:
    """It says so, and makes the others meanwhile."""
    states: list[tuple[str, str]] = []
    told: list[str] = []
    jobs[0].path.mkdir(parents=True)
    with (jobs[0].path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)

        def watch(jobs: Sequence[Job]) -> None:
            states.append((jobs[0].state, jobs[1].state))
            if states[-1] == ("queued", "done"):
                fcntl.flock(held, fcntl.LOCK_UN)

        make_runs(local(1, told.append), jobs, watch)
    assert ("queued", "done") in states
    assert states[-1] == ("done", "done")
    (line,) = told
    assert line.startswith("a seed 0: waits up to 120 seconds until its folder is free: ")
    assert f"{jobs[0].path} is in use by another process" in line


def test_it_does_not_wait_for_ever(jobs: list[Job], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "LOCKED", 0.5)
    jobs[0].path.mkdir(parents=True)
    began = time.monotonic()
    with (jobs[0].path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        make_runs(local(2, lambda line: None), jobs, lambda jobs: None)
    assert 0.5 < time.monotonic() - began < 20
    assert [job.state for job in jobs] == ["done", "done"]  # its process tells that it is in use


def test_it_waits_for_nothing_else(jobs: list[Job]) -> None:
    """A lock that is a link, say, is told by the run's own process."""
    jobs[0].path.mkdir(parents=True)
    (jobs[0].path / ".lock").symlink_to(jobs[0].path / "x")
    began = time.monotonic()
    make_runs(local(2, pytest.fail), jobs, lambda jobs: None)
    assert time.monotonic() - began < 20
    assert [job.state for job in jobs] == ["done", "done"]


def test_the_lock_is_waited_for(tmp_path: Path) -> None:
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        began = time.monotonic()
        with pytest.raises(InputError, match="in use"):
            wait_until_free(tmp_path, 0.3)
        assert 0.3 < time.monotonic() - began < 5
        threading.Timer(0.5, fcntl.flock, (held, fcntl.LOCK_UN)).start()
        wait_until_free(tmp_path, 60)
        assert 0.8 < time.monotonic() - began < 30
    with locked(tmp_path):
        pass


def test_a_board_loads_its_data_once(
    gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its costs are measured, and not again for its runs."""
    loaded: list[str] = []

    def load(recipe: Recipe) -> Dataset:
        loaded.append(recipe.data.name)
        return load_data(recipe)

    def costs(board: Board, recipes: dict[str, Recipe], *_: object, **__: object) -> dict[str, Any]:
        assert loaded == ["gaussians8"]
        return {name: EntryCost(flops_ratio=1.0) for name in recipes}

    def made(*_: object) -> None:
        raise RunError("the runs are made")

    monkeypatch.setattr("gancore.leaderboard.plan.load_data", load)
    monkeypatch.setattr("gancore.leaderboard.costs.measure_costs", costs)
    monkeypatch.setattr("gancore.leaderboard.sweep.Local.make", made)
    (tmp_path / "toy.toml").write_text(TOY)
    (tmp_path / "board.toml").write_text(
        'recipe = "toy.toml"\nbaseline = "a"\nseeds = [0, 1]\nset = ["score.metrics=[\'w2\']"]\n'
        '[[entry]]\nname = "a"\n[[entry]]\nname = "b"\nset = ["optimizer.lr=0.01"]\n'
    )
    code, _, err = gan("leaderboard", tmp_path / "board.toml", "--out", tmp_path / "out")
    assert (code, err) == (1, "error: the runs are made\n")
    assert loaded == ["gaussians8"]
