"""Boards on a Ray cluster: a real one of three nodes here, one of which is lost in the middle."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import Gan

import gancore
from gancore.files.storage import locked
from gancore.leaderboard.board import Board
from gancore.leaderboard.executor import Terms, make_runs
from gancore.leaderboard.job import Job
from gancore.leaderboard.plan import plan
from gancore_ray import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

BASE = """
[data]
name = "gaussians8"
samples = 400
[generator]
name = "mlp"
width = 16
[critic]
name = "mlp"
width = 16
[loss]
name = "hinge"
[train]
steps = 1000
batch_size = 16
[score]
metrics = ["w2"]
samples = 64
[checkpoint]
every = 50
[log]
every = 50
"""
"""Two seconds of training, or more."""

STEPS = 1000
BOARD = """
recipe = "base.toml"
baseline = "none"
seeds = [0]
[[entry]]
name = "none"
[[entry]]
name = "{}"
set = ["{}"]
"""
BOOM = """
from gancore import hookimpl, plugin


@plugin
class Boom:
    @hookimpl
    def penalty(self, step):
        return sum(p.sum() for p in step.critic.parameters()) / (step.update < 2)
"""
TERMS = Terms("", None, 1, 0.0, "cpu", pytest.fail)


def board(folder: Path, name: str, change: str) -> Path:
    (folder / "base.toml").write_text(BASE)
    path = folder / "board.toml"
    path.write_text(BOARD.format(name, change))
    return path


def planned(path: Path, out: Path) -> list[Job]:
    loaded = Board.load(path)
    return plan(loaded, loaded.recipes(path.parent), out, device="cpu")


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of the entry `none`, made by no board."""
    folder = tmp_path_factory.mktemp("truth")
    (job, _) = planned(board(folder, "other", "optimizer.lr=1e-3"), folder / "out")
    job.prepare()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gancore.training.session.plot_curves", lambda *_: None)
        gancore.run(job.run.recipe_path, job.path, device="cpu", resume=True)
    return job.path


def same(one: Path, other: Path) -> bool:
    weights = f"checkpoints/step-{STEPS:06d}/generator.safetensors"
    return all(
        (one / name).read_bytes() == (other / name).read_bytes()
        for name in ("scores.json", weights)
    )


def until(condition: Callable[[], Any], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def runs_below(raylet: int) -> dict[int, Path]:
    """Return the processes of the runs that a node's workers have started, and their folders."""
    processes = {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode().split("\0")
            process, is_run = int(path.parent.name), words[1:5] == ["-P", "-m", "gancore", "run"]
            if is_run and parent(parent(process)) == raylet:
                processes[process] = Path(words[words.index("--out") + 1])
        except (OSError, ValueError):
            continue  # it has just ended
    return processes


def test_without_a_shared_folder_results_come_back_as_bytes(
    tmp_path: Path, nodes: Any, truth: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/proc/self/cwd is another folder for each process that does not work where the board does."""
    monkeypatch.chdir(tmp_path)
    path = board(tmp_path, "boom", "plugin.0.name=boom")
    (tmp_path / "boom.py").write_text(BOOM)
    files = ("--plugin-file", tmp_path / "boom.py")
    code, said, err = gan(
        "leaderboard", path, "--out", "/proc/self/cwd/out", "--ray", nodes.address, *files
    )
    assert code == 1, said + err
    (one,) = (tmp_path / "out" / "runs").glob("none-*")
    assert "/proc/self" not in (one / "log.txt").read_text()
    assert one.name == truth.name
    assert same(one, truth)

    found = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    entries = {entry["name"]: entry for entry in found["entries"]}
    (failed,) = entries["boom"]["failed"]
    assert failed["error"].startswith("penalty/boom is inf at update 2")
    assert entries["boom"]["cost"] == {} or entries["boom"]["cost"]["flops_ratio"] > 0
    assert entries["none"]["failed"] == []
    assert entries["none"]["cost"]["flops_ratio"] == 1.0


@pytest.fixture(scope="module")
def connected(nodes: Any) -> Iterator[Cluster]:
    """A connection that the tests below share: whoever connects anew pays for it."""
    with Cluster(replace(TERMS, place=nodes.address)) as cluster:
        yield cluster


@contextmanager
def stopped() -> Iterator[None]:
    with pytest.raises(KeyboardInterrupt):
        yield


def test_a_stopped_board_lets_its_runs_save(tmp_path: Path, connected: Cluster) -> None:
    path = board(tmp_path, "more", "optimizer.lr=1e-3")
    path.write_text(f'set = ["train.steps=100_000"]\n{path.read_text()}')
    jobs = planned(path, tmp_path / "out")
    signals: list[int] = []

    def show(jobs: Sequence[Job]) -> None:
        if not signals and all(any(job.run.checkpoints.glob("step-*")) for job in jobs):
            assert [job.state for job in jobs] == ["running", "running"]
            signals.append(signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    with stopped():
        make_runs(connected, jobs, show)
    assert [job.state for job in jobs] == ["queued", "queued"]
    for job in jobs:
        assert "stopped by SIGTERM: saved" in (job.path / "log.txt").read_text()
        with locked(job.path):
            pass
    assert not list(tmp_path.glob("out/runs/.*")), "a token is left"


def test_a_board_that_no_node_has_room_for_says_so(tmp_path: Path, connected: Cluster) -> None:
    told: list[str] = []
    (job, _) = planned(board(tmp_path, "other", "optimizer.lr=1e-3"), tmp_path / "out")
    large = Cluster(replace(TERMS, device="auto", gpus=1.0, tell=told.append))

    def show(jobs: Sequence[Job]) -> None:
        if job.state == "queued" and len(told) == 1:
            told.append("interrupted")
            os.kill(os.getpid(), signal.SIGINT)

    with stopped():
        make_runs(large, [job], show)
    assert told[0].startswith("no node of the cluster has the 1 CPUs and 1 GPUs of a run: waiting")


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_lost_nodes_runs_are_made_again_and_score_the_same(
    tmp_path: Path, nodes: Any, connected: Cluster, truth: Path
) -> None:
    told: list[str] = []
    lost = next(iter(nodes.worker_nodes))
    raylet = lost.all_processes["raylet"][0].process.pid
    jobs = planned(board(tmp_path, "other", "optimizer.lr=1e-3"), tmp_path / "out")
    halted: list[tuple[int, Job]] = []

    def show(jobs: Sequence[Job]) -> None:
        """Lose the node of a run that has saved. It is halted before, or it may be done."""
        if not halted:
            for process, folder in runs_below(raylet).items():
                if any(folder.glob("checkpoints/step-*")):
                    os.kill(process, signal.SIGSTOP)
                    halted.append((process, next(job for job in jobs if job.path == folder)))
        elif lost in nodes.worker_nodes and halted[0][1].state == "running":
            process, worker = halted[0][0], parent(halted[0][0])
            nodes.remove_node(lost, allow_graceful=False)
            until(lambda: parent(process) != worker)
            os.kill(process, signal.SIGCONT)

    make_runs(Cluster(replace(TERMS, tell=told.append)), jobs, show)
    assert [job.state for job in jobs] == ["done", "done"], [job.error for job in jobs]
    ((_, job),) = halted
    assert told == [f"{job.entry} seed 0: its node is lost, it is made again"]
    (went_on,) = re.findall(r"from step (\d+);", (job.path / "log.txt").read_text())
    assert 50 <= int(went_on) < STEPS
    assert same(jobs[0].path, truth)
