"""Many processes as torchrun starts them: they end together, and none is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import TOY, environment_of, records_of
from processes import FORK, LIMIT, Launched
from torch.distributed import HashStore

from gancore.distributed.ranks import _meeting
from gancore.training import Run, checkpoint

pytestmark = pytest.mark.xdist_group("processes")


def recipe(folder: Path) -> Path:
    path = folder / "toy.toml"
    path.write_text(TOY)
    return path


def arguments(folder: Path, out: str, steps: int) -> list[object]:
    settings = (
        f"train.steps={steps}",
        "checkpoint.every=5",
        "log.every=1",
        "plugin.1.name=sn",
        "plugin.2.name=lazy",
        "plugin.2.every=2",
    )
    return [
        "run",
        recipe(folder),
        "--out",
        folder / out,
        "--resume",
        *(part for setting in settings for part in ("--set", setting)),
    ]


def reached(launched: Launched, folder: Path, step: int) -> None:
    """Wait until a run has a checkpoint of at least this step."""
    while not any(int(path.name[5:]) >= step for path in folder.glob("checkpoints/step-*")):
        assert all(process.is_alive() for process in launched.processes), launched.said()
        time.sleep(0.05)


def saved(folder: Path) -> checkpoint.Checkpoint:
    found = checkpoint.latest(folder / "checkpoints")
    assert found is not None
    return found


def assert_same_run(whole: Path, part: Path) -> None:
    """Check that two runs ended in the same weights and records, to the bit."""
    one, other = saved(whole), saved(part)
    assert one.step == other.step
    assert one.tensors.keys() == other.tensors.keys()
    for name, tensors in one.tensors.items():
        assert tensors.keys() == other.tensors[name].keys()
        assert all(torch.equal(tensors[key], other.tensors[name][key]) for key in tensors), name
    assert untimed(whole) == untimed(part)


def untimed(folder: Path) -> list[dict[str, Any]]:
    records = records_of(Run.open(folder))
    return [{key: value for key, value in each.items() if key != "seconds"} for each in records]


def test_a_signal_to_one_stops_all_and_the_rest_is_the_same(tmp_path: Path) -> None:
    whole = Launched(tmp_path, arguments(tmp_path, "whole", 60))
    assert whole.ended() == [0, 0], whole.said()

    part = Launched(tmp_path, arguments(tmp_path, "part", 60))
    reached(part, tmp_path / "part", 10)
    os.kill(part.processes[1].pid, signal.SIGTERM)
    assert part.ended() == [0, 0], part.said()
    first, second = part.said()
    assert "stopped with another of its processes: saved in" in first
    assert " ".join(first.split()).count("each process draws its own numbers for dropout") == 1
    lines = [line for line in second.splitlines() if not line.startswith("[Gloo]")]  # torch 2.9's
    assert lines == []
    stopped = saved(tmp_path / "part")
    assert 10 <= stopped.step < 60

    # another number of processes would round otherwise
    alone = Launched(tmp_path, arguments(tmp_path, "part", 60), count=1)
    assert alone.ended() == [2]
    assert "processes: was 2, is 1" in alone.said()[0]

    rest = Launched(tmp_path, arguments(tmp_path, "part", 60))
    assert rest.ended() == [0, 0], rest.said()
    assert_same_run(tmp_path / "whole", tmp_path / "part")
    assert saved(tmp_path / "part").step == 60
    assert environment_of(Run.open(tmp_path / "part"))["world_size"] == 2

    forced = Launched(tmp_path, [*arguments(tmp_path, "part", 61), "--force"], count=1)
    assert forced.ended() == [0], forced.said()
    assert saved(tmp_path / "part").step == 61
    assert environment_of(Run.open(tmp_path / "part"))["world_size"] == 1


@pytest.mark.parametrize("victim", [0, 1])
def test_one_that_is_killed_ends_the_run_in_one_line(victim: int, tmp_path: Path) -> None:
    launched = Launched(tmp_path, arguments(tmp_path, "run", 100_000))
    reached(launched, tmp_path / "run", 5)
    os.kill(launched.processes[victim].pid, signal.SIGKILL)
    codes = launched.ended()
    assert codes[victim] == -signal.SIGKILL
    assert codes[1 - victim] == 1
    said = launched.said()[1 - victim]
    assert "error: another process of this run has ended, or does not answer" in said
    assert "--resume" in said
    assert "Traceback" not in said
    assert saved(tmp_path / "run").step >= 5


def test_one_that_hangs_ends_the_run_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gancore.distributed.ranks.TIMEOUT", timedelta(seconds=6))
    launched = Launched(tmp_path, arguments(tmp_path, "run", 100_000))
    reached(launched, tmp_path / "run", 5)
    os.kill(launched.processes[1].pid, signal.SIGSTOP)
    began = time.monotonic()
    launched.processes[0].join(60)
    assert time.monotonic() - began < 30
    launched.processes[1].kill()
    assert launched.ended() == [1, -signal.SIGKILL]
    assert "error: another process of this run has ended, or does not" in launched.said()[0]


@pytest.mark.parametrize(
    ("setting", "code", "what"),
    [
        ("train.stepz=3", 2, "train.stepz: unknown key"),
        ("train.batch_size=15", 2, "train.batch_size is 15, and that can't be split over 2"),
        ('score.metrics=["isc"]', 2, "isc can't be computed for the points"),
    ],
)
def test_an_error_that_all_have_is_told_once(
    setting: str, code: int, what: str, tmp_path: Path
) -> None:
    launched = Launched(tmp_path, [*arguments(tmp_path, "run", 3), "--set", setting])
    assert launched.ended() == [code, code]
    said = "".join(launched.said())
    assert said.count(what) == 1
    assert said.count("error:") == 1
    assert "told by process" in said


def test_orphans_save_and_end_however_often_they_are_told(tmp_path: Path) -> None:
    """kill -9 of what started them; and torchrun passes on signals that they had already."""
    folder = tmp_path / "run"

    def torchrun() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TORCHELASTIC_RUN_ID", "stands in for the real one")
            launched = Launched(tmp_path, arguments(tmp_path, "run", 100_000))
        pids = " ".join(str(process.pid) for process in launched.processes)
        (tmp_path / "pids.txt").write_text(pids)
        launched.ended()

    parent = FORK.Process(target=torchrun)
    parent.start()
    while not list(folder.glob("checkpoints/step-*")):
        assert parent.is_alive()
        time.sleep(0.05)
    orphans = [int(pid) for pid in (tmp_path / "pids.txt").read_text().split()]
    os.kill(orphans[0], signal.SIGTERM)
    os.kill(orphans[0], signal.SIGINT)
    parent.kill()
    parent.join()
    for _ in range(600):
        if not any(Path(f"/proc/{orphan}").exists() for orphan in orphans):
            break
        time.sleep(0.05)
    else:
        pytest.fail("the workers outlived what started them")
    said = (tmp_path / "said-0.txt").read_text()
    assert "stopped by SIG" in said
    assert f"saved in {folder}" in said
    assert "error" not in said


@pytest.mark.slow
def test_torchrun_restarts_what_was_killed_and_ends_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ["--nproc-per-node", "2", "--max-restarts", "1", "-m", "gancore"]
    torchrun = subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", *options),
            *map(str, arguments(tmp_path, "run", 150)),
        ],
    )
    while not list(folder.glob("checkpoints/step-*")):
        assert torchrun.poll() is None
        time.sleep(0.05)
    children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text()
    os.kill(int(children.split()[1]), signal.SIGKILL)
    assert torchrun.wait(LIMIT) == 0

    whole = Launched(tmp_path, arguments(tmp_path, "whole", 150))
    assert whole.ended() == [0, 0], whole.said()
    assert_same_run(tmp_path / "whole", folder)


def test_a_restart_does_not_meet_the_attempt_before_it() -> None:
    """The store of torchrun remembers those that were killed."""
    store = HashStore()
    names = []
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            first = pool.submit(_meeting, store, 0, 3)
            time.sleep(0.1)  # in which it finds what the attempt before left there
            others = [pool.submit(_meeting, store, index, 3) for index in (2, 1)]
            met = {each.result(30) for each in (first, *others)}
            assert len(met) == 1
            names += met
    assert len(set(names)) == 3
