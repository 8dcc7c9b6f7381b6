"""The sweep: every run of a board on this machine, each in a process and folder of its own."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence

from gancore.errors import GancoreError, InputError, told_of_files
from gancore.files.storage import InUseError, wait_until_free
from gancore.files.writing import make_folder
from gancore.leaderboard.executor import Executor, Terms, Watch
from gancore.leaderboard.job import LOCKED, POLL, Job, start


class Local(Executor):
    """The executor `local`: processes on this machine, one at a time unless `--jobs` says more."""

    def __init__(self, terms: Terms) -> None:
        if terms.place:
            raise InputError(f"--executor local:{terms.place}: local takes no place, leave it out")
        super().__init__(terms)

    def make(self, jobs: Sequence[Job], watch: Watch) -> None:
        """Make the runs; see `Executor`."""
        queued = list(jobs)
        running: dict[Job, subprocess.Popen[bytes]] = {}
        deadlines: dict[Job, float] = {}
        try:
            while (queued or running) and not watch.stops:
                for job in list(queued):
                    if len(running) < (self.terms.parallel or 1) and self._is_free(job, deadlines):
                        queued.remove(job)
                        if process := self._start(job):
                            running[job] = process
                for job in list(running):
                    code = running[job].poll()
                    if code is not None:
                        job.finish(code, time.monotonic() - job.started)
                        del running[job]
                watch.show()
                time.sleep(POLL)
        finally:
            for process in running.values():
                process.terminate()  # it saves, and exits with 0
            for process in running.values():
                while process.poll() is None:
                    if watch.stops > 1:
                        process.kill()  # its last checkpoint is whole
                    time.sleep(POLL)

    def _is_free(self, job: Job, deadlines: dict[Job, float]) -> bool:
        """Whether no other process has the run's folder; after `LOCKED` seconds, so be it.

        The process of a board that was killed has it, say: it saves, and ends.
        """
        try:
            with told_of_files(job.path):
                make_folder(job.path, inside=job.path.parents[1])  # the board's
                wait_until_free(job.path, 0)
        except InUseError as error:
            if job not in deadlines:
                deadlines[job] = time.monotonic() + LOCKED
                self.terms.tell(
                    f"{job.entry} seed {job.seed}: waits up to {LOCKED:.0f} seconds until its "
                    f"folder is free: {error}"
                )
            return time.monotonic() >= deadlines[job]
        except GancoreError:
            return True  # it is told where the run is started
        return True

    def _start(self, job: Job) -> subprocess.Popen[bytes] | None:
        """Start the run's process; None where its folder can't be used, and the run has failed."""
        try:
            with told_of_files(job.path):
                job.prepare()
                job.begin()
                return start(job.path, threads=self.terms.threads, device=self.device)
        except GancoreError as error:
            job.fail(str(error))
            return None
