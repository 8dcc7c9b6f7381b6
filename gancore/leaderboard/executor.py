"""An executor makes the runs of a board: here, on a cluster, or wherever a package brings it to.

The entry-point group `gancore.executors` names subclasses of `Executor`. docs/scaling.md has one.
"""

from __future__ import annotations

import contextlib
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from gancore import entrypoints
from gancore.checks import guard
from gancore.cost import Cost, measure
from gancore.entrypoints import Available
from gancore.errors import GancoreError, InputError, PluginError
from gancore.leaderboard.job import Job, left_to_do
from gancore.provenance.machine import on_threads
from gancore.recipe import Recipe
from gancore.text import shown
from gancore.training.device import choose_device


@dataclass(frozen=True)
class Terms:
    """What a board and its user ask of an executor.

    place     where to make the runs: PLACE in `--executor NAME:PLACE`; empty without it
    parallel  runs at a time, at most, as `--jobs` says; None leaves it to the executor
    threads   of each run
    gpus      of each run
    device    of each run, as `--device` says: auto, cpu, cuda or cuda:N
    tell      shows the user a line
    """

    place: str
    parallel: int | None
    threads: int
    gpus: float
    device: str
    tell: Callable[[str], None]


class Watch:
    """What an executor reports to while it makes runs, and what stops it.

    stops  how often the user has asked to stop. After the first time no run is started, and those
           that go on save and end. After the second time nobody waits for them.
    """

    def __init__(self, jobs: Sequence[Job], show: Callable[[Sequence[Job]], None]) -> None:
        self.stops = 0
        self._jobs = jobs
        self._show = show

    def show(self) -> None:
        """Show the states of all runs. Call it a few times a second."""
        self._show(self._jobs)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Count SIGINT and SIGTERM instead of dying of them."""

        def count(*_: object) -> None:
            self.stops += 1

        previous = {number: signal.signal(number, count) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Executor(ABC):
    """Makes the runs of a board. It is entered before the first and left after the last.

    device  of each run: cpu or cuda. Runs on another device are other runs, in other folders
    taken   what `__enter__` has opened, and `__exit__` closes
    """

    def __init__(self, terms: Terms, device: str | None = None) -> None:
        """Take the terms. Without a device, it is chosen among those of this machine.

        Raises InputError for terms that it can't meet. Connects to nothing: `__enter__` does.
        """
        self.terms = terms
        self.device = device or str(choose_device(terms.device))
        self.taken = contextlib.ExitStack()

    @property
    def where(self) -> str:
        """What costs depend on, beside the recipes. Costs from elsewhere are measured again."""
        return self.device

    def __enter__(self) -> Self:
        """Connect. Raises InputError where nothing answers."""
        return self

    def __exit__(self, *raised: object) -> None:
        """Give back what was taken."""
        self.taken.close()

    def measure(self, recipes: Mapping[str, Recipe]) -> dict[str, Cost]:
        """Return what each entry costs, measured where the runs are made: by default here.

        An entry that can't be measured is left out. Raises InputError and RunError.
        """
        return measure_here(recipes, threads=self.terms.threads, device=self.device)

    @abstractmethod
    def make(self, jobs: Sequence[Job], watch: Watch) -> None:
        """Make these runs, each by `job.prepare()`, `job.begin()`, and `job.finish()`.

        A run that fails is marked by `job.finish()` or `job.fail()`, and the others go on.
        Return when all have ended, or when `watch.stops` is set and no run goes on.
        """


def measure_here(recipes: Mapping[str, Recipe], *, threads: int, device: str) -> dict[str, Cost]:
    """Measure costs in this process, on so many threads. Raises InputError."""
    with on_threads(threads):
        return measure(recipes, device=device)


def chosen(name: str, terms: Terms) -> Executor:
    """Return the executor that is installed under a name, not entered yet.

    Raises MissingError where there is none, PluginError where it can't be used, and InputError for
    terms that it can't meet.
    """
    installed = entrypoints.get("executor", name)
    with _told_whose(f"executor {installed}"):
        return executor_class(installed)(terms)


def executor_class(installed: Available) -> type[Executor]:
    """Import an executor. Raises PluginError for one that can't be imported, or is none."""
    made = entrypoints.load(installed)
    if not (isinstance(made, type) and issubclass(made, Executor)):
        raise PluginError(
            f"executor {installed}: {shown(repr(made))} is no subclass of "
            f"gancore.leaderboard.executor.Executor. Tell the authors of {installed.distribution}"
        )
    return made


def make_runs(
    executor: Executor, jobs: Sequence[Job], show: Callable[[Sequence[Job]], None]
) -> None:
    """Let an executor make the runs that are not done.

    show  is called with all runs a few times a second

    SIGINT and SIGTERM let the runs that go on save, and raise KeyboardInterrupt then. Raises
    whatever the executor raises.
    """
    left = left_to_do(jobs)
    watch = Watch(jobs, show)
    try:
        with watch.interruptible():
            if left:
                with _told_whose(f"the executor {type(executor).__name__}"):
                    executor.make(left, watch)
    finally:
        for job in left:
            if job.state in ("queued", "running"):
                job.state = "queued"
        watch.show()
    if watch.stops:
        raise KeyboardInterrupt
    if lost := [job for job in left if job.state != "failed" and job.saved is None]:
        raise PluginError(
            f"the executor {type(executor).__name__} has ended without "
            f"{len(lost)} of {len(left)} runs: run the board again, or with another --executor"
        )


@contextlib.contextmanager
def _told_whose(whose: str) -> Iterator[None]:
    """Let an error that gancore does not raise on purpose name the executor."""
    try:
        yield
    except GancoreError:
        raise
    except (Exception, SystemExit) as error:
        guard.name(error, whose)
        raise


def parsed(text: str) -> tuple[str, str]:
    """Return the name and the place in NAME or NAME:PLACE. Raises InputError."""
    name, _, place = text.partition(":")
    if not name:
        raise InputError(f"--executor {text!r}: expected NAME or NAME:PLACE, such as ray:auto")
    return name, place
