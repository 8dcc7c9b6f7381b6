"""Downloads: checked by their hash, never left half done."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gancore.data.progress import Progress
from gancore.errors import DataError
from gancore.files.writing import replacing

if TYPE_CHECKING:
    from http.client import HTTPResponse

TIMEOUT = 15.0
"""Seconds without an answer before a server is given up."""

Algorithm = Literal["md5", "sha256"]


def fetch(
    urls: Sequence[str],
    file: Path,
    expected: str,
    algorithm: Algorithm = "md5",
    *,
    otherwise: str = "set data.path to the folder that has it",
) -> None:
    """Download the first of `urls` that answers with the expected content to `file`.

    expected   the published hash of the content in hexadecimal digits, or how it begins
    otherwise  what else the user can do where it can't be downloaded

    `file` appears whole or not at all. Raises DataError, which says what to put where by hand.
    """
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    failed = []
    for url in urls:
        try:
            request = Request(url, headers={"User-Agent": "gancore"})
            with urlopen(request, timeout=TIMEOUT) as answer:
                _receive(answer, file, expected, algorithm, otherwise)
            return
        except _DamagedError as digest:
            failed.append(
                f"{url}: damaged or incomplete, its {algorithm.upper()} is {digest}, expected "
                f"{expected}"
            )
        except (OSError, HTTPException, ValueError) as error:
            failed.append(f"{url}: {_reason(error)}")
    raise DataError(
        f"{file.name} is not in {file.parent} and can't be downloaded ({'; '.join(failed)}). "
        f"On a machine with the internet get {urls[0]} and put it into {file.parent}/, "
        f"or {otherwise}"
    )


class _DamagedError(Exception):
    """What came is not what was asked for; its hash."""


def _receive(
    answer: HTTPResponse, file: Path, expected: str, algorithm: Algorithm, otherwise: str
) -> None:
    """Make what a server sends a file. Raises _DamagedError unless it is the one expected."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with ExitStack() as stack:
        try:
            stream = stack.enter_context(replacing(file))
        except OSError as error:
            raise DataError(
                f"{file.name} can't be downloaded to {file.parent}: {_reason(error)}. "
                f"Get the right to write there, or {otherwise}"
            ) from error
        with Progress(f"downloading {file.name}", answer.length) as progress:
            while block := answer.read(1 << 18):
                stream.write(block)
                digest.update(block)
                progress.advance(len(block))
        if not digest.hexdigest().startswith(expected):
            raise _DamagedError(digest.hexdigest())


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return str(reason) or type(error).__name__
