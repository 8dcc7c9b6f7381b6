"""Users' mistakes and the system's refusals: each is one line, and none a traceback."""

from __future__ import annotations

import os
import pty
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest
import torch
from helpers import TOY, Gan, records_of, scores_of
from helpers import trainer as small
from processes import FORK, LIMIT, Launched

import gancore
from gancore import hookimpl, plugin
from gancore.cli import main
from gancore.errors import InputError, RunError, of_file, told_of_files
from gancore.training import Run, build_trainer
from gancore.training.device import choose_device

BOARD = """
recipe = "toy.toml"
baseline = "gp"
seeds = [0]
[[entry]]
name = "gp"
"""


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipes") / "toy.toml"
    path.write_text(TOY.replace("metrics = []", 'metrics = ["w2"]'))
    (path.parent / "board.toml").write_text(BOARD)
    return path


@pytest.fixture(scope="module")
def done(toy: Path) -> Path:
    """A finished run; those in it change nothing of it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "gancore.training.session.plot_curves", lambda records, path, recipe: path.touch()
        )
        return gancore.run(toy, toy.parent / "run", device="cpu").path


def told(found: tuple[int, str, str], code: int = 2) -> str:
    """Return the one line of a command that failed so."""
    assert found[0] == code, found
    (line,) = found[2].splitlines()
    return line.removeprefix("error: ")


# Devices


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cuda:", "cuda:-1", "cpu:0"])
def test_what_is_no_device_is_refused(
    name: str, toy: Path, gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    line = told(gan("run", toy, "--device", name))
    assert line.startswith(f"--device {name!r}: expected auto, cpu, cuda or cuda:N")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["sample --out x.npz", "report", "score", "leaderboard", "leaderboard --ray auto",
                "bench"]
)  # fmt: skip
def test_so_it_is_by_every_command(command: str, gan: Gan) -> None:
    assert told(gan(*command.split(), "x", "--device=gpu")).startswith("--device 'gpu': expected")


def test_so_it_is_from_python(toy: Path) -> None:
    with pytest.raises(InputError, match="device 'gpu': expected auto, cpu, cuda or cuda:N"):
        build_trainer(gancore.Recipe.load(toy), device="gpu")


@pytest.mark.parametrize("number", [2, 256])
def test_a_device_beyond_the_last_is_refused(
    number: int, toy: Path, gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch itself takes cuda:256 for cuda:0."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    line = told(gan("run", toy, "--out", tmp_path / "run", f"--device=cuda:{number}"))
    assert line.startswith(f"device cuda:{number}: torch sees 2 CUDA devices here")


def test_a_device_that_gancore_was_not_tried_on_is_taken_with_a_warning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("mps"))
    with pytest.warns(UserWarning, match=r"^device mps: gancore was not tried here") as warned:
        assert choose_device("mps") == torch.device("mps")
    assert "\n" not in str(warned[0].message)
    with pytest.raises(InputError, match="device xpu: torch sees no xpu here"):
        choose_device("xpu")


def test_a_device_that_torch_knows_and_does_not_have_is_refused(
    toy: Path, gan: Gan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: None)
    line = told(gan("run", toy, "--out", tmp_path / "run", "--device=mps"))
    assert line == "device mps: torch sees no mps here. Use --device cpu"
    assert not (tmp_path / "run").exists()


def test_a_report_does_not_leave_out_what_a_missing_device_should_have_made(
    done: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "torch sees no CUDA device" in told(gan("report", done, "--device=cuda"))


# Files


LONG = "x" * 300


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder with a file, a link to nowhere and one to itself."""
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "away")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    return tmp_path


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("file/run", "Not a directory"),
        (LONG, "File name too long"),
        ("nowhere", "there is a file, or a link to nowhere, of this name"),
        ("loop/run", "Too many levels of symbolic links"),
        ("/sys/gancore", ""),  # root is not permitted to, others lack the rights
    ],
)
def test_where_nothing_can_be_written(
    place: str, reason: str, toy: Path, done: Path, gan: Gan, places: Path
) -> None:
    board, out = toy.parent / "board.toml", places / place
    for arguments in (
        ("run", toy, "--out", out),
        ("leaderboard", board, "--no-cost", "--out", out),
        ("sample", done, "--out", out / "of" / "it.npz"),
    ):
        line = told(gan(*arguments))
        assert line.startswith(f"{out}")
        assert f"can't be read or written: {reason}" in line
    assert (places / "file").read_text() == "mine"


def test_a_plugin_where_none_can_be_written(gan: Gan, places: Path) -> None:
    line = told(gan("plugins", "new", "mine", "--in", places / "file" / "of"))
    assert line.startswith(
        f"{places}/file/of/gancore-mine can't be read or written: Not a directory"
    )


def test_a_name_that_can_not_be_read(gan: Gan) -> None:
    assert "File name too long" in told(gan("score", LONG))


@pytest.mark.xdist_group("processes")
def test_processes_tell_it_once(toy: Path, places: Path) -> None:
    launched = Launched(places / "said", ["run", toy, "--out", places / "file" / "run"])
    assert launched.ended() == [2, 2]
    said = "".join(launched.said())
    assert said.count("Not a directory") == said.count("error:") == 1
    assert "told by process" in said


