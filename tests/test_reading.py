"""Files that are none: FIFOs, sockets, devices, folders; they are refused, and hang nothing."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import socket
import stat
import subprocess
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import ESCAPE, TOY, Gan, is_clear, parsed, records_of

from gancore.data.cache import Cache
from gancore.data.cifar import ARCHIVE, FOLDER, cifar10
from gancore.data.mnist import mnist
from gancore.errors import DataError, InputError, RecipeError, ScoreError, of_file
from gancore.files import reading
from gancore.leaderboard.board import Board
from gancore.leaderboard.job import LOG, Job
from gancore.leaderboard.result import Result
from gancore.recipe import Recipe
from gancore.report import curves
from gancore.report.filmstrip import read_grid
from gancore.scoring.extractors import extractor
from gancore.text import quoted
from gancore.training import Run
from gancore.training import build_trainer as build


@pytest.fixture(autouse=True)
def no_waiting() -> Iterator[None]:
    """End a test that hangs, as reading a FIFO does."""

    def hangs(*args: object) -> None:
        raise AssertionError("it waits for ever")

    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(60)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        here = Path.cwd()
        os.chdir(path.parent)  # its name may have a hundred characters
        try:
            one.bind(path.name)
        finally:
            os.chdir(here)


ODD: dict[str, tuple[Callable[[Path], None], str]] = {
    "FIFO": (os.mkfifo, "it is a FIFO, and no regular file"),
    "socket": (a_socket, "it is a socket, and no regular file"),
    "zero": (lambda path: path.symlink_to("/dev/zero"), "it is a device, and no regular file"),
    "random": (lambda path: path.symlink_to("/dev/urandom"), "it is a device, and no regular file"),
    "tty": (lambda path: path.symlink_to("/dev/ptmx"), "it is a device, and no regular file"),
    "folder": (Path.mkdir, "Is a directory"),
    "loop": (lambda path: path.symlink_to(path), "Too many levels of symbolic links"),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_regular_file_is_not_even_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    make, said = ODD[kind]
    make(tmp_path / "x")
    with monkeypatch.context() as patch:
        patch.setattr(os, "open", lambda *args: pytest.fail("opened"))
        with pytest.raises(OSError, match=said):
            reading.opened(tmp_path / "x")
        for call in (
            lambda path: reading.read_text(path, 10),
            reading.read_toml,
            Result.read,
            lambda path: list(reading.read_lines(path, 10)),
            Board.load,
        ):
            with pytest.raises(InputError) as caught:
                call(tmp_path / "x")
            remedy = ". Remove the link that leads to itself" if kind == "loop" else ""
            assert str(caught.value) == f"{tmp_path / 'x'}: can't be read: {said}{remedy}"
    for odd in (tmp_path / "x", tmp_path / "link"):
        if odd.name == "link":
            odd.symlink_to(tmp_path / "x")
        with pytest.raises(ScoreError, match=said):
            extractor("digits", str(odd))
        with pytest.raises(DataError, match=said):
            read_grid(odd)


def test_what_becomes_something_else_in_between_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x"
    path.write_text("x")
    was, really = os.stat(path), os.stat
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "fifo").replace(path)
    monkeypatch.setattr(os, "stat", lambda at, **how: was if at == path else really(at, **how))
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match="it is a FIFO"):
        reading.opened(path)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    changes = {"train.steps": 2, "score.metrics": ["w2"], "score.every": 1}
    build(parsed(TOY, **changes), device="cpu").run(folder)
    return folder


STEP = "checkpoints/step-000002"


@pytest.mark.parametrize(
    ("name", "command"),
    [
        *(("recipe.toml", [each]) for each in ("report", "score", "sample")),
        ("metrics.jsonl", ["report"]),
        *((each, ["read"]) for each in ("scores.json", "environment.json")),
        ("scores.json", ["score"]),
        ("checkpoints/best.json", ["sample", "--best"]),
        *((f"{STEP}/{each}.json", ["sample"]) for each in ("manifest", "state")),
        (f"{STEP}/generator.safetensors", ["score"]),
        ("checkpoints", ["sample"]),
        *((each, ["resume"]) for each in ("expected.json", "metrics.jsonl", "checkpoints")),
        (f"{STEP}/optimizers.safetensors", ["resume"]),
    ],
)
def test_a_fifo_for_a_file_of_a_run_is_one_line_and_exit_2(
    trained: Path, gan: Gan, tmp_path: Path, name: str, command: list[str]
) -> None:
    folder = Path(shutil.copytree(trained, tmp_path / "run"))
    shutil.rmtree(folder / "checkpoints" / "step-000001")
    odd = folder / name
    shutil.copy(folder / "recipe.toml", tmp_path / "recipe.toml")
    shutil.rmtree(odd) if odd.is_dir() else odd.unlink(missing_ok=True)
    os.mkfifo(odd)
    if command == ["read"]:
        with pytest.raises(InputError, match=rf"{name}: can't be read: it is a FIFO"):
            getattr(Run(folder), f"read_{odd.stem}")()
        return
    if command == ["resume"]:
        given = ["run", tmp_path / "recipe.toml", "--resume", "--out", folder]
    else:
        out = ["--out", tmp_path / "x.npz"] if "sample" in command else []
        given = [command[0], folder, *command[1:], *out]
    code, _, err = gan(*given, "--device", "cpu")
    assert code == 2, err
    assert is_clear(err, odd)
    assert "Not a directory" in err if name == "checkpoints" else "it is a FIFO" in err
    assert stat.S_ISFIFO(odd.stat().st_mode)


def test_fifos_elsewhere(tmp_path: Path, gan: Gan) -> None:
    """Leaderboards, recipes, boards and theirs, logs, data sets, what is cached."""
    fifo, good = tmp_path / "x.toml", tmp_path / "good.toml"
    os.mkfifo(fifo)
    good.write_text(TOY)
    for given in (
        ["compare", fifo, fifo],
        ["recipe", "check", good, fifo],
        ["run", fifo],
        ["run", fifo, "--dry-run"],
        ["bench", fifo],
        ["leaderboard", fifo],
    ):
        code, _, err = gan(*given)
        assert code == 2
        assert is_clear(err, fifo)
        assert "it is a FIFO, and no regular file" in err
    job = Job("none", 0, {}, tmp_path / "run")
    job.path.mkdir()
    os.mkfifo(job.path / LOG)
    job.finish(3, 0.0)
    assert job.error == "exit code 3"
    for name in (f"{FOLDER}/data_batch_1", "t/data_batch_1", f"c/{ARCHIVE}"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        os.mkfifo(tmp_path / name)
    for root in (tmp_path, tmp_path / "t", tmp_path / "c"):
        with pytest.raises(DataError, match="can't be read: it is a FIFO"):
            cifar10(path=str(root))
    for kind in ("images-idx3", "labels-idx1"):
        os.mkfifo(tmp_path / f"train-{kind}-ubyte.gz")
    with pytest.raises(DataError, match="gz: can't be read: it is a FIFO, and no regular file$"):
        mnist(path=str(tmp_path))
    cache = Cache("odd", "slot", "key")
    cache.file.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(cache.file)
    assert cache.load() is None


@contextmanager
def piped(text: str, at: int | None = None) -> Iterator[int]:
    """Yield a pipe with a text in it, and no more to come; as file descriptor `at`, if given."""
    end, other = os.pipe()
    kept = os.dup(at) if at is not None else -1
    try:
        os.write(other, text.encode())
        os.close(other)
        if at is not None:
            os.dup2(end, at)
        yield end if at is None else at
    finally:
        os.close(end)
        if at is not None:
            os.dup2(kept, at)
            os.close(kept)


def test_a_recipe_may_be_a_pipe_that_the_shell_made(tmp_path: Path) -> None:
    expected = parsed(TOY)
    for at in ("/dev/fd", "/proc/self/fd"):
        with piped(TOY) as end:
            assert Recipe.load(f"{at}/{end}") == expected
    with piped(TOY, at=0):
        assert Recipe.load("/dev/stdin") == expected
    file = tmp_path / "recipe.toml"
    file.write_text(TOY)
    with file.open() as opened:
        assert Recipe.load(f"/dev/fd/{opened.fileno()}") == expected
    with piped("#" * 60_000) as end, pytest.raises(RecipeError, match=f"/dev/fd/{end}: data: miss"):
        Recipe.load(f"/dev/fd/{end}")
    with pytest.raises(RecipeError, match=r"/dev/fd/98765: can't be read: Bad file descriptor"):
        Recipe.load("/dev/fd/98765")


def test_no_other_pipe_is_a_recipe_nor_one_that_a_board_names(tmp_path: Path) -> None:
    with piped(TOY) as end:
        (tmp_path / "link").symlink_to(f"/proc/self/fd/{end}")
        for path in (tmp_path / "link", f"/proc/{os.getpid()}/fd/{end}", f"/dev/fd/../fd/{end}"):
            with pytest.raises(RecipeError, match="it is a FIFO, and no regular file"):
                Recipe.load(path)
        board = tmp_path / "board.toml"
        board.write_text(
            f'recipe = "/dev/fd/{end}"\nbaseline = "a"\nseeds = [0]\n[[entry]]\nname = "a"\n'
        )
        with pytest.raises(RecipeError, match=f"/dev/fd/{end}: can't be read: it is a FIFO"):
            Board.load(board).recipes(tmp_path)
    with piped(board.read_text()) as end:
        assert Board.load(f"/dev/fd/{end}").baseline == "a"


def test_large_and_endless_files_are_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.touch()
    os.truncate(path, 1 << 42)  # holes
    for call in (
        lambda: reading.sha256(path, 16 << 30),
        lambda: extractor("digits", str(path)).weights_sha256(),
        lambda: reading.read_bytes(path, 100),
    ):
        with pytest.raises(InputError, match="x: over the limit of "):
            call()
    with pytest.raises(InputError, match="over the limit of 4 KiB"):
        list(reading.read_lines(path, 4096))
    path.write_bytes(b"12345678")
    assert reading.read_bytes(path, 8) == b"12345678"
    assert reading.sha256(path, 8).startswith("ef797c8118f02dfb")  # sha256sum's
    for call in (lambda: reading.read_bytes(path, 7), lambda: reading.sha256(path, 7)):
        with pytest.raises(InputError, match="over the limit of 0 KiB"):
            call()
    assert reading.read_end(path, 3) == b"678"
    assert reading.read_end(path, 9) == b"12345678"


def test_lines_end_or_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "LONGEST", 4)
    for text, lines in (
        (b"", []),
        (b"a", []),
        (b"\n\na\n", [b"", b"", b"a"]),
        (b"abc\nd\n", [b"abc", b"d"]),
        (b"abcd\nefghi\nj\nk", [b"abcd", b"efgh", b"j"]),
        (b"abcdefgh\n", [b"abcd"]),
    ):
        (tmp_path / "x").write_bytes(text)
        assert list(reading.read_lines(tmp_path / "x", 100)) == lines


REFUSED = {
    errno.EACCES: "Permission denied. Get the rights to it",
    errno.EIO: "Input/output error. Try again, or see to its disk",
    errno.ESTALE: "Stale file handle. Try again, or see to its disk",
    errno.EMFILE: "Too many open files. End other programs, or raise ulimit -n",
    errno.ENOMEM: "Cannot allocate memory",
}


@pytest.mark.parametrize("number", REFUSED)
def test_what_the_system_refuses_is_told_with_its_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    path = tmp_path / "x.png"
    path.write_text("{}")

    def fail(*args: object) -> int:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(InputError) as caught:
        reading.read_text(path, 10)
    assert str(caught.value) == f"{path}: can't be read: {REFUSED[number]}"
    with pytest.raises(DataError) as told:
        read_grid(path)
    assert str(told.value) == f"x.png: can't be read: {REFUSED[number]}"


def test_what_the_system_says_in_passing_is_no_traceback() -> None:
    for number in (errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.ENXIO):
        told = of_file(OSError(number, os.strerror(number), "x"), number, "y")
        assert str(told).startswith(f"x can't be read or written: {os.strerror(number)}. ")
    assert of_file(OSError(errno.EBADF, "", "x"), errno.EBADF, "y") is None


# paths


@pytest.mark.parametrize("data", ["folder", "cifar10", "mnist", "fashion_mnist"])
def test_a_user_that_is_none_is_told(tmp_path: Path, gan: Gan, data: str) -> None:
    path = tmp_path / "r.toml"
    section = f'name = "{data}"\npath = "~nobody-9/x"'
    path.write_text(TOY.replace('name = "gaussians8"\nsamples = 400', section))
    code, _, err = gan("run", path, "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2
    assert err.startswith("error: ~nobody-9/x: ~nobody-9 has no home here. Write the folder out")


def test_users_of_other_paths(tmp_path: Path, gan: Gan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "~nobody-9/cache")  # relative, which is ignored
    assert Cache("x", "y", "z").file.is_relative_to(tmp_path / ".cache")
    recipe = tmp_path / "r.toml"
    recipe.write_text(TOY)
    (tmp_path / "board.toml").write_text(
        'recipe = "~nobody-9/x"\nbaseline = "a"\nseeds = [0]\n[[entry]]\nname = "a"\n'
    )
    for given in (
        ["run", recipe, "--out", "~nobody-9/x"],
        ["run", recipe, "--set", "score.weights=~nobody-9/x"],
        ["leaderboard", tmp_path / "board.toml"],
        ["leaderboard", tmp_path / "board.toml", "--out", "~nobody-9/x"],
        ["sample", tmp_path, "--out", "~nobody-9/x"],
        ["plugins", "new", "mine", "--in", "~nobody-9/x"],
    ):
        code, _, err = gan(*given)
        assert code == 2
        assert "~nobody-9/x: ~nobody-9 has no home here" in err
        assert err.count("\n") == 1
    score = Recipe.load(recipe, {"score.weights": "~/w"}).score
    assert score.weights == str(tmp_path / "w")
    board = Board.load(tmp_path / "board.toml")
    board = board.model_copy(update={"recipe": "~/r.toml"})
    assert board.recipes(Path("/nowhere"))["a"] == Recipe.load(recipe)
    assert gan("plugins", "new", "mine", "--in", "~")[0] == 0
    assert (tmp_path / "gancore-mine").is_dir()


def test_no_command_prints_what_moves_the_cursor(
    trained: Path, gan: Gan, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Paths and names in lines of success too, and what a shell is to run still names them."""
    odd = tmp_path / f"a {ESCAPE}\u202e'%d\\"
    folder = Path(shutil.copytree(trained, odd / "run"))
    recipe = odd / "r.toml"
    recipe.write_text(TOY)
    board = odd / "board.toml"
    board.write_text(
        'recipe = "r.toml"\nset = ["score.metrics=[\'w2\']"]\nbaseline = "a"\nseeds = [0]\n'
        '[[entry]]\nname = "a"\n'
    )
    told = {}
    for given in (
        ["run", recipe, "--out", odd / "new", "--device", "cpu"],
        ["run", recipe, "--out", odd / "new", "--device", "cpu", "--resume"],
        ["sample", folder, "--out", odd / "x.npz", "--device", "cpu"],
        ["score", folder, "--device", "cpu"],
        ["recipe", "check", recipe],
        ["plugins", "new", "odd", "--in", odd],
        ["leaderboard", board, "--out", odd / "board", "--commands", "--device", "cpu"],
    ):
        code, out, err = gan(*given)
        assert code == 0, err
        assert all(line.isprintable() for line in (out + err).splitlines())
        told[given[0]] = out
    assert "\\x1b]0;owned\\x07\\x1b[2J\\u202e" in told["sample"]
    line = told["leaderboard"].splitlines()[-1]
    (path,) = (odd / "board" / "runs").glob("*/recipe.toml")
    assert shell(f"printf '%s\\n' {line.split(' run ')[1]}").startswith(os.fsencode(path))
    code, _, err = gan("run", recipe, f"--{ESCAPE}")
    assert code == 2
    assert all(each.isprintable() for each in err.splitlines())


