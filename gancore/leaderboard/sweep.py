"""The sweep: every run of a board on this machine, each in a process and folder of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gancore.leaderboard.costs import measure_here
from gancore.leaderboard.job import POLL, Job, Watch, interruptible, left_to_do, start
from gancore.recipe import Recipe


@dataclass(frozen=True)
class Here:
    """This machine, with `parallel` runs at a time: an `Executor`."""

    parallel: int
    threads: int
    device: str

    @property
    def where(self) -> str:
        """What costs depend on beside the recipes."""
        return self.device

    def measure(self, recipes: Mapping[str, Recipe]) -> dict[str, dict[str, Any]]:
        """Measure costs; see `Executor`."""
        return measure_here(recipes, threads=self.threads, device=self.device)

    def sweep(self, jobs: Sequence[Job], watch: Watch) -> None:
        """Make the runs; see `Executor`."""
        waiting = left_to_do(jobs)
        running: dict[Job, subprocess.Popen[bytes]] = {}
        with interruptible() as stopped:
            try:
                while (waiting or running) and not stopped:
                    while waiting and len(running) < self.parallel:
                        job = waiting.pop(0)
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

    def _start(self, job: Job) -> subprocess.Popen[bytes]:
        job.prepare()
        job.state, job.started = "running", time.monotonic()
        return start(job.path, threads=self.threads, device=self.device)


def _finish(job: Job, code: int) -> None:
    job.finish(code, time.monotonic() - job.started)
