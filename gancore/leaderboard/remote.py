"""What a node of a cluster does: one run of a board, in the board's folder or in one of its own."""

from __future__ import annotations

import os
import re
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from gancore.errors import GancoreError, InputError, RunError
from gancore.files.reading import read_bytes, read_text
from gancore.files.storage import LOCK, told_when_full, wait_until_free
from gancore.files.writing import replacing_folder, write_bytes
from gancore.leaderboard.job import LOCKED, LOG, POLL, start
from gancore.leaderboard.plan import versions
from gancore.provenance.identity import MadeOf
from gancore.recipe import Recipe
from gancore.text import shown
from gancore.training import Run
from gancore.training.checkpoint import LARGEST_TENSORS


@dataclass(frozen=True)
class Order:
    """What a node has to know to make a run.

    folder  of the run, as the board's machine calls it
    token   a file in the folder beside, and what is in it where that folder is the board's
    about   the data, code and versions that the scores are to be of
    """

    recipe: dict[str, Any]
    folder: Path
    token: tuple[str, str]
    about: MadeOf
    threads: int
    device: str


@dataclass(frozen=True)
class Outcome:
    """What came of it.

    error  why the run was not even begun
    files  the run's folder, unless it is the board's
    """

    code: int = 0
    seconds: float = 0.0
    error: str = ""
    files: dict[str, bytes] | None = field(default=None, repr=False)


def make_run(order: Order) -> Outcome:
    """Make a run, or go on with it; a KeyboardInterrupt lets it save, and is raised then."""
    try:
        _refuse_other_versions(order)
        if _is_shared(order):
            code, seconds = _train(order.folder, order)
            return Outcome(code, seconds)
        with tempfile.TemporaryDirectory(prefix="gancore-") as name:
            folder = Path(name)
            Run(folder).write_recipe(order.recipe)
            Run(folder).write_json(Run(folder).expected_path, order.about.table())
            code, seconds = _train(folder, order)
            return Outcome(code, seconds, files=pack(folder))
    except GancoreError as error:
        return Outcome(error=str(error))


def _refuse_other_versions(order: Order) -> None:
    """Refuse to make scores that would be filed under versions which they are not of.

    Whether the data are the board's is seen by the run itself, which loads them.
    """
    mine = versions(Recipe.parse(order.recipe))
    here, there = _flat(mine.table()), _flat(order.about.table())
    unlike = [
        f"{name} {here.get(name, 'none')} (the board's: {there.get(name, 'none')})"
        for name in sorted({*here, *there})
        if here.get(name) != there.get(name)
    ]
    if unlike:
        raise RunError(
            f"{socket.gethostname()} has {', '.join(unlike)}: install the same on all nodes, "
            "and where the board is started"
        )


def _flat(about: Mapping[str, Any]) -> dict[str, str]:
    plugins = {f"plugin {name}": found for name, found in about["plugins"].items()}
    core = {"gancore's own code": about["core"]["code"]}
    return {
        **about["versions"],
        **about["components"],
        **plugins,
        **core,
        "python": about["python"],
    }


def _is_shared(order: Order) -> bool:
    """Whether the folder here is the very one of the board; another may have the same name."""
    name, content = order.token
    try:
        found = read_text(order.folder.parent / name, 1 << 10)
    except InputError:
        return False
    return found == content and os.access(order.folder, os.W_OK)


def _train(folder: Path, order: Order) -> tuple[int, float]:
    """Return the exit code of the run's process, and the seconds it took."""
    wait_until_free(folder, LOCKED)
    began = time.monotonic()
    process = start(folder, threads=order.threads, device=order.device)
    try:
        while process.poll() is None:
            time.sleep(POLL)  # not wait(), which a cancelled task would not leave
    finally:
        process.terminate()  # it saves, and exits well
        process.wait()
    return process.returncode, time.monotonic() - began


def pack(folder: Path) -> dict[str, bytes]:
    """Return the files of a run's folder by their names in it."""
    return {
        path.relative_to(folder).as_posix(): read_bytes(path, LARGEST_TENSORS)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.is_symlink() and path.name != LOCK
    }


def unpack(files: Mapping[str, bytes], folder: Path) -> None:
    """Put what a node sent in the place of a run's folder, all of it or nothing.

    A folder with a later checkpoint stays, and takes what the run said only. Raises RunError for
    names that no folder has, and where they can't be written.
    """
    for name in files:
        path = PurePosixPath(name)
        leads_out = path.is_absolute() or ".." in path.parts or "\0" in name
        if leads_out or not path.parts or any(str(each) in files for each in path.parents):
            raise RunError(f"a node sent the file {shown(repr(name))}, which no run's folder holds")
    if not files:
        raise RunError(f"a node sent nothing of {folder}")
    there = [path.relative_to(folder).as_posix() for path in folder.glob("checkpoints/*/*")]
    if _last_checkpoint(files) < _last_checkpoint(there):
        write_bytes(folder / LOG, files.get(LOG, b""))
        return
    with told_when_full(folder), replacing_folder(folder) as coming:
        for name, content in files.items():
            write_bytes(coming / name, content)


def _last_checkpoint(names: Iterable[str]) -> int:
    """Return the step of the last checkpoint among a run's files; -1 if there is none."""
    found = (re.fullmatch(r"checkpoints/step-(\d{1,18})/.+", name, re.ASCII) for name in names)
    return max((int(each[1]) for each in found if each), default=-1)
