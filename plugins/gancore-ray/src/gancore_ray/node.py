"""What a node of the cluster does: it makes one run, in the board's folder or in one of its own."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from gancore import entrypoints
from gancore.errors import GancoreError, InputError, RunError, told_of_files
from gancore.files.reading import read_bytes, read_text
from gancore.files.storage import LOCK, told_when_full, wait_until_free
from gancore.files.writing import replacing_folder, write_bytes, write_text
from gancore.leaderboard.job import LOCKED, LOG, POLL, start
from gancore.leaderboard.plan import versions
from gancore.provenance.identity import MadeOf
from gancore.recipe import Recipe
from gancore.text import shown
from gancore.training import Run
from gancore.training.checkpoint import LARGEST_TENSORS


@dataclass(frozen=True)
class Token:
    """A file beside the run folders, and what is in it where they are the board's."""

    name: str
    content: str


@dataclass(frozen=True)
class Source:
    """A plugin file of the board's command: its name, and its text."""

    name: str
    text: str


@dataclass(frozen=True)
class Order:
    """What a node has to know to make a run.

    folder   of the run, as the board's machine calls it
    token    by which the node knows whether its folder of that name is the board's
    about    the data, code and versions that the board expects the scores to come from
    sources  the plugin files of the board's command
    """

    recipe: dict[str, Any]
    folder: Path
    token: Token
    about: MadeOf
    sources: tuple[Source, ...]
    threads: int
    device: str


@dataclass(frozen=True)
class Outcome:
    """How the run ended.

    error  why the run was not begun
    files  of the run's folder by their names in it, unless the folder is the board's
    """

    code: int = 0
    seconds: float = 0.0
    error: str = ""
    files: dict[str, bytes] | None = field(default=None, repr=False)


def make_run(order: Order) -> Outcome:
    """Make a run, or go on with it; a KeyboardInterrupt lets it save, and is raised then."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # as all that a script starts in the background: else no run could be stopped
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        add_sources(order.sources)
        _refuse_other_versions(order)
        if _is_shared(order):
            return Outcome(*_train(order.folder, order))
        with tempfile.TemporaryDirectory(prefix="gancore-") as name:
            folder = Path(name)
            Run(folder).write_recipe(order.recipe)
            Run(folder).write_json(Run(folder).expected_path, order.about.table())
            code, seconds = _train(folder, order)
            return Outcome(code, seconds, files=pack(folder))
    except GancoreError as error:
        return Outcome(error=str(error))


@functools.cache
def add_sources(sources: tuple[Source, ...]) -> None:
    """Let this process, and the runs that it starts, find the plugins in these files.

    A worker serves one board, which has the same files for all its runs.
    """
    folder = Path(tempfile.mkdtemp(prefix="gancore-plugins-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for source in sources:
        write_text(folder / source.name, source.text)
        entrypoints.add_file(folder / source.name)


def _refuse_other_versions(order: Order) -> None:
    """Raise RunError where this node has other versions or code than the board expects.

    The run itself compares the data, as it loads them.
    """
    here, there = _flat(versions(Recipe.parse(order.recipe))), _flat(order.about)
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


def _flat(about: MadeOf) -> dict[str, str]:
    """Return all that has to be alike on every node, by what a message calls it."""
    plugins = about.plugins or {}
    return {
        **(about.versions or {}),
        **(about.components or {}),
        **{f"plugin {name}": origin for name, origin in plugins.items()},
        **({"gancore's own code": about.core.code} if about.core else {}),
        **({"python": about.python} if about.python else {}),
    }


def _is_shared(order: Order) -> bool:
    """Whether the folder here is the very one of the board; another may have the same name."""
    try:
        content = read_text(order.folder.parent / order.token.name, 1 << 10)
    except InputError:
        return False
    return content == order.token.content and os.access(order.folder, os.W_OK)


def _train(folder: Path, order: Order) -> tuple[int, float]:
    """Return the exit code of the run's process, and the seconds it took."""
    wait_until_free(folder, LOCKED)
    began = time.monotonic()
    with told_of_files(folder):
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
        if leads_out or not path.parts or any(str(parent) in files for parent in path.parents):
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
    pattern = re.compile(r"checkpoints/step-(\d{1,18})/.+", re.ASCII)
    matches = filter(None, map(pattern.fullmatch, names))
    return max((int(match[1]) for match in matches), default=-1)
