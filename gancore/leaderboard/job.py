"""One run of a board: its folder, the process that makes it, and what came of that."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from gancore.cost import Cost
from gancore.distributed.launching import die_with_parent
from gancore.errors import InputError
from gancore.files.reading import LONGEST, read_end
from gancore.files.writing import growing, make_folder
from gancore.provenance.identity import MadeOf
from gancore.recipe import Recipe, Score
from gancore.scoring.protocol import answers
from gancore.text import quoted, shown
from gancore.training import Run
from gancore.training.record import Record
from gancore.training.run_folder import SavedRun

POLL = 0.2
"""Seconds between looks at the runs that go on."""

LOCKED = 120.0
"""Seconds to wait for the folder while the same run, of a board or node that has ended, saves."""

LOG = "log.txt"
"""In a run's folder: what its process said."""

LAUNCHERS = {
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK"),
    *("MASTER_ADDR", "MASTER_PORT"),
}
"""Variables by which torchrun tells a process of the others it belongs to."""


@dataclass(eq=False)
class Job:
    """One run of a board: an entry with a seed.

    Its folder carries a hash of all that decides its scores, so that a finished one is found
    again, an interrupted one goes on, and one under another recipe, of other data or other code
    never is mistaken.
    """

    entry: str
    seed: int
    recipe: dict[str, Any]
    path: Path
    state: str = "waiting"  # then: running, done, failed
    error: str = ""
    seconds: float = 0.0
    started: float = field(default=0.0, repr=False)
    about: MadeOf = field(default_factory=MadeOf, repr=False)  # data and code, in the hash
    saved: SavedRun | None = field(default=None, repr=False)  # as read when the run was done

    @property
    def run(self) -> Run:
        """The run folder."""
        return Run(self.path)

    @property
    def steps(self) -> int:
        """Generator updates to make."""
        steps: int = self.recipe["train"]["steps"]
        return steps

    def step(self) -> int:
        """Return how many generator updates are recorded."""
        if self.state == "done":
            return self.steps
        last = self._last_record()
        return last.step if last else 0

    def is_scored(self) -> bool:
        """Whether the run has all scores that its recipe asks for; `saved` is what was read of it.

        Not where its environment or a record can't be read: who goes on with the run writes the one
        anew, and leaves out the other. Records may be missing, as no score depends on them.
        """
        self.saved = None
        try:
            if answers(self.run.read_scores(), Score.of(self.recipe["score"]), self.steps):
                saved = self.run.read()
                self.saved = saved if saved.environment else None
        except InputError:
            pass  # who goes on with the run tells it
        return self.saved is not None

    def has_whole_records(self) -> bool:
        """Whether the records reach to the end of the run."""
        records = self.saved.records if self.saved else ()
        return bool(records) and records[-1].step == self.steps

    def whole_records(self) -> tuple[Record, ...]:
        """Return the records of a finished run; none where they do not reach to its end."""
        return self.saved.records if self.saved and self.has_whole_records() else ()

    def _last_record(self) -> Record | None:
        try:
            return self.run.last_record()
        except InputError:
            return None

    def prepare(self) -> None:
        """Make the folder, with the recipe, and with what the run has to be made of."""
        make_folder(self.path, inside=self.path.parents[1])  # the board's
        self.run.write_recipe(self.recipe)
        self.run.write_json(self.run.expected_path, self.about.table())

    def fail(self, error: str) -> None:
        """Note why there are no scores."""
        self.state, self.error = "failed", shown(error.removeprefix("error: "), 1000)

    def finish(self, code: int, seconds: float) -> None:
        """Note what the folder and the process's exit code say."""
        self.seconds = seconds
        if code == 0 and self.is_scored():
            self.state = "done"
            return
        log = self.path / LOG
        try:
            lines = read_end(log, LONGEST).decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        errors = [line for line in lines if line.startswith("error: ")]
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.fail((errors or lines or [how])[-1])


Watch = Callable[[Sequence[Job]], None]


class Executor(Protocol):
    """What makes the runs of a board: this machine, or a cluster.

    device  of each run
    where   what costs depend on beside the recipes
    """

    @property
    def device(self) -> str: ...  # noqa: D102

    @property
    def where(self) -> str: ...  # noqa: D102

    def measure(self, recipes: Mapping[str, Recipe]) -> dict[str, Cost]:
        """Return what each entry costs; those that can't be measured are left out."""

    def sweep(self, jobs: Sequence[Job], watch: Watch) -> None:
        """Make the runs that are not done; a failed one is marked, no more.

        watch is called with all jobs a few times a second. SIGINT and SIGTERM let the runs that go
        on save, and raise KeyboardInterrupt then.
        """


def left_to_do(jobs: Sequence[Job]) -> list[Job]:
    """Mark the runs that have been done before; return the others."""
    for job in jobs:
        if job.is_scored():
            job.state = "done"
            records = job.saved.records if job.saved else ()
            job.seconds = records[-1].seconds if records else 0.0
    return [job for job in jobs if job.state == "waiting"]


def start(folder: Path, *, threads: int, device: str) -> subprocess.Popen[bytes]:
    """Start the process that makes, or goes on with, the run in a folder that has its recipe."""
    with growing(folder / LOG, anew=True) as log:
        return subprocess.Popen(
            command(folder, device),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=surroundings(threads),
            start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
            preexec_fn=die_with_parent,
        )


def command(folder: Path, device: str) -> list[str]:
    """Return what makes a run, goes on with it, or finds it done."""
    recipe = str(Run(folder).recipe_path)
    run = ["run", recipe, "--resume", "--out", str(folder), "--device", device]
    # not from the current folder, whose random.py would be Python's; -I drops PYTHONPATH as well
    return [sys.executable, "-P", "-m", "gancore", *run]


def shell_line(job: Job, *, threads: int, device: str) -> str:
    """Return a run's command for a shell, its folder prepared; from any folder it is the same."""
    job.prepare()
    limit = f"OMP_NUM_THREADS={threads} MKL_NUM_THREADS={threads}"
    return f"{limit} {' '.join(map(quoted, command(job.path.absolute(), device)))}"


def surroundings(threads: int) -> dict[str, str]:
    """Return the environment of a run: on its own, whatever launched the board."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in LAUNCHERS and not name.startswith("TORCHELASTIC_")
    }
    return kept | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))


@contextlib.contextmanager
def interruptible() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM in a list instead of dying of them."""
    received: list[int] = []
    previous = {
        each: signal.signal(each, lambda number, frame: received.append(number))
        for each in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield received
    finally:
        for each, handler in previous.items():
            signal.signal(each, handler)
