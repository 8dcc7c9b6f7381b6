"""The standard streams. Closing the pipe or terminal does not stop a command.

Nor does a character that the stream's encoding lacks.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

GONE = (errno.EPIPE, errno.EIO)
"""What a pipe without a reader says, and a terminal that was closed."""


@contextmanager
def lasting() -> Iterator[None]:
    """Drop what is printed once the pipe or terminal is closed, so that training goes on."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(_lasting, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


class _Descriptor(io.FileIO):
    """What a stream writes to. After the first failure it is the null device."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            number = self.fileno()
            is_gone = error.errno in GONE and not stat.S_ISREG(os.fstat(number).st_mode)
            with open(os.devnull, "wb") as nowhere:
                os.dup2(nowhere.fileno(), number)
            if is_gone or number == 2:  # there is nothing to tell of standard error on
                return memoryview(data).nbytes
            raise OSError(error.errno, error.strerror, "standard output") from error


def _lasting(stream: TextIO | None) -> TextIO:
    if stream is None:  # closed before the start
        return open(os.devnull, "w", encoding="utf-8")
    try:
        number = stream.fileno()
    except OSError:  # a test's
        return stream
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(number, "w", closefd=False)),
        encoding=stream.encoding,
        errors="replace",
        line_buffering=True,
    )
