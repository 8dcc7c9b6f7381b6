"""The machine under a run: its threads and its kind, on which the last bits of numbers depend."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gancore.errors import InputError

MOST_THREADS = 1024
"""What may be asked for."""

A_CORE = 4
"""Threads a core, at most, that a resumed run takes as before. With more, it would hardly go on."""

TO_ROUNDING = "what follows equals an uninterrupted run to rounding only, not bit for bit"


@contextmanager
def on_threads(count: int | None = None) -> Iterator[None]:
    """Compute on this many threads in the block, then on as many as before. None changes nothing.

    Raises InputError.
    """
    if count is not None and not (type(count) is int and 1 <= count <= MOST_THREADS):
        raise InputError(
            f"threads is {count!r}, expected a whole number from 1 to {MOST_THREADS:,}"
        )
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


def taken_again(threads: int) -> bool:
    """Compute on as many threads as another process did, and return whether that can be."""
    if 1 <= threads <= A_CORE * (os.cpu_count() or 1):
        torch.set_num_threads(threads)
    return torch.get_num_threads() == threads


def kind_of_machine() -> dict[str, str]:
    """Return the CPU's model, the instructions that torch uses of it, and torch's BLAS."""
    return {
        "cpu": _cpu(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": _blas(),
    }


def _cpu(path: Path = Path("/proc/cpuinfo")) -> str:
    """Return the CPU's model, as well as the system tells it."""
    text = path.read_text(errors="replace") if path.is_file() else ""
    lines = [line.partition(":") for line in reversed(text.splitlines())]
    table = {name.strip(): value.strip() for name, _, value in lines}
    arm = [table[key] for key in ("CPU implementer", "CPU part") if key in table]
    return table.get("model name") or " ".join(arm) or platform.processor() or platform.machine()


def _blas() -> str:
    """Return the libraries of matrix products and convolutions that torch was built with."""
    built = torch.__config__.show()
    name = re.search(r"BLAS_INFO=(\w+)", built)
    versions = re.findall(r"(Math Kernel Library Version \S+|MKL-DNN v\S+)", built)
    return ", ".join([name[1] if name else "unknown", *versions])
