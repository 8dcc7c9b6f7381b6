"""What needs no cluster: addresses, devices, what a node checks, and what it sends back."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers import TOY, Gan, parsed

from gancore import entrypoints
from gancore.errors import GancoreError, InputError, RunError
from gancore.leaderboard.board import Board
from gancore.leaderboard.executor import Terms, chosen, make_runs
from gancore.leaderboard.job import Job
from gancore.leaderboard.plan import plan, versions
from gancore_ray import Cluster, cluster, node
from gancore_ray.node import Order, Outcome, Source, Token, make_run, pack, unpack

TERMS = Terms("nowhere", None, 1, 0.0, "cpu", pytest.fail)
BASE = TOY.replace('[[plugin]]\nname = "gp"\n', "").replace("metrics = []", 'metrics = ["w2"]')
BOARD = 'recipe = "base.toml"\nbaseline = "none"\nseeds = [0]\n{}\n[[entry]]\nname = "none"\n'


def board(folder: Path, more: str = "") -> Path:
    (folder / "base.toml").write_text(BASE)
    path = folder / "board.toml"
    path.write_text(BOARD.format(more))
    return path


# addresses and devices


def test_it_is_the_executor_ray() -> None:
    assert entrypoints.get("executor", "ray").distribution == "gancore-ray"
    made = chosen("ray", TERMS)
    assert isinstance(made, Cluster)
    assert (made.device, made.where) == ("cpu", "cpu on Ray")


@pytest.mark.parametrize(
    ("address", "told"),
    [
        ("127.0.0.1:1", "Connection refused"),
        ("ray://127.0.0.1:1", "Connection refused"),
        ("nonsense", "is no address"),
        ("127.0.0.1:123456", "is no address"),
    ],
)
def test_where_no_cluster_can_be_is_told_at_once(
    tmp_path: Path, gan: Gan, address: str, told: str
) -> None:
    began = time.monotonic()
    code, _, said = gan("leaderboard", board(tmp_path), "--ray", address)
    assert code == 2
    assert said.startswith(f"error: --ray {address}: ")
    assert told in said
    assert said.count("\n") == 1
    assert time.monotonic() - began < 10


def test_a_port_where_nothing_answers_is_told_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "CONNECT", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        told = f"^--ray {address}: no Ray cluster answers within 1 seconds. "
        with pytest.raises(InputError, match=told), Cluster(replace(TERMS, place=address)):
            pass


@pytest.mark.parametrize(
    ("name", "gpus", "device"),
    [("auto", 0, "cpu"), ("auto", 0.5, "cuda"), ("cpu", 1, "cpu"), ("cuda", 1, "cuda")],
)
def test_the_board_decides_the_device_not_this_machine(name: str, gpus: float, device: str) -> None:
    assert Cluster(replace(TERMS, device=name, gpus=gpus)).device == device


@pytest.mark.parametrize(
    ("name", "gpus", "told"), [("cuda", 0, "gpus = 1"), ("cuda:1", 2, "auto, cpu or cuda")]
)
def test_a_device_that_ray_does_not_give(name: str, gpus: float, told: str) -> None:
    with pytest.raises(InputError, match=told):
        Cluster(replace(TERMS, device=name, gpus=gpus))


def test_the_device_decides_the_folder_and_the_gpus_do_not(tmp_path: Path) -> None:
    one = Board.load(board(tmp_path))
    half = Board.load(board(tmp_path, more="gpus = 0.5"))
    assert half.gpus == 0.5
    recipes = one.recipes(tmp_path)
    (on_cuda,) = plan(half, recipes, tmp_path, device="cuda")
    (whole,) = plan(one, recipes, tmp_path, device="cuda")
    (on_cpu,) = plan(one, recipes, tmp_path, device="cpu")
    assert on_cuda.path == whole.path != on_cpu.path


# the loop, with a cluster that is made up


class Ray:
    """A cluster of nodes a and b. A task ends when `answers` has what it returns."""

    def __init__(self) -> None:
        self.exceptions = SimpleNamespace(RayError=OSError, RayTaskError=TimeoutError)
        self.alive, self.begun = {"a", "b"}, dict[str, str]()
        self.answers: dict[str, Any] = {}
        self.options: dict[str, float] = {}
        self.sent: list[Order] = []
        self.most = self.waits = 0

    def remote(self, made: Any) -> Any:
        if made is cluster.Begun:
            return self._offering(lambda: SimpleNamespace(nodes=self._remote(lambda: self.begun)))
        return self._offering(self.send)

    def _offering(self, function: Callable[..., Any]) -> Any:
        def options(**options: Any) -> Any:
            self.options |= options
            return self._remote(function)

        return SimpleNamespace(options=options)

    @staticmethod
    def _remote(function: Callable[..., Any]) -> Any:
        return SimpleNamespace(remote=function)

    def send(self, order: Order, begun: Any) -> str:
        self.sent.append(order)
        return str(order.folder)

    def get(self, task: Any, timeout: float = 0.0) -> Any:
        answer = self.answers[task] if isinstance(task, str) else task
        if isinstance(answer, Exception):
            raise answer
        return answer

    def wait(self, tasks: list[str], num_returns: int, timeout: float) -> tuple[list[str], Any]:
        self.most = max(self.most, len(tasks))
        self.waits += 1
        assert self.waits < 100, "it goes on for ever"
        return [task for task in tasks if task in self.answers], []

    def nodes(self) -> list[dict[str, Any]]:
        return [
            {"Alive": name in self.alive, "NodeID": name, "Resources": {"CPU": 4, "GPU": 0.5}}
            for name in ("a", "b")
        ]

    def get_runtime_context(self) -> Any:
        return SimpleNamespace(get_node_id=lambda: "0a" * 28)

    def cancel(self, task: str) -> None:
        pytest.fail("nobody has stopped the board")


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Ray:
    made = Ray()
    monkeypatch.setattr(cluster, "ray", made)
    monkeypatch.setattr(Job, "is_scored", lambda job: job.state in ("running", "done"))
    return made


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    recipe = parsed(BASE).table()
    return [Job("gp", seed, recipe, tmp_path / "runs" / f"gp-{seed}") for seed in range(3)]


def test_as_many_runs_are_sent_as_jobs_says(ray: Ray, jobs: list[Job]) -> None:
    for parallel, most in ((None, 3), (2, 2)):
        ray.answers, ray.begun, ray.most, shown = {}, {}, 0, []
        for job in jobs:
            job.state = "queued"

        def show(jobs: Any, shown: list[str] = shown) -> None:
            shown.append(" ".join(job.state for job in jobs))
            for job in jobs:
                if job.state == "running":
                    ray.answers[str(job.path)] = ("a", Outcome(0, 7.0))
                ray.begun[str(job.path)] = "a"

        make_runs(Cluster(replace(TERMS, parallel=parallel)), jobs, show)
        assert ray.most == most
        assert shown[0] == "queued queued queued"
        assert [job.state for job in jobs] == ["done"] * 3
        assert [job.seconds for job in jobs] == [7.0] * 3
    assert (ray.options["num_cpus"], ray.options["num_gpus"]) == (0, 0.0)  # the book's, the tasks'


def test_a_run_whose_node_is_lost_is_told_of_and_queued_again(ray: Ray, jobs: list[Job]) -> None:
    told: list[str] = []
    seen: list[str] = []
    (job, *_) = jobs

    def show(jobs: list[Job]) -> None:
        seen.append(job.state)
        match len(seen):
            case 1:
                ray.begun[str(job.path)] = "a"
            case 2:
                ray.alive = {"b"}
            case 3:
                ray.begun[str(job.path)] = "b"
            case 4:
                ray.answers[str(job.path)] = ("b", Outcome(0, 1.0))

    make_runs(Cluster(replace(TERMS, tell=told.append)), [job], show)
    assert seen[:5] == ["queued", "running", "queued", "running", "done"]
    assert told == ["gp seed 0: its node is lost, it is made again"]


@pytest.mark.parametrize(("known", "lines"), [("a", 1), ("b", 0), (None, 0)])
def test_a_run_that_was_made_again_between_two_looks_is_told_so(
    ray: Ray, jobs: list[Job], known: str | None, lines: int
) -> None:
    told: list[str] = []
    (job, *_) = jobs
    if known:
        ray.begun[str(job.path)] = known

    def show(jobs: list[Job]) -> None:
        ray.answers[str(job.path)] = ("b", Outcome(code=1))

    make_runs(Cluster(replace(TERMS, tell=told.append)), [job], show)
    assert job.state == "failed"
    assert told == ["gp seed 0: its node is lost, it is made again"] * lines


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (OSError("lost for good\nand why\n"), "lost for good"),
        (TimeoutError("a task's\ntraceback\nValueError: x\n"), "ValueError: x"),
        (OSError(""), "OSError"),
        (("a", Outcome(error="another torch")), "another torch"),
        (("a", Outcome(files={"../x": b""})), "a node sent the file '../x', which no run's"),
        (("a", Outcome(files={"log.txt": b"error: inf\n"}, code=1)), "inf"),
    ],
)
def test_why_a_run_failed_is_one_line(ray: Ray, jobs: list[Job], answer: Any, error: str) -> None:
    (job, other, _) = jobs
    ray.answers[str(job.path)] = answer
    ray.answers[str(other.path)] = ("b", Outcome(0, 1.0))
    ray.begun = {str(other.path): "b"}
    make_runs(Cluster(TERMS), [job, other], lambda jobs: None)
    assert job.state == "failed"
    assert job.error.startswith(error)
    assert "\n" not in job.error
    assert other.state in ("done", "failed")


def test_costs_that_no_node_can_measure_are_told(ray: Ray) -> None:
    ray.send = lambda *_: "costs"  # type: ignore[method-assign,assignment]
    ray.answers["costs"] = TimeoutError("a task's\nValueError: x")
    with pytest.raises(RunError, match=r"can't measure costs: ValueError: x. --no-cost leaves"):
        Cluster(TERMS).measure({"none": parsed(BASE)})


@pytest.mark.parametrize(
    ("gpus", "threads", "is_told"), [(0.0, 4, False), (0.0, 5, True), (0.5, 1, False), (1, 1, True)]
)
def test_room_is_that_of_one_node(
    ray: Ray, jobs: list[Job], gpus: float, threads: int, is_told: bool
) -> None:
    told: list[str] = []
    ray.answers = {str(job.path): OSError("x") for job in jobs}
    terms = replace(TERMS, device="auto", gpus=gpus, threads=threads, tell=told.append)
    make_runs(Cluster(terms), jobs, lambda jobs: None)
    assert bool(told) is is_told


# a node


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Order:
    """An order, on a node where every run is a shell that leaves a file and exits with 3."""

    def start(folder: Path, **_: object) -> subprocess.Popen[bytes]:
        script = 'cat expected.json > seen; echo "$0" > made; exit 3'
        return subprocess.Popen(["sh", "-c", script, str(folder)], cwd=folder)

    monkeypatch.setattr(node, "start", start)
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    token = Token(".shared-1", "abc")
    (folder.parent / token.name).write_text(token.content)
    recipe = parsed(BASE)
    return Order(recipe.table(), folder, token, versions(recipe), (), 1, "cpu")


def test_in_the_board_s_own_folder_a_run_is_made_there(order: Order) -> None:
    (order.folder / "expected.json").write_text("{}")
    outcome = make_run(order)
    assert (outcome.code, outcome.error, outcome.files) == (3, "", None)
    assert 0 < outcome.seconds < 20
    assert (order.folder / "made").read_text() == f"{order.folder}\n"


@pytest.mark.parametrize("how", ["another text", "no file", "no text"])
def test_elsewhere_it_is_made_in_a_folder_that_comes_back(order: Order, how: str) -> None:
    token = order.folder.parent / order.token.name
    match how:
        case "another text":
            token.write_text("abd")
        case "no file":
            token.unlink()
        case "no text":
            token.write_bytes(b"\xff\xfe")
    outcome = make_run(order)
    assert outcome.files is not None
    assert {"recipe.toml", "expected.json", "made", "seen"} <= outcome.files.keys()
    assert json.loads(outcome.files["seen"]) == order.about.table()  # it was there at the start
    assert not list(order.folder.iterdir())
    assert not Path(outcome.files["made"].decode().strip()).exists()


@pytest.mark.parametrize("key", ["torch", "python", "gp", "code", "generator"])
def test_a_node_with_other_versions_makes_no_scores(order: Order, key: str) -> None:
    about = order.about.model_copy(deep=True)
    assert about.versions
    assert about.components
    match key:
        case "torch":
            about.versions["torch"] = "0.0.7"
        case "python":
            about.python = "0.0.7"
        case "gp":
            about.plugins = {**(about.plugins or {}), "gp": "0.0.7"}
        case "code":
            assert about.core
            about.core = about.core.model_copy(update={"code": "0.0.7"})
        case "generator":
            about.components["generator"] = "0.0.7"
    outcome = make_run(replace(order, about=about))
    assert re.search(rf"\b{key} \S+ \(the board's: 0\.0\.7\)", outcome.error)
    assert "\n" not in outcome.error
    assert not list(order.folder.iterdir())


def test_a_worker_hears_that_its_run_is_stopped(order: Order) -> None:
    """Also one that was started by a script, in the background, where SIGINT is ignored."""
    about = order.about.model_copy(update={"python": "0.0.7"})
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        assert make_run(replace(order, about=about)).error
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_plugin_files_are_those_of_the_board(
    order: Order, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Their texts travel, and a node adds them once."""
    added: list[Path] = []
    monkeypatch.setattr(entrypoints, "add_file", added.append)
    files = tuple(tmp_path / f"{name}.py" for name in ("one", "two"))
    for path in files:
        path.write_text(f"# {path.stem}\n", "utf-8")
    monkeypatch.setattr(entrypoints, "files", lambda: files)
    sources = (Source("one.py", "# one\n"), Source("two.py", "# two\n"))
    made = Ray()
    monkeypatch.setattr(cluster, "ray", made)
    job = Job("none", 0, order.recipe, order.folder, about=order.about)
    made.answers[str(order.folder)] = OSError("x")
    make_runs(Cluster(TERMS), [job], lambda jobs: None)
    assert made.sent[0].sources == sources

    for _ in range(2):
        make_run(made.sent[0])
    assert [path.read_text("utf-8") for path in added] == ["# one\n", "# two\n"]
    assert [path.name for path in added] == ["one.py", "two.py"]
    assert not {*added} & {*files}


