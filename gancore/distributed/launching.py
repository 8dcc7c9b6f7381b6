"""Launching: how torchrun started this process, and who of its processes says what went wrong."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from gancore.errors import GancoreError, InputError


def is_launched() -> bool:
    """Whether this process is one of several that were started to make a run together.

    Raises InputError where the variables that say so hold no such numbers.
    """
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return False
    count = _variable("WORLD_SIZE", 1 << 20)
    if count > 1:
        for name, limit in (("RANK", count), ("LOCAL_RANK", count), ("MASTER_PORT", 1 << 16)):
            _variable(name, limit)
    return count > 1


def _variable(name: str, limit: int) -> int:
    """Return a variable that torchrun sets. Raises InputError."""
    given = os.environ.get(name, "0")
    if not (re.fullmatch("[0-9]{1,9}", given) and int(given) < limit):
        raise InputError(
            f"the variable {name} is {given!r}: expected a whole number below {limit}, as torchrun "
            "sets it. Unset it to run alone"
        )
    return int(given)


def is_under_torchrun() -> bool:
    """Whether torchrun started this process: it passes on the signals that all of them get."""
    return dist.is_torchelastic_launched()


@contextmanager
def told_once() -> Iterator[None]:
    """Let one process alone tell an error that several have, and say which process it is.

    The others exit with the error's code. Without an error, this process leaves the group.
    """
    try:
        yield
        if dist.is_initialized():
            dist.destroy_process_group()
    except GancoreError as error:
        if is_launched():
            if not _is_first_to_say(str(error)):
                raise SystemExit(error.exit_code) from None
            where = f"{os.environ['RANK']} of {os.environ['WORLD_SIZE']}"
            error.add_note(f"told by process {where}, on {socket.gethostname()}")
        raise


def _is_first_to_say(text: str) -> bool:
    """Whether no other process has told this error. Yes, too, where that can't be asked any more.

    The processes meet in a store, which the first may hold: it waits a few seconds until all others
    have asked.
    """
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    key = hashlib.sha256(text.encode()).hexdigest()
    try:
        store, index, count = next(rendezvous("env://", timeout=timedelta(seconds=5)))
        is_first = store.add(f"said/{attempt}/{key}", 1) == 1
        store.add(f"asked/{attempt}", 1)
        deadline = time.monotonic() + 3
        while index == 0 and store.add(f"asked/{attempt}", 0) < count:
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        return bool(is_first)
    except (RuntimeError, OSError, ValueError):
        return True


def die_with_parent() -> None:
    """Ask Linux for a SIGTERM when this process's parent is killed: the run saves, and ends."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
