"""The sweep: every run of a board on this machine, each in a process and folder of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from gancore.cost import Cost
from gancore.errors import InputError
from gancore.files.storage import InUseError, wait_until_free
from gancore.files.writing import make_folder
from gancore.leaderboard.costs import measure_here
from gancore.leaderboard.job import LOCKED, POLL, Job, Watch, interruptible, left_to_do, start
from gancore.recipe import Recipe


@dataclass(frozen=True)
class Here:
    """This machine, with `parallel` runs at a time: an `Executor`."""

    parallel: int
    threads: int
    device: str
    tell: Callable[[str], None] = print

    @property
    def where(self) -> str:
        """What costs depend on beside the recipes."""
        return self.device

    def measure(self, recipes: Mapping[str, Recipe]) -> dict[str, Cost]:
        """Measure costs; see `Executor`."""
        return measure_here(recipes, threads=self.threads, device=self.device)

    def sweep(self, jobs: Sequence[Job], watch: Watch) -> None:
        """Make the runs; see `Executor`."""
        waiting = left_to_do(jobs)
        running: dict[Job, subprocess.Popen[bytes]] = {}
        until: dict[Job, float] = {}
        with interruptible() as stopped:
            try:
                while (waiting or running) and not stopped:
                    for job in list(waiting):
                        if len(running) < self.parallel and not self._is_held(job, until):
                            waiting.remove(job)
                            running[job] = self._start(job)
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
                    while process.poll() is None:
                        if len(stopped) > 1:
                            process.kill()  # what it has saved is whole
                        time.sleep(POLL)
                    job.state = "waiting"
                watch(jobs)
        if stopped:
            raise KeyboardInterrupt

    def _is_held(self, job: Job, until: dict[Job, float]) -> bool:
        """Whether another process has the run's folder: that of a board that was killed, say.

        It saves, and ends; after `LOCKED` seconds no more is waited for it. until: when that is
        """
        make_folder(job.path, inside=job.path.parents[1])  # the board's
        try:
            wait_until_free(job.path, 0)
        except InUseError as error:
            if job not in until:
                until[job] = time.monotonic() + LOCKED
                self.tell(
                    f"{job.entry} seed {job.seed}: waits up to {LOCKED:.0f} seconds until its "
                    f"folder is free: {error}"
                )
            return time.monotonic() < until[job]
        except InputError:  # its process tells it
            return False
        return False

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        job.prepare()
        job.state, job.started = "running", time.monotonic()
        return start(job.path, threads=self.threads, device=self.device)


def _finish(job: Job, code: int) -> None:
    job.finish(code, time.monotonic() - job.started)
