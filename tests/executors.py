"""A stranger's package with an executor, installed without pip: runs are made in this process."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE = '''
from concurrent.futures import ThreadPoolExecutor
import time

import gancore
from gancore.leaderboard.executor import Executor


class Inline(Executor):
    """Makes the runs in this process, one after the other, and looks up in between."""

    def make(self, jobs, watch):
        with ThreadPoolExecutor(1) as pool:
            for job in jobs:
                if watch.stops:
                    break
                job.prepare()
                job.begin()
                run = pool.submit(
                    gancore.run, job.run.recipe_path, job.path, device=self.device, resume=True
                )
                while not run.done():
                    watch.show()
                    time.sleep(0.02)
                if run.exception() is None:
                    job.finish(0, time.monotonic() - job.started)
                else:
                    job.fail(str(run.exception()))
                watch.show()
'''


@contextmanager
def installed(folder: Path, name: str = "inline", source: str = SOURCE) -> Iterator[None]:
    """Have a distribution `stranger` whose entry point is the executor of this name."""
    module = f"stranger_{name}"
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (folder / f"{module}.py").write_text(source, "utf-8")
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: stranger-{name}\nVersion: 1.0\nRequires-Dist: gancore\n"
    )
    value = f"{module}:Inline"
    (info / "entry_points.txt").write_text(f"[gancore.executors]\n{name} = {value}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        importlib.invalidate_caches()
        try:
            yield
        finally:
            sys.modules.pop(module, None)
