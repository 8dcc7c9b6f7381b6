"""Processes: forked ones that work together by gloo, which costs no import, and started ones."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

FORK = multiprocessing.get_context("fork")
LIMIT = 120
"""Seconds that any of them may take."""


@contextmanager
def ending(process: subprocess.Popen[Any]) -> Iterator[subprocess.Popen[Any]]:
    """See a process to its end; to an early one where the test fails, which would wait else."""
    with process:
        try:
            yield process
        finally:
            process.kill()


def together(work: Callable[[], Any], folder: Path, count: int = 2) -> list[Any]:
    """Return what each of `count` processes in one group returns of `work`."""
    meeting = folder / f"meeting-{os.urandom(4).hex()}"
    members, ends = [], []
    for rank in range(count):
        end, start = FORK.Pipe(duplex=False)
        process = FORK.Process(target=_member, args=(work, meeting, rank, count, start))
        process.start()
        start.close()
        members.append(process)
        ends.append(end)
    try:
        answers = [_answer(end) for end in ends]
    finally:
        for process in members:
            process.kill()
            process.join()
    return answers


def _member(work: Callable[[], Any], meeting: Path, rank: int, count: int, start: Any) -> None:
    try:
        dist.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=rank, world_size=count
        )
        answer = (True, work())
    except BaseException:
        answer = (False, traceback.format_exc())
    start.send_bytes(pickle.dumps(answer))
    os._exit(0)


def _answer(end: Any) -> Any:
    assert end.poll(LIMIT), "no answer in time"
    well, answer = pickle.loads(end.recv_bytes())
    assert well, answer
    return answer


class Launched:
    """`gan` with the same arguments in `count` processes that know of each other as by torchrun."""

    def __init__(self, folder: Path, arguments: Sequence[object], count: int = 2) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        self.files = [folder / f"said-{rank}.txt" for rank in range(count)]
        self.processes = []
        for rank, path in enumerate(self.files):
            path.write_text("")
            process = FORK.Process(target=_gan, args=(arguments, rank, count, port, path))
            process.start()
            self.processes.append(process)

    def ended(self) -> list[int | None]:
        """Wait for all; return their exit codes."""
        for process in self.processes:
            process.join(LIMIT)
            process.kill()
        return [process.exitcode for process in self.processes]

    def said(self) -> list[str]:
        """Return what each has printed."""
        return [path.read_text() for path in self.files]


def _gan(arguments: Sequence[object], rank: int, count: int, port: int, path: Path) -> None:
    from gancore.cli import main

    with path.open("wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    sys.argv = ["gan", *map(str, arguments)]
    warnings.resetwarnings()
    code = 0
    try:
        main()
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