# what comes back


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "there"]


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


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    """A board may be unpacked from somewhere: what it links to is somebody's."""
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "kept").write_text("kept")
    for name in ("run", ".run.coming"):
        (tmp_path / name).symlink_to(theirs)
    unpack({"log.txt": b"said", "samples/x.png": b"x"}, tmp_path / "run")
    assert not (tmp_path / "run").is_symlink()
    assert pack(tmp_path / "run") == {"log.txt": b"said", "samples/x.png": b"x"}
    later = tmp_path / "run" / "checkpoints" / "step-000009"
    later.mkdir(parents=True)
    (later / "state.json").write_text("{}")
    (tmp_path / "run" / "log.txt").unlink()
    (tmp_path / "run" / "log.txt").symlink_to(theirs / "kept")
    unpack({"log.txt": b"again"}, tmp_path / "run")  # it is behind: its log alone is taken
    assert (tmp_path / "run" / "log.txt").read_bytes() == b"again"
    assert {path.name: path.read_text() for path in theirs.iterdir()} == {"kept": "kept"}


def test_a_token_is_written_over_links_and_into_no_linked_folder(
    ray: Ray, jobs: list[Job], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (tmp_path / "runs").symlink_to(elsewhere)
    with pytest.raises(GancoreError, match="is a link that leads out of"):
        make_runs(Cluster(TERMS), jobs, lambda jobs: None)
    assert not list(elsewhere.iterdir())
    (tmp_path / "runs").unlink()
    ray.answers = {str(job.path): OSError("x") for job in jobs}
    make_runs(Cluster(TERMS), jobs, lambda jobs: None)
    assert len({order.token for order in ray.sent}) == 1
    assert not list(tmp_path.glob("runs/.*"))


def test_a_folder_that_can_not_be_used_fails_its_run_alone(ray: Ray, jobs: list[Job]) -> None:
    jobs[0].path.parent.mkdir()
    jobs[0].path.write_text("a file")
    ray.answers = {str(job.path): OSError("x") for job in jobs}
    make_runs(Cluster(TERMS), jobs, lambda jobs: None)
    assert [job.state for job in jobs] == ["failed"] * 3
    assert "there is a file, or a link to nowhere, of this name" in jobs[0].error
    assert len(ray.sent) == 2
