"""Boards on a Ray cluster: a real one of three nodes here, one of which is lost in the middle."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import TOY, Gan, parsed
from processes import ending

from gancore.errors import InputError, RunError
from gancore.files.storage import locked, wait_until_free
from gancore.leaderboard import cluster, remote
from gancore.leaderboard.board import Board
from gancore.leaderboard.job import Job, surroundings
from gancore.leaderboard.plan import plan, versions
from gancore.leaderboard.remote import Order, Outcome, _is_shared, make_run, pack, unpack
from gancore.training import Run

pytestmark = pytest.mark.xdist_group("cluster")

BASE = (
    TOY.replace('[[plugin]]\nname = "gp"\n', "").replace("metrics = []", 'metrics = ["w2"]')
    + "[checkpoint]\nevery = 50\n[log]\nevery = 50\n"
)
BOARD = """
recipe = "base.toml"
baseline = "none"
seeds = {seeds}
{more}
[[entry]]
name = "none"
"""
GP = """
[[entry]]
name = "gp"
set = ["plugin.0.name=gp"]
"""
BOOM = """
[[entry]]
name = "boom"
set = ["plugin.0.name=gp", "plugin.0.weight=1e300"]
"""
STEPS = 600
"""Two seconds of training, or more."""


def board(
    folder: Path, entries: str = "", *, seeds: tuple[int, ...] = (0,), more: str = ""
) -> Path:
    (folder / "base.toml").write_text(BASE)
    path = folder / "board.toml"
    path.write_text(BOARD.format(seeds=list(seeds), more=more) + entries)
    return path


def command(path: Path, out: Path | str, *options: str) -> list[str]:
    gan = [sys.executable, "-m", "gancore", "leaderboard", str(path), "--out", str(out)]
    return [*gan, *options]


def scores(out: Path) -> dict[str, Any]:
    found = json.loads((out / "leaderboard.json").read_text())
    return {each["name"]: each["scores"] for each in found["entries"]}


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.05)
    return found


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A cluster whose head makes no runs; the two others make one at a time each."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    small = {"object_store_memory": 80 << 20}
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv("RAY_worker_niceness", "0")  # not after every other test that goes on here
    made = cluster_utils.Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, **small},
    )
    try:
        for _ in range(2):
            made.add_node(num_cpus=1, wait=False, **small)
        yield made
    finally:
        made.shutdown()
        monkeypatch.undo()


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a board's folder, made here, though by one of two processes of torchrun."""
    folder = tmp_path_factory.mktemp("local")
    launched = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "localhost"}
    path = board(folder, GP, more=f'set = ["train.steps={STEPS}"]')
    options = ("--device", "cpu", "--no-cost", "--jobs", "2")
    done = subprocess.run(
        command(path, folder / "out", *options),
        env={**os.environ, **launched},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def parent(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def saved(run: Path) -> list[Path]:
    return list(run.glob("checkpoints/step-*"))


def runs_below(raylet: int) -> dict[int, Path]:
    """Return the processes of the runs that a node's workers have started, and their folders."""
    found = {}
    for each in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = each.read_bytes().decode().split("\0")
            process, is_run = int(each.parent.name), words[1:5] == ["-P", "-m", "gancore", "run"]
            if is_run and parent(parent(process)) == raylet:
                found[process] = Path(words[words.index("--out") + 1])
        except (OSError, ValueError):
            continue  # it has just ended
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_lost_nodes_runs_are_made_again_and_score_the_same(
    tmp_path: Path, nodes: Any, local: Path
) -> None:
    lost = next(iter(nodes.worker_nodes))
    raylet = lost.all_processes["raylet"][0].process.pid
    out, told = tmp_path / "out", tmp_path / "told"
    with (
        told.open("wb") as file,
        ending(
            subprocess.Popen(
                command(local / "board.toml", out, "--no-cost", "--ray", nodes.address),
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        ) as going,
    ):
        ((process, run),) = until(lambda: runs_below(raylet).items())
        until(lambda: saved(run))
        os.kill(process, signal.SIGSTOP)  # else it may be done before its node is gone
        called = "{} seed {}: ".format(*re.findall(r"(\w+)-seed(\d)", run.name)[0])
        until(lambda: f"{called}starts" in told.read_text())
        worker = parent(process)
        nodes.remove_node(lost, allow_graceful=False)
        until(lambda: parent(process) != worker)
        os.kill(process, signal.SIGCONT)
        assert going.wait(300) == 0, told.read_text()
    said = told.read_text()
    assert f"{called}its node is lost, it is made again\n" in said
    assert "raylet" not in said
    (went_on,) = re.findall(r"from step (\d+);", (run / "log.txt").read_text())
    assert 50 <= int(went_on) < STEPS
    assert "Traceback" not in said
    assert len(list(out.glob("runs/*/scores.json"))) == 2
    assert scores(out) == scores(local / "out")
    assert not list(out.glob("runs/.*")), "a token is left"


@pytest.mark.slow
def test_without_a_shared_folder_results_come_back_as_bytes(
    tmp_path: Path, nodes: Any, local: Path
) -> None:
    """/proc/self/cwd is another folder for each process that does not work where the board does."""
    path = board(tmp_path, BOOM, more=f'set = ["train.steps={STEPS}"]')
    done = subprocess.run(
        command(path, "/proc/self/cwd/out", "--ray", nodes.address),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    (one,) = (tmp_path / "out" / "runs").glob("none-*")
    assert "/proc/self" not in (one / "log.txt").read_text()
    (same,) = (local / "out" / "runs").glob("none-seed0-*")
    assert one.name == same.name
    assert (one / "scores.json").read_bytes() == (same / "scores.json").read_bytes()
    weights = f"checkpoints/step-{STEPS:06d}/generator.safetensors"
    assert (one / weights).read_bytes() == (same / weights).read_bytes()

    found = json.loads((tmp_path / "out" / "leaderboard.json").read_text())
    entries = {each["name"]: each for each in found["entries"]}
    (failed,) = entries["boom"]["failed"]
    assert "penalty/gp is inf" in failed["error"]
    assert entries["none"]["failed"] == []
    assert entries["none"]["cost"]["flops_ratio"] == 1.0
    assert entries["boom"]["cost"] == {}


@pytest.mark.slow
def test_a_stopped_board_lets_its_runs_save(tmp_path: Path, nodes: Any) -> None:
    path, out = board(tmp_path, seeds=(0, 1), more='set = ["train.steps=100_000"]'), tmp_path / "o"
    with ending(
        subprocess.Popen(
            command(path, out, "--no-cost", "--ray", nodes.address),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    ) as going:
        (one, *_) = until(lambda: list(out.glob("runs/*/checkpoints/step-*")))
        going.send_signal(signal.SIGINT)
        said = going.communicate(timeout=60)[0]
    assert going.returncode == 130, said
    assert said.splitlines()[-1] == "stopped"
    assert "Traceback" not in said
    run = one.parents[1]
    assert "stopped by SIGTERM" in (run / "log.txt").read_text()
    with locked(run):
        pass


@pytest.mark.slow
def test_a_board_that_no_node_has_room_for_says_so(tmp_path: Path, nodes: Any) -> None:
    path = board(tmp_path, more="gpus = 1")
    with ending(
        subprocess.Popen(
            command(path, tmp_path / "out", "--no-cost", "--ray", nodes.address),
            stdout=subprocess.PIPE,
            text=True,
        )
    ) as going:
        assert going.stdout is not None
        line = going.stdout.readline()
        going.send_signal(signal.SIGINT)
        assert going.wait(60) == 130
    assert line.startswith("no node of the cluster has the 1 CPUs and 1 GPUs of a run: waiting")


def test_a_run_that_was_made_again_between_two_looks_is_told_so(tmp_path: Path) -> None:
    told: list[str] = []
    ray = SimpleNamespace(
        get=lambda task: task, exceptions=SimpleNamespace(RayError=OSError, RayTaskError=OSError)
    )
    one = cluster.Cluster(ray, None, 1, 0.0, "cpu", told.append)
    for known, lines in (("first", 1), ("second", 0), (None, 0)):
        job = Job("gp", 3, {}, tmp_path, state="running" if known else "waiting")
        one._finish(job, ("second", Outcome(code=1)), known)
        assert job.state == "failed"
        assert told == ["gp seed 3: its node is lost, it is made again"] * lines
        told.clear()


def test_ray_is_needed_only_where_it_is_asked_for(
    tmp_path: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, said = gan("leaderboard", board(tmp_path), "--out", tmp_path / "o", "--ray", "auto")
    assert code == 2
    assert said == 'error: --ray: Ray is not installed: pip install "gancore[ray]"\n'
    assert not (tmp_path / "o").exists()


def test_a_closed_port_is_told_at_once(tmp_path: Path, gan: Gan) -> None:
    pytest.importorskip("ray")
    for address, told in (
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("nonsense", "is no address"),
    ):
        began = time.monotonic()
        code, _, said = gan("leaderboard", board(tmp_path), "--ray", address)
        assert code == 2
        assert said.startswith(f"error: --ray {address}: ")
        assert told in said
        assert said.count("\n") == 1
        assert time.monotonic() - began < 10


def test_a_port_where_nothing_answers_is_told_in_time(
    tmp_path: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr(cluster, "CONNECT", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        code, _, said = gan("leaderboard", board(tmp_path), "--ray", address)
    assert code == 2
    assert said.startswith(f"error: --ray {address}: no Ray cluster answers within 3 seconds. ")
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "gpus", "device"),
    [("auto", 0, "cpu"), ("auto", 0.5, "cuda"), ("cpu", 1, "cpu"), ("cuda", 1, "cuda")],
)
def test_the_board_decides_the_device_not_this_machine(name: str, gpus: float, device: str) -> None:
    assert cluster.cluster_device(name, gpus) == device


@pytest.mark.parametrize(
    ("name", "gpus", "told"), [("cuda", 0, "gpus = 1"), ("cuda:1", 2, "auto, cpu or cuda")]
)
def test_a_device_that_ray_does_not_give(name: str, gpus: float, told: str) -> None:
    with pytest.raises(InputError, match=told):
        cluster.cluster_device(name, gpus)


def test_the_device_decides_the_folder_and_the_gpus_do_not(tmp_path: Path) -> None:
    one = Board.load(board(tmp_path))
    half = Board.load(board(tmp_path, more="gpus = 0.5"))
    assert half.gpus == 0.5
    recipes = one.recipes(tmp_path)
    (on_cuda,) = plan(half, recipes, tmp_path, device="cuda")
    (whole,) = plan(one, recipes, tmp_path, device="cuda")
    (on_cpu,) = plan(one, recipes, tmp_path, device="cpu")
    assert on_cuda.path == whole.path != on_cpu.path


@pytest.fixture
def order(tmp_path: Path) -> Order:
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    (folder.parent / ".shared-1").write_text("abc")
    token = (".shared-1", "abc")
    return Order(tomllib.loads(BASE), folder, token, versions(parsed(BASE)), 1, "cpu")


def test_only_the_very_folder_of_the_board_is_shared(order: Order) -> None:
    assert _is_shared(order)
    assert not _is_shared(replace(order, token=(".shared-1", "abd")))
    assert not _is_shared(replace(order, token=(".shared-2", "abc")))
    (order.folder.parent / ".shared-1").write_bytes(b"\xff\xfe")
    assert not _is_shared(order)


@pytest.mark.parametrize("key", ["torch", "python", "gp", "code"])
def test_a_node_with_other_versions_makes_no_scores(order: Order, key: str) -> None:
    about = json.loads(json.dumps(order.about))
    places = {"torch": about["versions"], "gp": about["plugins"], "code": about["core"]}
    places.get(key, about)[key] = "0.0.7"
    found = make_run(replace(order, about=about))
    assert re.search(rf"\b{key} \S+ \(the board's: 0\.0\.7\)", found.error)
    assert "\n" not in found.error
    assert not list(order.folder.iterdir())


def test_a_node_with_a_folder_of_its_own_knows_what_the_board_expects(
    order: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = {**order.about, "data": "abc"}
    seen = []

    def train(folder: Path, order: Order) -> tuple[int, float]:
        seen.append(json.loads(Run(folder).expected_path.read_text()))
        return 0, 1.0

    monkeypatch.setattr(remote, "_train", train)
    elsewhere = replace(order, about=expected, token=(".shared-1", "of another"))
    found = make_run(elsewhere)
    assert not found.error
    assert seen == [expected]
    assert {"recipe.toml", "expected.json"} <= (found.files or {}).keys()


@pytest.mark.parametrize("name", ["../x", "/x", "a/../../x", "..", "", ".", "a\0b"])
def test_no_file_of_a_node_leaves_the_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.toml").write_text("mine")
    with pytest.raises(RunError, match="a node sent the file"):
        unpack({"scores.json": b"{}", name: b"y"}, folder)
    there = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*"))
    assert there == ["run", "run/recipe.toml"]
    assert (folder / "recipe.toml").read_text() == "mine"


def test_a_folder_comes_back_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "there" / "checkpoints").mkdir(parents=True)
    (tmp_path / "there" / "checkpoints" / "x").write_bytes(b"\0\xff")
    (tmp_path / "there" / "log.txt").write_text("said")
    (tmp_path / "there" / ".lock").write_text("process 1")
    (tmp_path / "there" / "link").symlink_to("/etc/hostname")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "stale").write_text("x")
    unpack(pack(tmp_path / "there"), tmp_path / "here")
    assert pack(tmp_path / "here") == {"checkpoints/x": b"\0\xff", "log.txt": b"said"}
    assert sorted(each.name for each in tmp_path.iterdir()) == ["here", "there"]


def test_a_run_is_on_its_own_whatever_launched_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "GROUP_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("KEPT", "yes")
    found = surroundings(3)
    assert (found["OMP_NUM_THREADS"], found["MKL_NUM_THREADS"]) == ("3", "3")
    assert found["KEPT"] == "yes"
    assert not [name for name in found if "RANK" in name or "TORCHELASTIC" in name]
    assert "WORLD_SIZE" not in found
    assert "MASTER_PORT" not in found


def test_a_folder_that_got_further_is_not_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    later = folder / "checkpoints" / "step-000900"
    later.mkdir(parents=True)
    (later / "state.json").write_text("kept")
    unpack({"log.txt": b"error: lost", "checkpoints/step-000100/state.json": b"{}"}, folder)
    assert (later / "state.json").read_text() == "kept"
    assert (folder / "log.txt").read_text() == "error: lost"
    unpack({"checkpoints/step-1000000/state.json": b"{}"}, folder)
    assert not later.exists()


@pytest.mark.parametrize("files", [{}, {"a": b"", "a/b": b""}])
def test_what_can_not_be_written_leaves_the_folder(tmp_path: Path, files: dict[str, bytes]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "kept").write_text("kept")
    with pytest.raises(RunError, match="a node sent"):
        unpack(files, tmp_path / "run")
    assert (tmp_path / "run" / "kept").read_text() == "kept"


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
