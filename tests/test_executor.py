"""Executors: a stranger's makes a board's runs, and local processes are stopped."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from executors import SOURCE, installed
from helpers import TOY, Gan, parsed

from gancore import entrypoints
from gancore.errors import ContractError, InputError, MissingError, PluginError, RunError
from gancore.leaderboard import sweep
from gancore.leaderboard.board import Board
from gancore.leaderboard.display import BoardDisplay
from gancore.leaderboard.executor import Executor, Terms, Watch, chosen, make_runs
from gancore.leaderboard.job import Job, command, shell_line, surroundings
from gancore.leaderboard.sweep import Local
from gancore.training import Run

TERMS = Terms("", None, 1, 0.0, "cpu", lambda line: None)
BASE = TOY.replace('[[plugin]]\nname = "gp"\n', "").replace("metrics = []", 'metrics = ["w2"]')
BOARD = """
recipe = "base.toml"
baseline = "none"
seeds = [0, 1]
[[entry]]
name = "none"
[[entry]]
name = "boom"
set = ["plugin.0.name=gp", "plugin.0.weight=1e300"]
"""


def board(folder: Path, text: str = BOARD) -> Path:
    (folder / "base.toml").write_text(BASE)
    path = folder / "board.toml"
    path.write_text(text)
    return path


@pytest.fixture
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with installed(tmp_path_factory.mktemp("site")):
        yield


@pytest.fixture
def broken(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Install the stranger's executor with another body of `make`, or no executor at all."""

    def install(make: str, base: str = "Executor") -> Any:
        source = (
            "from gancore.leaderboard.executor import Executor\n"
            f"class Inline({base}):\n"
            "    def __init__(self, terms):\n"
            "        if Executor in type(self).__mro__:\n"
            "            super().__init__(terms)\n"
            "    def make(self, jobs, watch):\n" + textwrap.indent(make, " " * 8)
        )
        return installed(tmp_path_factory.mktemp("site"), source)

    return install


def test_the_page_s_executor_is_short() -> None:
    assert len(SOURCE.splitlines()) < 30


def test_a_stranger_s_executor_makes_a_board(tmp_path: Path, stranger: None, gan: Gan) -> None:
    """All of it in this process: states are shown, a failed run is a row, none is made twice."""
    path, out = board(tmp_path), tmp_path / "out"
    options = ("leaderboard", path, "--out", out, "--executor", "inline", "--device", "cpu")
    code, said, err = gan(*options)
    assert code == 1, err
    lines = said.splitlines()
    assert sum(line.endswith("starts at step 0 of 3") for line in lines) == 4
    assert any(line.startswith("none seed 1: w2 ") and "/4 runs, 0:0" in line for line in lines)
    assert sum("boom seed" in line and "penalty/gp is inf" in line for line in lines) >= 2
    (none, boom) = json.loads((out / "leaderboard.json").read_text())["entries"]
    assert len(none["scores"]["w2"]["values"]) == 2
    assert none["failed"] == []
    assert [failed["seed"] for failed in boom["failed"]] == [0, 1]
    assert none["cost"]["flops_ratio"] == 1.0
    assert all(not Path(folder, "log.txt").exists() for folder in (out / "runs").iterdir())

    written = {path: path.stat().st_mtime_ns for path in out.glob("runs/*/scores.json")}
    assert len(written) == 2
    code, said, _ = gan(*options)
    assert code == 1
    assert "measuring" not in said
    assert said.count(", done before |") == 2
    assert said.count("starts at step") == 2  # those that failed are tried again
    assert {path: path.stat().st_mtime_ns for path in written} == written
    (none, _) = json.loads((out / "leaderboard.json").read_text())["entries"]
    recorded = [
        json.loads((path.parent / "metrics.jsonl").read_text().splitlines()[-1])
        for path in sorted(written)
    ]
    assert none["seconds"] == [round(record["seconds"], 1) for record in recorded]


