"""The one writer: whole or not at all, over links, with the umask's rights; and none beside it."""

from __future__ import annotations

import ast
import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import gancore
from gancore.errors import InputError, told_of_files
from gancore.files import writing
from gancore.files.writing import (
    delete,
    growing,
    make_folder,
    replacing,
    replacing_folder,
    write_text,
)

CORE = Path(gancore.__file__).parent
PLUGINS = CORE.parent / "plugins"
SOURCES = {
    path.relative_to(CORE.parent).as_posix(): path
    for path in (*CORE.rglob("*.py"), *PLUGINS.glob("*/src/**/*.py"))
}


@pytest.fixture
def umask() -> Iterator[None]:
    """One that no library has of its own."""
    before = os.umask(0o026)
    yield
    os.umask(before)


def rights(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.usefixtures("umask")
def test_new_files_have_the_rights_that_the_umask_leaves(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "x")
    with replacing(tmp_path / "tensors") as file:
        save_file({"x": torch.ones(2)}, file.name)  # which makes one of 0600 of its own
    growing(tmp_path / "log").close()
    for name in ("text", "tensors", "log"):
        assert rights(tmp_path / name) == 0o640, name
    with replacing_folder(tmp_path / "folder"):
        pass
    assert rights(tmp_path / "folder") == 0o751
    assert load_file(tmp_path / "tensors")["x"].tolist() == [1, 1]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_fails_leaves_what_was_there_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    write_text(tmp_path / "file", "before")
    write_text(tmp_path / "folder" / "file", "before")
    with pytest.raises(type(error)), replacing(tmp_path / "file") as file:
        file.write(b"half")
        raise error
    with pytest.raises(type(error)), replacing_folder(tmp_path / "folder") as folder:
        write_text(folder / "file", "half")
        raise error
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]
    assert (tmp_path / "file").read_text() == "before"
    assert (tmp_path / "folder" / "file").read_text() == "before"


def test_a_file_is_on_the_disk_before_it_has_its_name_and_its_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, str | None]] = []
    path, fsync = tmp_path / "file", os.fsync

    def spied(handle: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        seen.append((is_folder, path.read_text() if path.exists() else None))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spied)
    write_text(path, "one")
    write_text(path, "two")
    assert seen == [(False, None), (True, "one"), (False, "one"), (True, "two")]
    with replacing(path, synced=False) as file:
        file.write(b"three")
    assert len(seen) == 4
    assert path.read_text() == "three"


