"""The display of a board while it runs: a live table on a terminal, a line a run elsewhere."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from types import TracebackType
from typing import IO, TYPE_CHECKING, Self

from gancore.leaderboard.board import Board
from gancore.leaderboard.job import Job
from gancore.report import clock
from gancore.text import printable

if TYPE_CHECKING:
    from rich.table import Table

LOOK = 2.0
"""Seconds between looks into the folders of the runs that go on."""


class BoardDisplay:
    """Shows what runs, what is done, what it scored, and the time left."""

    def __init__(self, board: Board, file: IO[str]) -> None:
        from rich.console import Console
        from rich.live import Live

        self._board = board
        self._at_once = 1  # the most runs that went on at a time
        self._console = Console(file=file, highlight=False)
        # what an executor's library prints is not ours to move above the table
        live = Live(console=self._console, redirect_stdout=False)
        can_move = self._console.is_terminal and not self._console.is_dumb_terminal
        self._live = live if can_move else None
        self._told: dict[Job, str] = {}
        self._looked = 0.0

    def __enter__(self) -> Self:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()

    def say(self, text: str) -> None:
        """Tell one line."""
        self._console.print(printable(text), markup=False, emoji=False, soft_wrap=True)

    def show(self, jobs: Sequence[Job]) -> None:
        """Take the state of all runs."""
        running = sum(job.state == "running" for job in jobs)
        self._at_once = max(self._at_once, running)
        changed = [job for job in jobs if self._told.get(job) != job.state]
        if self._live and (changed or time.monotonic() - self._looked > LOOK):
            self._looked = time.monotonic()
            self._live.update(self._table(jobs))
        for job in changed:
            if not self._live and job.state in ("running", "done", "failed"):
                self.say(self._line(job, jobs))
            self._told[job] = job.state

    def _line(self, job: Job, jobs: Sequence[Job]) -> str:
        text = f"{job.entry} seed {job.seed}: "
        match job.state:
            case "running":
                return text + f"starts at step {job.step()} of {job.steps}"
            case "failed":
                text += f"failed: {job.error}"
            case _:
                again = job not in self._told
                text += _scores([job], self._board.metric)
                text += ", done before" if again else f" in {clock(job.seconds)}"
        return f"{text} | {self._progress(jobs)}"

    def _progress(self, jobs: Sequence[Job]) -> str:
        ended = sum(job.state in ("done", "failed") for job in jobs)
        return f"{ended}/{len(jobs)} runs, {clock(self._left(jobs))} left"

    def _table(self, jobs: Sequence[Job]) -> Table:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=self._progress(jobs), title_justify="left")
        for column in ("entry", "done", "running", "median so far", "failed"):
            table.add_column(column)
        for entry in self._board.entry:
            mine = [job for job in jobs if job.entry == entry.name]
            ended = [job for job in mine if job.state == "done"]
            failed = sum(job.state == "failed" for job in mine)
            going = ", ".join(
                f"seed {job.seed}{_share(job)}" for job in mine if job.state == "running"
            )
            table.add_row(
                Text(entry.label or entry.name),
                f"{len(ended)}/{len(mine)}",
                going,
                Text(_scores(ended, self._board.metric)),
                str(failed or ""),
                style="red" if failed else "",
            )
        return table

    def _left(self, jobs: Sequence[Job]) -> float:
        """Return the seconds left, by what the runs of each entry took, or those of all entries.

        Where none is done yet, by how far the running ones are; 0 where nothing tells.
        """
        took: dict[str, list[float]] = {}
        for job in jobs:
            if job.state == "done":
                took.setdefault(job.entry, []).append(job.seconds)
        all_took = [seconds for of_entry in took.values() for seconds in of_entry]
        if not all_took:
            all_took = [
                (time.monotonic() - job.started) * job.steps / step
                for job in jobs
                if job.state == "running" and (step := job.step())
            ]
        if not all_took:
            return 0.0
        left = 0.0
        for job in jobs:
            if job.state in ("queued", "running"):
                whole = statistics.mean(took.get(job.entry, all_took))
                passed = time.monotonic() - job.started if job.state == "running" else 0.0
                left += max(whole - passed, 0.0)
        return left / self._at_once


def _share(job: Job) -> str:
    """Return how far a run is, if there is a record that tells it."""
    step = job.step()
    return f": {step / job.steps:.0%}" if step else ""


def _scores(done: Sequence[Job], metric: str | None) -> str:
    """Return the median of the score that ranks, or of the first."""
    scores = [job.saved.scores.scores for job in done if job.saved and job.saved.scores]
    key = metric or next(iter(scores[0] if scores else ()), "")
    values = [of_run[key] for of_run in scores if key in of_run]
    return f"{key} {statistics.median(values):.4g}" if values else ""