def test_each_record_file_of_a_board_is_read_once(
    tmp_path: Path, stranger: None, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    lines = Run._lines

    def counted(run: Run) -> Any:
        read.append(run.path)
        return lines(run)

    options = ("--out", tmp_path / "out", "--executor", "inline", "--device", "cpu", "--no-cost")
    only_none = BOARD.partition('[[entry]]\nname = "boom"')[0]
    assert gan("leaderboard", board(tmp_path, only_none), *options)[0] == 0
    monkeypatch.setattr(Run, "_lines", counted)
    assert gan("leaderboard", tmp_path / "board.toml", *options)[0] == 0
    assert sorted(read) == sorted((tmp_path / "out" / "runs").iterdir())


def test_ctrl_c_stops_a_stranger_s_executor(
    tmp_path: Path, stranger: None, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run that goes on ends, as the page's executor has no way to stop it; no other begins."""
    show = BoardDisplay.show

    def interrupt(display: BoardDisplay, jobs: Sequence[Job]) -> None:
        show(display, jobs)
        if [job.state for job in jobs].count("running") and not interrupted:
            interrupted.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    interrupted: list[bool] = []
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    monkeypatch.setattr(BoardDisplay, "show", interrupt)
    options = ("--out", tmp_path / "out", "--executor", "inline", "--device", "cpu", "--no-cost")
    code, said, err = gan("leaderboard", board(tmp_path), *options)
    assert (code, err.strip()) == (130, "stopped")
    assert said.count("starts at step") == 1
    assert len(list(tmp_path.glob("out/runs/*/scores.json"))) == 1
    assert not (tmp_path / "out" / "leaderboard.json").exists()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--executor", "inlime"), "no executor 'inlime' is installed. Did you mean 'inline'?"),
        (("--executor", ":x"), "--executor ':x': expected NAME or NAME:PLACE, such as ray:auto"),
        (("--executor", ""), "--executor '': expected NAME or NAME:PLACE, such as ray:auto"),
        (
            ("--executor", "inline", "--ray", "auto"),
            "--ray ADDRESS is short for --executor ray:ADDRESS: give one of them",
        ),
        (("--executor", "local:here"), "--executor local:here: local takes no place"),
    ],
)
def test_mistakes_are_told_in_a_line(
    tmp_path: Path, stranger: None, gan: Gan, options: tuple[str, ...], told: str
) -> None:
    code, said, err = gan("leaderboard", board(tmp_path), "--out", tmp_path / "out", *options)
    assert (code, said) == (2, "")
    assert err.startswith(f"error: {told}")
    assert err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_ray_says_what_to_install(
    tmp_path: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it is not: nothing of the core needs it."""
    there = entrypoints.entry_points

    def without_ray(*, group: str) -> Any:
        return [point for point in there(group=group) if point.name != "ray"]

    monkeypatch.setattr(entrypoints, "entry_points", without_ray)
    for options in (("--ray", "auto"), ("--executor", "ray:auto")):
        code, _, err = gan("leaderboard", board(tmp_path), "--out", tmp_path / "o", *options)
        assert code == 2
        assert err == (
            "error: no executor 'ray' is installed. It comes with the package gancore-ray: pip "
            "install it.\n"
        )
        assert not (tmp_path / "o").exists()


def test_the_core_names_ray_in_one_option_only() -> None:
    core = Path(entrypoints.__file__).parent
    importing = [
        path.relative_to(core).as_posix()
        for path in core.rglob("*.py")
        if "import ray" in (text := path.read_text("utf-8")) or "from ray" in text
    ]
    assert importing == []


def test_the_place_reaches_the_executor(stranger: None) -> None:
    made = chosen("inline", replace(TERMS, place="a:1", gpus=0.5, threads=3))
    assert (made.terms.place, made.terms.gpus, made.terms.threads) == ("a:1", 0.5, 3)
    assert made.device == made.where == "cpu"


def test_an_executor_that_misses_runs_is_told_of(
    tmp_path: Path, broken: Callable[..., Any], gan: Gan
) -> None:
    """It has returned early, and nobody has stopped it."""
    with broken("jobs[0].prepare()\njobs[0].begin()\njobs[1].fail('so')"):
        options = ("--out", tmp_path / "out", "--executor", "inline", "--no-cost")
        code, _, err = gan("leaderboard", board(tmp_path), *options)
    assert code == 2
    assert err.startswith("error: the executor Inline has ended without 3 of 4 runs: ")


def test_a_run_that_is_only_said_to_be_done_is_missed(
    tmp_path: Path, broken: Callable[..., Any]
) -> None:
    job = Job("a", 0, parsed(BASE).table(), tmp_path / "runs" / "a")
    with (
        broken("for job in jobs: job.state = 'done'"),
        pytest.raises(PluginError, match="has ended without 1 of 1 runs"),
    ):
        make_runs(chosen("inline", TERMS), [job], lambda jobs: None)


def test_an_executor_s_own_error_is_told_with_its_name(
    tmp_path: Path, broken: Callable[..., Any]
) -> None:
    job = Job("a", 0, parsed(BASE).table(), tmp_path / "runs" / "a")
    with broken("raise KeyError('x')"), pytest.raises(KeyError) as raised:
        make_runs(chosen("inline", TERMS), [job], lambda jobs: None)
    assert raised.value.__notes__ == ["raised in the executor Inline"]
    assert job.state == "queued"
    with broken("raise SystemExit(0)"), pytest.raises(ContractError, match="raised SystemExit"):
        make_runs(chosen("inline", TERMS), [job], lambda jobs: None)
    with broken("raise RunError('x')".replace("Run", "__import__('gancore').errors.Run")):
        made = chosen("inline", TERMS)
        with pytest.raises(RunError, match="x") as told:
            make_runs(made, [job], lambda jobs: None)
    assert not hasattr(told.value, "__notes__")


def test_what_is_no_executor_is_refused(broken: Callable[..., Any]) -> None:
    with broken("pass", base="object"), pytest.raises(PluginError) as raised:
        chosen("inline", TERMS)
    told = "executor inline (stranger-inline 1.0): <class 'stranger_inline.Inline'> is no subclass"
    assert told in str(raised.value)
    with pytest.raises(MissingError, match="no executor 'inline' is installed"):
        chosen("inline", TERMS)


# local processes


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job("a", 0, parsed(BASE).table(), tmp_path / "runs" / "a")


def children(monkeypatch: pytest.MonkeyPatch, script: str) -> list[subprocess.Popen[bytes]]:
    """Let every run be this shell script instead, in its folder; return their processes."""
    made: list[subprocess.Popen[bytes]] = []

    def start(folder: Path, **_: object) -> subprocess.Popen[bytes]:
        made.append(subprocess.Popen(["sh", "-c", script], cwd=folder))
        return made[-1]

    monkeypatch.setattr(sweep, "start", start)
    monkeypatch.setattr(sweep, "POLL", 0.01)
    return made


@pytest.fixture
def interrupting(job: Job) -> Iterator[Callable[[Sequence[Job]], None]]:
    """A display that sends a SIGINT once the run is ready, and another one a second later."""
    sent: list[float] = []

    def again(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def show(jobs: Sequence[Job]) -> None:
        if (job.path / "ready").exists() and not sent:
            sent.append(time.monotonic())
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGALRM, again)
    yield show
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


def test_a_stopped_run_saves(job: Job, interrupting: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGTERM reaches it, and it is waited for."""
    trap = "trap 'sleep 0.3; echo saved > saved; exit 0' TERM; touch ready"
    made = children(monkeypatch, f"{trap}; while :; do sleep 0.05; done")
    with pytest.raises(KeyboardInterrupt):
        make_runs(Local(TERMS), [job], interrupting)
    assert (job.path / "saved").read_text() == "saved\n"
    assert [process.returncode for process in made] == [0]
    assert job.state == "queued"


def test_a_deaf_run_is_killed_when_asked_twice(
    job: Job, interrupting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = children(monkeypatch, "trap '' TERM; touch ready; while :; do sleep 0.05; done")
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        make_runs(Local(TERMS), [job], interrupting)
    assert [process.returncode for process in made] == [-signal.SIGKILL]
    assert time.monotonic() - began >= 1.0  # not at the first time


def test_as_many_go_on_as_jobs_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = children(monkeypatch, "sleep 0.2")
    monkeypatch.setattr(Job, "is_scored", lambda job: bool(made))
    for parallel, most in ((None, 1), (2, 2), (9, 3)):
        jobs = [Job("a", seed, {}, tmp_path / "runs" / f"a-{seed}") for seed in range(3)]
        monkeypatch.setattr(Job, "prepare", lambda job: None)
        at_once = []

        def show(jobs: Sequence[Job], at_once: list[int] = at_once) -> None:
            at_once.append([job.state for job in jobs].count("running"))

        made.clear()
        make_runs(Local(replace(TERMS, parallel=parallel)), jobs, show)
        assert max(at_once) == most
        assert [job.state for job in jobs] == ["done"] * 3
        assert all(0.1 < job.seconds < 20 for job in jobs)


def test_a_folder_named_log_txt_fails_its_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [
        Job("a", seed, parsed(BASE).table(), tmp_path / "runs" / f"a-{seed}") for seed in (0, 1)
    ]
    (jobs[0].path / "log.txt").mkdir(parents=True)
    monkeypatch.setattr(
        "gancore.leaderboard.job.command", lambda *_: [sys.executable, "-c", "print('error: me')"]
    )
    make_runs(Local(TERMS), jobs, lambda jobs: None)
    assert [job.state for job in jobs] == ["failed", "failed"]
    assert f"{jobs[0].path}/log.txt can't be read or written: Is a directory" in jobs[0].error
    assert jobs[1].error == "me"


def test_a_link_that_leads_out_fails_its_run_alone(
    job: Job, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    job.path.parent.mkdir()
    job.path.symlink_to(tmp_path_factory.mktemp("elsewhere"))
    make_runs(Local(TERMS), [job], lambda jobs: None)
    assert job.state == "failed"
    assert "is a link that leads out of" in job.error


def test_a_process_that_was_killed_says_by_what(job: Job) -> None:
    job.path.mkdir(parents=True)
    job.finish(-signal.SIGKILL, 2.0)
    assert (job.state, job.error, job.seconds) == ("failed", "killed by SIGKILL", 2.0)
    (job.path / "log.txt").write_text("error: first\nmore\nerror: last\nand more\n")
    job.finish(1, 2.0)
    assert job.error == "last"
    (job.path / "log.txt").write_text("no\nprefix\n")
    job.finish(0, 2.0)  # well, but without scores
    assert job.error == "prefix"


def test_a_run_that_ended_badly_is_not_done(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """Though there are scores: it may have failed at what comes after them."""
    monkeypatch.setattr(Job, "is_scored", lambda job: True)
    job.finish(1, 2.0)
    assert (job.state, job.error) == ("failed", "exit code 1")
    job.finish(0, 2.0)
    assert job.state == "done"


def test_a_run_without_its_environment_is_made_again(
    tmp_path: Path, stranger: None, gan: Gan
) -> None:
    """So that the board can say what its scores are of."""
    only_none = BOARD.partition('[[entry]]\nname = "boom"')[0].replace("[0, 1]", "[0]")
    options = ("--out", tmp_path / "out", "--executor", "inline", "--device", "cpu", "--no-cost")
    code, said, err = gan("leaderboard", board(tmp_path, only_none), *options)
    assert code == 0, said + err
    (environment,) = tmp_path.glob("out/runs/*/environment.json")
    environment.unlink()
    code, said, err = gan("leaderboard", tmp_path / "board.toml", *options)
    assert code == 0, err
    assert "done before" not in said
    assert environment.is_file()
    code, said, _ = gan("leaderboard", tmp_path / "board.toml", *options)
    assert "none seed 0: w2 " in said
    assert ", done before |" in said


def test_an_executor_is_not_asked_to_make_nothing(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Strict(Executor):
        def make(self, jobs: Sequence[Job], watch: Watch) -> None:
            pytest.fail("there is nothing to make")

    monkeypatch.setattr(Job, "is_scored", lambda job: True)
    shown: list[str] = []
    make_runs(Strict(TERMS), [job], lambda jobs: shown.append(jobs[0].state))
    assert shown == ["done"]


def test_plugin_files_go_on_to_a_run_s_process(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = (Path("/a b/mine.py"), Path("/c/yours.py"))
    assert not [word for word in command(job.path, "cpu") if "plugin-file" in word]
    monkeypatch.setattr(entrypoints, "files", lambda: paths)
    assert command(job.path, "cpu")[-2:] == [
        "--plugin-file=/a b/mine.py",
        "--plugin-file=/c/yours.py",
    ]
    assert shell_line(job, threads=1, device="cpu").endswith(
        " '--plugin-file=/a b/mine.py' --plugin-file=/c/yours.py"
    )


def test_an_executor_s_device_and_default_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(Executor):
        def make(self, jobs: Sequence[Job], watch: Watch) -> None: ...

    assert Elsewhere(TERMS, "cuda").device == "cuda"  # which this machine need not have
    with pytest.raises(InputError, match="no CUDA|CUDA"):
        Elsewhere(replace(TERMS, device="cuda:99"))
    closed: list[str] = []
    with Elsewhere(TERMS) as made:
        made.taken.callback(closed.append, "closed")
        assert closed == []
    assert closed == ["closed"]


def test_a_run_is_on_its_own_whatever_launched_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "MASTER_PORT", "GROUP_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    monkeypatch.setenv("KEPT", "yes")
    given = surroundings(3)
    assert (given["OMP_NUM_THREADS"], given["MKL_NUM_THREADS"]) == ("3", "3")
    assert given["KEPT"] == "yes"
    assert not [name for name in given if "RANK" in name or "TORCHELASTIC" in name]
    assert "WORLD_SIZE" not in given
    assert "MASTER_PORT" not in given


# what a board shows


def shown(jobs: Sequence[Job], *states: str, metric: str | None = None) -> str:
    """Return the lines of a display that is shown these jobs, after each change of states."""
    text = f'metric = "{metric}"\n' if metric else ""
    table = tomllib.loads(f"{text}{BOARD}")
    file = io.StringIO()
    with BoardDisplay(Board.model_validate_json(json.dumps(table)), file) as display:
        for words in states:
            for job, word in zip(jobs, words.split(), strict=True):
                job.state = word  # type: ignore[assignment]
            display.show(jobs)
    return file.getvalue()


def scored(job: Job, seconds: float, **scores: float) -> Job:
    """Give a job what is read of a run that is done."""
    saved = SimpleNamespace(scores=SimpleNamespace(scores=scores), records=())
    job.saved, job.seconds = saved, seconds  # type: ignore[assignment]
    return job


@pytest.fixture
def four(tmp_path: Path) -> list[Job]:
    table = parsed(BASE).table()
    return [
        Job(entry, seed, table, tmp_path / "runs" / f"{entry}-{seed}")
        for seed in (0, 1)
        for entry in ("none", "boom")
    ]


def test_the_time_left_is_by_what_runs_took(four: list[Job]) -> None:
    """none takes 60 s and boom 100 s, so 160 s are left, or half where two go on at a time."""
    scored(four[0], 60.0, w2=1.25)
    scored(four[1], 100.0, w2=9.0)
    lines = shown(four, "done done queued queued").splitlines()
    assert lines == [
        "none seed 0: w2 1.25, done before | 2/4 runs, 2:40 left",
        "boom seed 0: w2 9, done before | 2/4 runs, 2:40 left",
    ]
    lines = shown(four, "running running queued queued", "done running queued queued").splitlines()
    assert lines[:2] == [
        "none seed 0: starts at step 0 of 3",
        "boom seed 0: starts at step 0 of 3",
    ]
    assert lines[2].startswith("none seed 0: w2 1.25 in 1:00 | 1/4 runs, ")
    # boom has taken no time that is known: as long as none; the running one began at time 0
    assert lines[2].endswith(" 1:00 left")


def test_a_failed_run_is_not_waited_for(four: list[Job]) -> None:
    scored(four[0], 60.0, w2=1.25)
    four[1].error = "so"
    lines = shown(four, "done failed queued queued").splitlines()
    assert lines[1] == "boom seed 0: failed: so | 2/4 runs, 2:00 left"


def test_the_score_that_ranks_is_shown(four: list[Job]) -> None:
    scored(four[0], 1.0, w2=1.25, modes=8.0)
    assert " modes 8, done" in shown(four[:1], "done", metric="modes")
    assert " w2 1.25, done" in shown(four[:1], "done")
    scored(four[0], 1.0)
    assert "none seed 0: , done before" in shown(four[:1], "done", metric="modes")