def test_a_folder_has_its_name_on_the_disk_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    fsync = os.fsync

    def spied(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            seen.append(os.listdir(handle))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", spied)
    with replacing_folder(tmp_path / "folder"):
        pass
    assert seen == [["folder"]]


def test_two_who_write_at_the_end_of_a_file_lose_nothing(tmp_path: Path) -> None:
    with growing(tmp_path / "log") as one, growing(tmp_path / "log") as other:
        for file, text in ((one, b"a"), (other, b"b"), (one, b"c")):
            file.write(text)
            file.flush()
    assert (tmp_path / "log").read_bytes() == b"abc"


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EACCES, errno.EIO])
def test_a_folder_that_can_not_be_synced_is_written_to_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    fsync = os.fsync

    def failing(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    told = pytest.raises(OSError, match="Input/output")  # a disk that fails is not passed over
    with told if number == errno.EIO else contextlib.nullcontext():
        write_text(tmp_path / "file", "x")
    assert (tmp_path / "file").read_text() == "x"


def test_fresh_names_are_opened_without_following_and_only_if_they_are_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where they could be foretold."""
    (tmp_path / "mine").write_text("mine")
    monkeypatch.setattr(writing.secrets, "token_hex", lambda count: "0" * 2 * count)
    fresh = tmp_path / f".writing-{'0' * 16}"
    for target in ("mine", "nothing"):
        fresh.symlink_to(tmp_path / target)
        with pytest.raises(FileExistsError):
            write_text(tmp_path / "file", "x")
        assert not fresh.is_symlink()  # ours to be deleted, by its name
        fresh.symlink_to(tmp_path / target)
        with pytest.raises(FileExistsError), replacing_folder(tmp_path / "folder"):
            pass
    assert sorted(os.listdir(tmp_path)) == ["mine"]
    assert (tmp_path / "mine").read_text() == "mine"


def test_all_that_is_opened_to_be_written_is_opened_without_following(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: list[int] = []
    real = os.open

    def spied(path: str, given: int, *mode: int, **options: int) -> int:
        if given & (os.O_WRONLY | os.O_RDWR):
            flags.append(given)
        return real(path, given, *mode, **options)

    monkeypatch.setattr(os, "open", spied)
    write_text(tmp_path / "file", "x")
    growing(tmp_path / "log").close()
    growing(tmp_path / "log", anew=True).close()
    assert len(flags) == 4  # one syncs
    assert all(given & os.O_NOFOLLOW for given in flags)
    assert flags[0] & os.O_EXCL
    assert flags[0] & os.O_CREAT
    assert all(given & os.O_NONBLOCK for given in flags[2:])


def test_hard_links_are_replaced_as_symbolic_ones_are(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    for name in ("file", "log"):
        (tmp_path / name).hardlink_to(tmp_path / "mine")
    write_text(tmp_path / "file", "x")
    with growing(tmp_path / "log", anew=True) as log:
        log.write(b"x")
    assert (tmp_path / "mine").read_text() == "mine"
    assert (tmp_path / "log").read_text() == (tmp_path / "file").read_text() == "x"


def test_errors_name_the_file_and_not_the_fresh_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for name in ("file/below/x", "folder", "x" * 300):
        with pytest.raises(InputError) as caught, told_of_files():
            write_text(tmp_path / name, "x")
        assert str(tmp_path / name.partition("/")[0]) in str(caught.value)
        assert ".writing-" not in str(caught.value)
    write_text(tmp_path / ("x" * 255), "as long as a name may be")


def test_what_killed_processes_left_is_swept_an_hour_later(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "kept").write_text("mine")
    (tmp_path / "run").mkdir()
    old, new, link, other = (tmp_path / "run" / f".writing-{each * 16}" for each in "abc_")
    for path in (old, new, other):
        path.mkdir()
    link.symlink_to(mine)
    for path in (old, link, other):
        os.utime(path, (0, 0), follow_symlinks=False)
    write_text(tmp_path / "run" / "x", "x")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"x", new.name, other.name}
    assert (mine / "kept").read_text() == "mine"


def test_deleting_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kept").write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "mine")
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    for name in ("link", "folder", "nothing"):
        delete(tmp_path / name)
    assert os.listdir(tmp_path) == ["mine"]
    assert os.listdir(tmp_path / "mine") == ["kept"]


def test_folders_are_made_inside_only(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "real").mkdir()
    inside = tmp_path / "inside"
    inside.symlink_to(tmp_path / "real")
    make_folder(inside / "a" / "b", inside)
    (inside / "within").symlink_to("a")
    make_folder(inside / "within" / "c", inside)
    assert (tmp_path / "real" / "a" / "c").is_dir()
    for target in (tmp_path / "out", tmp_path / "nothing", Path("../out"), tmp_path / "real2"):
        (inside / "link").symlink_to(target)
        with pytest.raises(InputError, match=f"{inside / 'link'} is a link that leads out of"):
            make_folder(inside / "link" / "x", inside)
        (inside / "link").unlink()
    assert os.listdir(tmp_path / "out") == []
    assert not (tmp_path / "nothing").exists()


# the house: nothing else writes

LIBRARIES = {"save_file", "savefig", "save_image", "savez", "savez_compressed", "imsave", "save"}
"""What writes to the path or file that it is given."""

ELSEWHERE = {
    *("write_text", "write_bytes", "unlink", "touch", "symlink_to", "hardlink_to", "chmod"),
    *("rmtree", "copytree", "copy", "copy2", "copyfile", "move", "remove", "makedirs", "mkstemp"),
    *("NamedTemporaryFile", "mktemp", "truncate", "ftruncate", "tofile", "extractall", "fdopen"),
}
"""Methods and functions that write or delete."""

OPENERS = {"gancore/files/writing.py", "gancore/files/reading.py"}
"""The modules that open files by the system's own call."""

NO_PATHS = {"copy", "remove", "move"}
"""Of which lists, sets and tensors have namesakes: those of `shutil` and `os` count."""


def writes(source: str) -> list[str]:
    """Return the calls that write or delete by a path, but for those that a writer's file is given.

    That file is called `file`, and may do what it likes; os.devnull takes everything.
    """
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        text = ast.unparse(node)
        given = {ast.unparse(each) for each in node.args}
        match node.func:
            case ast.Name(id=name):
                owner = ""
            case ast.Attribute(attr=name, value=value):
                owner = ast.unparse(value)
            case _:
                continue
        if "os.devnull" in given or owner == "file":
            continue
        modes = [
            each.value
            for each in (*node.args, *(word.value for word in node.keywords))
            if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        opens = name == "open" and (owner == "os" or any(re.search("[wax+]", m) for m in modes))
        saves = name in LIBRARIES and not {"file", "file.name"} & given
        if name == "save":  # ours are methods of `cache` and `checkpoint`, whose writers are seen
            saves &= bool(owner) and owner not in ("cache", "checkpoint")
        replaces = name == "replace" and owner and (owner == "os" or len(node.args) == 1)
        replaces = replaces and not any(word.arg for word in node.keywords)
        is_elsewhere = name in ELSEWHERE and (
            owner in ("shutil", "os") if name in NO_PATHS else bool(owner) or name == "rmtree"
        )
        if opens or saves or replaces or is_elsewhere:
            found.append(text)
    return found


BAD = """
open(path, "w"); open(path, mode="ab"); path.open("x"); os.open(path, flags)
path.write_text("x"); path.write_bytes(b"x"); path.unlink(); shutil.rmtree(path)
a.replace(b); os.replace(a, b); figure.savefig(path, dpi=100); picture.save(path, "PNG")
save_file(tensors, path); np.savez(path, x); torch.save(x, path); tempfile.mkstemp()
"""
GOOD = """
open(path); path.open("rb"); open(os.devnull, "w"); text.replace("a", "b"); write_text(path, "x")
figure.savefig(file, dpi=100); save_file(tensors, file.name); cache.save(tensors); save(tensors)
parameter.replace(annotation=x); names.remove("a"); copy.copy(x); np.savez(file, x)
"""


def test_the_search_for_what_writes_finds_it() -> None:
    assert len(writes(BAD)) == BAD.count(";") + BAD.count("\n") - 1
    assert writes(GOOD) == []


@pytest.mark.parametrize(
    "name", sorted(SOURCES.keys() - {"gancore/files/writing.py", "gancore/files/reading.py"})
)
def test_nothing_but_the_writer_writes(name: str) -> None:
    assert writes(SOURCES[name].read_text(encoding="utf-8")) == []


POSIX = {"fcntl", "grp", "posix", "pty", "pwd", "resource", "syslog", "termios", "tty"}
"""What Windows does not have: at the top of a module it stops the import of gancore there."""


def at_import(source: str) -> str:
    """Return the code that runs when a module is imported: all but functions' bodies."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [ast.Pass()]
    return ast.unparse(tree)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_no_import_needs_what_windows_has_not(name: str) -> None:
    for node in ast.walk(ast.parse(at_import(SOURCES[name].read_text(encoding="utf-8")))):
        match node:
            case ast.Import(names=names):
                assert not POSIX & {each.name for each in names}
            case ast.ImportFrom(module=module):
                assert module not in POSIX
            case ast.Attribute(value=ast.Name(id="os" | "signal"), attr=attr):
                assert attr not in {"O_NOFOLLOW", "O_NONBLOCK", "SIGHUP", "SIGKILL", "SIGUSR1"}