def shell(command: str) -> bytes:
    return subprocess.run(["sh", "-c", command], capture_output=True, check=True).stdout


def test_words_for_a_shell() -> None:
    for word in ("plain", "a b", "it's", ESCAPE, "\u202e'%s\\n\"$x`", "\udcff%", "-\t", "\n-n"):
        assert quoted(word).isprintable()
        assert shell(f"printf %s {quoted(word)}") == os.fsencode(word)


# records


def test_records_are_read_one_at_a_time(tmp_path: Path) -> None:
    """2 MB of them, 2 KB each; what is drawn of one takes 16 bytes a key."""
    run, count = Run(tmp_path), 1000
    end = '"notes": ["' + '", "'.join(["x" * 900] * 2) + '"]'
    with run.metrics_path.open("w") as file:
        for step in range(1, count + 1):
            file.write(f'{{"step": {step}, "seconds": 0.5, "d_real": {step / 2}, {end}}}\n')
        file.write('{"step": 1')
    tracemalloc.start()
    try:
        columns = curves._columns(record.values for record in run.read_records())
        run.cut_records(count - 1, pytest.fail)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20
    last = run.last_record()
    assert last is not None
    assert last.step == count - 1
    assert len(records_of(run)) == count - 1
    assert columns.keys() == {"step", "seconds", "d_real"}
    steps, values = columns["d_real"]
    assert list(steps) == list(range(1, count + 1))
    assert list(values) == [step / 2 for step in range(1, count + 1)]


