"""The sweep: every run of a board, each in a process and folder of its own."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gancore.errors import GancoreError, RecipeError
from gancore.leaderboard.board import Board
from gancore.options import shown
from gancore.recipe import Recipe
from gancore.training import Run
from gancore.training.environment import choose_device, environment
from gancore.training.experiment import load_plugins, resolve

POLL = 0.2
"""Seconds between looks at the runs that go on."""


@dataclass(eq=False)
class Job:
    """One run of a board: an entry with a seed.

    Its folder carries a hash of all that decides its scores, so that a finished one is found
    again, an interrupted one goes on, and one under another recipe or version never is mistaken.
    """

    entry: str
    seed: int
    recipe: dict[str, Any]
    path: Path
    state: str = "waiting"  # then: running, done, failed
    error: str = ""
    seconds: float = 0.0
    started: float = field(default=0.0, repr=False)

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
        records = self.run.records if self.path.is_dir() else []
        return int(records[-1]["step"]) if records else 0


def plan(board: Board, recipes: Mapping[str, Recipe], out: Path, *, device: str) -> list[Job]:
    """Return the runs of a board, seed by seed, so that all entries get on alike.

    recipes  of its entries, by name
    out      the board's folder

    Raises InputError for recipes that are wrong.
    """
    jobs: list[Job] = []
    for name, recipe in recipes.items():
        try:
            table = resolve(recipe)
            about = _about(recipe, device)
        except GancoreError as error:
            error.add_note(f"in the entry {name!r} of the board")
            raise
        _refuse_unlike(name, table, jobs)
        for seed in board.seeds:
            seeded = {**table, "train": {**table["train"], "seed": seed}}
            key = json.dumps([seeded, about, board.threads], sort_keys=True)
            digest = hashlib.sha256(key.encode()).hexdigest()[:10]
            jobs.append(Job(name, seed, seeded, out / "runs" / f"{name}-seed{seed}-{digest}"))
    return sorted(jobs, key=lambda job: board.seeds.index(job.seed))


def _refuse_unlike(name: str, table: Mapping[str, Any], others: Sequence[Job]) -> None:
    """Refuse an entry that is scored otherwise than the first: the table would compare nothing."""
    for section, keys in (
        ("data", None),
        ("score", ("metrics", "samples", "extractor", "weights")),
    ):
        for key in keys or table[section]:
            for other in others[:1]:
                mine, its = table[section].get(key), other.recipe[section].get(key)
                if mine != its:
                    raise RecipeError(
                        f"entry {name!r}: {section}.{key} is {mine!r}, and {its!r} in the entry "
                        f"{other.entry!r}: a board compares scores of one protocol"
                    )


def _about(recipe: Recipe, device: str) -> dict[str, Any]:
    """Return versions and device: what beside the recipe decides the scores of a run."""
    found = environment(choose_device(device), load_plugins(recipe))
    return {key: found[key] for key in ("versions", "plugins", "python", "device")}


def sweep(
    jobs: Sequence[Job],
    *,
    parallel: int,
    threads: int,
    device: str,
    watch: Callable[[Sequence[Job]], None],
) -> None:
    """Make the runs that are not done, `parallel` at a time; a failed one is marked, no more.

    watch is called with all jobs a few times a second. SIGINT and SIGTERM let the runs that go on
    save, and raise KeyboardInterrupt then.
    """
    for job in jobs:
        if job.path.is_dir() and job.run.scores is not None:
            job.state = "done"
            job.seconds = float(next((each["seconds"] for each in job.run.records[-1:]), 0.0))
    waiting = [job for job in jobs if job.state == "waiting"]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    with _interruptible() as stopped:
        try:
            while (waiting or running) and not stopped:
                while waiting and len(running) < parallel:
                    job = waiting.pop(0)
                    running[job] = _start(job, threads, device)
                for job, process in list(running.items()):
                    if process.poll() is not None:
                        _finish(job, process.returncode)
                        del running[job]
                watch(jobs)
                time.sleep(POLL)
        finally:
            for process in running.values():
                process.terminate()  # it saves, and exits well
            for job, process in running.items():
                process.wait()
                job.state = "waiting"
            watch(jobs)
    if stopped:
        raise KeyboardInterrupt


def _start(job: Job, threads: int, device: str) -> subprocess.Popen[bytes]:
    job.path.mkdir(parents=True, exist_ok=True)
    job.run.write_recipe(job.recipe)
    command = [sys.executable, "-m", "gancore", "run", str(job.run.recipe_path)]
    command += ["--resume", "--out", str(job.path), "--device", device]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    job.state, job.started = "running", time.monotonic()
    with _log(job).open("wb") as log:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, **limits},
            start_new_session=True,  # the terminal's Ctrl-C is ours to pass on
            preexec_fn=_die_with_parent if sys.platform == "linux" else None,
        )


def _finish(job: Job, code: int) -> None:
    job.seconds = time.monotonic() - job.started
    if code == 0 and job.run.scores is not None:
        job.state = "done"
        return
    job.state = "failed"
    lines = _log(job).read_text(errors="replace").strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    how = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    job.error = shown((errors or lines or [how])[-1].removeprefix("error: "), 1000)


def _log(job: Job) -> Path:
    return job.path / "log.txt"


def _die_with_parent() -> None:
    """Ask Linux for a SIGTERM when the board's process is killed: the run saves, and ends."""
    import ctypes

    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


@contextlib.contextmanager
def _interruptible() -> Iterator[list[int]]:
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
