"""One run of a board: its folder, the process that makes it, and how it ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gancore import entrypoints
from gancore.distributed.launching import die_with_parent
from gancore.errors import InputError
from gancore.files.reading import LONGEST, read_end
from gancore.files.writing import growing, make_folder
from gancore.provenance.identity import MadeOf
from gancore.recipe import Score
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

State = Literal["queued", "running", "done", "failed"]


@dataclass(eq=False)
class Job:
    """One run of a board: an entry with a seed.

    Its folder's name carries a hash of all that decides its scores: a finished run is found again,
    an interrupted one goes on, and a run of another recipe, of other data or code has another name.

    recipe   the resolved table that the run saves
    about    data and code that the run is to be made of
    error    why it has failed
    seconds  that it took
    started  when it began, by `time.monotonic`
    saved    the run's files, read once when it is done
    """

    entry: str
    seed: int
    recipe: dict[str, Any]
    path: Path
    state: State = "queued"
    error: str = ""
    seconds: float = 0.0
    started: float = field(default=0.0, repr=False)
    about: MadeOf = field(default_factory=MadeOf, repr=False)
    saved: SavedRun | None = field(default=None, repr=False)

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
        try:
            last = self.run.last_record()
        except InputError:
            return 0
        return last.step if last else 0

    def is_scored(self) -> bool:
        """Whether the run has all scores that its recipe asks for; `saved` is what was read of it.

        Not where one of its files can't be read: who goes on with the run writes that anew, and
        leaves out broken records. Records may be missing, as no score depends on them.
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
        """Whether the run is done, and its records reach to its end."""
        records = self.saved.records if self.saved else ()
        return bool(records) and records[-1].step == self.steps

    def whole_records(self) -> tuple[Record, ...]:
        """Return the records of a finished run; none where they do not reach to its end."""
        return self.saved.records if self.saved and self.has_whole_records() else ()

    def prepare(self) -> None:
        """Make the folder, with the recipe, and with what the run has to be made of."""
        make_folder(self.path, inside=self.path.parents[1])  # the board's
        self.run.write_recipe(self.recipe)
        self.run.write_json(self.run.expected_path, self.about.table())

    def begin(self) -> None:
        """Note that the run goes on, from now."""
        self.state, self.started = "running", time.monotonic()

    def fail(self, error: str) -> None:
        """Note why there are no scores."""
        self.state, self.error = "failed", shown(error.removeprefix("error: "), 1000)

    def finish(self, code: int, seconds: float) -> None:
        """Note how the run has ended: by its folder, and the exit code of its process."""
        self.seconds = seconds
        if code == 0 and self.is_scored():
            self.state = "done"
            return
        try:
            end = read_end(self.path / LOG, LONGEST)
        except OSError:
            end = b""
        lines = end.decode(errors="replace").strip().splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        self.fail((errors or lines or [how])[-1])


def left_to_do(jobs: Sequence[Job]) -> list[Job]:
    """Mark the runs that have been done before; return the others."""
    for job in jobs:
        if job.is_scored():
            records = job.saved.records if job.saved else ()
            job.state, job.seconds = "done", records[-1].seconds if records else 0.0
    return [job for job in jobs if job.state == "queued"]


def start(folder: Path, *, threads: int, device: str) -> subprocess.Popen[bytes]:
    """Start the process that makes, or goes on with, the run in a folder that has its recipe."""
    with growing(folder / LOG, anew=True) as log:
        return subprocess.Popen(
            command(folder, device),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=surroundings(threads),
            start_new_session=True,  # the terminal's Ctrl-C is for the board, which passes it on
            preexec_fn=die_with_parent,
        )


def command(folder: Path, device: str) -> list[str]:
    """Return the command that makes a run, goes on with it, or finds it done."""
    recipe = str(Run(folder).recipe_path)
    run = ["run", recipe, "--resume", "--out", str(folder), "--device", device]
    run += [f"--plugin-file={path}" for path in entrypoints.files()]
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