@contextmanager
def full_disk() -> Iterator[None]:
    """Let no file of this process get larger than 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    "command",
    [
        "report RUN",
        "score RUN",
        "sample RUN -n 999 --out OUT.npz",
        "sample RUN -n 999 --out OUT.png",
        "leaderboard BOARD --no-cost --out OUT",
        "plugins new mine --in OUT",
    ],
)
def test_a_full_disk_is_told_with_the_place(
    command: str, toy: Path, done: Path, gan: Gan, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    places = {"RUN": done, "BOARD": toy.parent / "board.toml", "OUT": out}
    before = {path: path.read_bytes() for path in done.iterdir() if path.suffix == ".json"}
    for name, path in places.items():
        command = command.replace(name, str(path))
    with full_disk():
        found = gan(*command.split())
    line = told(found, code=1)
    assert line.endswith("can't be written to: File too large. Make room, and try again")
    assert line.startswith((str(out), str(done)))
    assert before == {path: path.read_bytes() for path in before}
    assert not [path for path in tmp_path.iterdir() if path.suffix in (".npz", ".png")]
    assert not (out / "gancore-mine").exists()


def test_what_only_a_bug_causes_is_no_users_mistake() -> None:
    with pytest.raises(InterruptedError), told_of_files():
        raise InterruptedError(4, "Interrupted system call", "x")
    assert of_file(OSError(), None, "x") is None
    assert isinstance(of_file(OSError(), 28, "x"), RunError)
    assert isinstance(of_file(OSError(), 13, "x"), InputError)


def test_a_file_that_a_plugin_misses_is_told_with_the_plugin(tmp_path: Path) -> None:
    @plugin
    class Tabled:
        @hookimpl
        def post_step(self) -> None:
            (tmp_path / "table.csv").read_text()

    with pytest.raises(InputError, match=r"table\.csv can't be read") as caught:
        small(plugins=[Tabled()]).run(tmp_path / "run")
    (note,) = caught.value.__notes__
    assert "raised in hook post_step of plugin tabled" in note


# What is started beside others


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("WORLD_SIZE", "two", "below 1048576"),
        ("RANK", "first", "below 2"),
        ("RANK", "2", "below 2"),
        ("LOCAL_RANK", "-1", "below 2"),
        ("MASTER_PORT", "99999", "below 65536"),
    ],
)
def test_a_variable_of_torchruns_that_is_no_number(
    name: str, value: str, expected: str, toy: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for each, number in {**good, name: value}.items():
        monkeypatch.setenv(each, number)
    line = told(gan("run", toy, "--device=cpu"))
    assert line.startswith(
        f"the variable {name} is {value!r}: expected a whole number {expected}, "
    )


# Texts


def test_windows_mark_of_utf8_is_no_fault(toy: Path, gan: Gan, tmp_path: Path) -> None:
    for path in (toy, toy.parent / "board.toml"):
        (tmp_path / path.name).write_text(path.read_text(), encoding="utf-8-sig")
    code, _, err = gan("recipe", "check", tmp_path / "toy.toml")
    assert (code, err) == (0, "")
    board = [tmp_path / "board.toml", "--out", tmp_path / "out", "--no-cost", "--commands"]
    code, out, err = gan("leaderboard", *board)
    assert (code, err) == (0, "")
    assert "toy" not in out
    assert "gancore run" in out


# Who reads what is printed


def closed_pipe() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def closed_terminal() -> int:
    terminal, end = pty.openpty()
    os.close(terminal)
    return end


def printed_to(stream: int | IO[Any], *arguments: object) -> tuple[int, str, str]:
    """Run `gan` with its output going there, in a process of its own."""
    command = [sys.executable, "-m", "gancore", *map(str, arguments)]
    found = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, timeout=120)
    return found.returncode, "", found.stderr


@pytest.mark.parametrize("nobody", [closed_pipe, closed_terminal])
def test_nobody_has_to_read_on(nobody: Callable[[], int]) -> None:
    end = nobody()
    assert printed_to(end, "plugins") == (0, "", "")
    os.close(end)


@pytest.mark.parametrize("nobody", [closed_pipe, closed_terminal, None])
def test_a_training_goes_on_when_nobody_reads_on(
    nobody: Callable[[], int] | None, toy: Path, tmp_path: Path
) -> None:
    """In a fork, which has imported all; None: its output is closed from the start."""

    def train() -> None:
        if nobody:
            os.dup2(nobody(), 1)
        sys.stdout = os.fdopen(1, "w") if nobody else None  # type: ignore[assignment]
        sys.argv = ["gan", "run", str(toy), f"--out={tmp_path / 'run'}", "--device=cpu"]
        main()

    process = FORK.Process(target=train)
    process.start()
    process.join(LIMIT)
    assert process.exitcode == 0
    run = Run.open(tmp_path / "run")
    assert scores_of(run) is not None
    assert records_of(run)[-1]["step"] == 3


def test_output_without_room_is_no_success() -> None:
    with open("/dev/full", "w") as full:
        line = told(printed_to(full, "plugins"), code=1)
    assert line.startswith("standard output can't be written to: No space left on device")


def test_errors_that_can_not_be_told_keep_their_code() -> None:
    command = [sys.executable, "-m", "gancore", "rnu"]
    for end in (closed_pipe(), os.open("/dev/full", os.O_WRONLY)):
        assert subprocess.run(command, stderr=end, timeout=120).returncode == 2
        os.close(end)
