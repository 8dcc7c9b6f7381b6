"""The display of a run: live on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Self

from gancore.text import printable

if TYPE_CHECKING:
    from rich.console import Console, Group
    from rich.progress import TaskID

Values = Mapping[str, float]


class Display:
    """What a run tells while it goes on; this one keeps silent."""

    def begin(self, title: str, step: int, steps: int) -> None:
        """Start at generator update `step` of `steps`."""

    def advance(self, step: int, values: Values) -> None:
        """Take the values of one generator update and the critic updates before it."""

    def record(self, record: Values) -> None:
        """Take a logged record."""

    def count(self, what: str, done: int, total: int) -> None:
        """Take the progress of calibrating, sampling or scoring."""

    def say(self, text: str) -> None:
        """Tell one line."""

    def end(self) -> None:
        """Finish; called also when the run fails."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.end()


class LinesDisplay(Display):
    """A line a record, without control codes."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._steps = 0
        self._began = (0, 0.0)
        self._counting = ("", 0.0)

    def begin(self, title: str, step: int, steps: int) -> None:
        """Tell what begins."""
        self._steps = steps
        self._began = (step, time.perf_counter())
        self.say(title)

    def record(self, record: Values) -> None:
        """Tell the record in one line."""
        done, seconds = record["step"] - self._began[0], time.perf_counter() - self._began[1]
        speed = done / seconds if seconds > 0 else 0.0
        left = (self._steps - record["step"]) / speed if speed else 0.0
        shown = " ".join(f"{key} {value:.4g}" for key, value in _shown(record).items())
        self.say(
            f"step {record['step']}/{self._steps} {shown} | {speed:.1f} steps/s, {clock(left)} left"
        )

    def count(self, what: str, done: int, total: int) -> None:
        """Tell the beginning, the end, and a line every ten seconds between."""
        now = time.perf_counter()
        if what != self._counting[0] or now - self._counting[1] > 10 or done == total:
            self._counting = (what, now)
            self.say(f"{what} {done}/{total}")

    def say(self, text: str) -> None:
        """Tell one line."""
        print(printable(text), file=self._file, flush=True)


class LiveDisplay(Display):
    """Progress, time left and the latest values, in place."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        self._console = console
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}", markup=False),
            console=console,
            expand=True,
        )
        self._values: dict[str, float] = {}
        self._tasks: dict[str, TaskID] = {}
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4)
        self._began = (0, 0.0)

    def begin(self, title: str, step: int, steps: int) -> None:
        """Show the bar."""
        self.say(title)
        self._began = (step, time.perf_counter())
        self._bar("training", step, steps)

    def advance(self, step: int, values: Values) -> None:
        """Keep the latest values for the next refresh."""
        self._values.update(values)
        done, seconds = step - self._began[0], time.perf_counter() - self._began[1]
        speed = f"{done / seconds:.1f} steps/s"
        self._progress.update(self._tasks["training"], completed=step, speed=speed)

    def count(self, what: str, done: int, total: int) -> None:
        """Show a bar of its own."""
        self._bar(what, done, total)

    def say(self, text: str) -> None:
        """Print one line above the bar."""
        self._console.print(printable(text), highlight=False, markup=False, emoji=False)

    def end(self) -> None:
        """Leave the last state on the screen."""
        self._live.stop()

    def _bar(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, speed="")
        self._progress.update(self._tasks[what], completed=done, total=total)
        if not self._live.is_started:
            self._live.start()

    def _render(self) -> Group:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        if not self._values:
            return Group(self._progress)
        table = Table(box=None, expand=True, padding=(0, 1))
        shown = _shown(self._values)
        for key in shown:
            name = Text(key.replace("_", " "))  # a plugin's alias is no markup
            table.add_column(name, justify="right", style="cyan", no_wrap=True)
        table.add_row(*(f"{value:.4g}" for value in shown.values()))
        return Group(self._progress, table)


def display_for(file: IO[str]) -> Display:
    """Return a live display for a terminal that can move its cursor, else plain lines."""
    from rich.console import Console

    console = Console(file=file)
    is_live = file.isatty() and console.is_terminal and not console.is_dumb_terminal
    return LiveDisplay(console) if is_live else LinesDisplay(file)


FIRST = {"wasserstein": "D(real)−D(fake)"}
"""What comes first, and what it is called: with most losses it is no Wasserstein distance."""

HIDDEN = frozenset({"update", "step", "seconds", "critic_loss", "d_real", "d_fake"})


def _shown(values: Values) -> dict[str, float]:
    """Pick, order and name what a screen has room for."""
    order = sorted(values, key=lambda key: (key not in FIRST, "/" not in key))
    return {FIRST.get(key, key): values[key] for key in order if key not in HIDDEN}


def clock(seconds: float) -> str:
    """Return a duration as minutes and seconds, and hours if there are any: 1:02:03."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