@pytest.mark.parametrize(
    ("text", "step"),
    [
        ("", None),
        ('{"step": 1', None),
        ('{"step": 1, "seconds": 1}\n', 1),
        ('broken\n{"step": 2, "seconds": 1}\n{"step": 3', 2),
        ('\ufeff{"step": 4, "seconds": 1}\n', 4),
    ],
)
def test_the_last_record(tmp_path: Path, text: str, step: int | None) -> None:
    run = Run(tmp_path)
    assert run.last_record() is None
    run.metrics_path.write_text(text)
    last = run.last_record()
    assert (last and last.step) == step
    run.metrics_path.write_text(f"{text}\nbroken\n")
    with pytest.raises(InputError, match="line last: expected finite numbers"):
        run.last_record()


def test_broken_records_are_counted_and_the_first_is_told(tmp_path: Path) -> None:
    run = Run(tmp_path)
    good = '{"step": 1, "seconds": 1}\n'
    run.metrics_path.write_text(f"x\n{good}y\n" + "z" * (reading.LONGEST + 9) + f"\n{good}")
    told: list[str] = []
    run.cut_records(1, told.append)
    (line,) = told
    assert "line 1: expected finite" in line
    assert line.endswith(", and 2 more")
    assert run.metrics_path.read_text() == good * 2
