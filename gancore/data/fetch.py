"""Downloads: checked by MD5, never left half done."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gancore.data.progress import Progress
from gancore.errors import DataError

if TYPE_CHECKING:
    from http.client import HTTPResponse

TIMEOUT = 15.0
"""Seconds without an answer before a server is given up."""


def fetch(urls: Sequence[str], file: Path, md5: str) -> None:
    """Download the first of `urls` that answers with the content of that MD5 to `file`.

    `file` appears whole or not at all. Raises DataError, which says what to put where by hand.
    """
    from http.client import HTTPException
    from urllib.request import Request, urlopen

    failed = []
    for url in urls:
        try:
            request = Request(url, headers={"User-Agent": "gancore"})
            with urlopen(request, timeout=TIMEOUT) as answer:
                found = _receive(answer, file, md5)
            if found == md5:
                return
            failed.append(f"{url}: damaged or incomplete, its MD5 is {found}, expected {md5}")
        except (OSError, HTTPException, ValueError) as error:
            failed.append(f"{url}: {_reason(error)}")
    raise DataError(
        f"{file.name} is not in {file.parent} and can't be downloaded ({'; '.join(failed)}). "
        f"On a machine with the internet get {urls[0]} and put it into {file.parent}/, "
        "or set data.path to the folder that has it"
    )


def _receive(answer: HTTPResponse, file: Path, md5: str) -> str:
    """Return the MD5 of what a server sends, which becomes `file` if that is the one expected."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _sweep(file)
        handle, name = tempfile.mkstemp(prefix=f".{file.name}-", dir=file.parent)
    except OSError as error:
        raise DataError(
            f"{file.name} can't be downloaded to {file.parent}: {_reason(error)}. "
            "Set data.path to a folder that can be written"
        ) from error
    part, digest = Path(name), hashlib.md5(usedforsecurity=False)
    try:
        with os.fdopen(handle, "wb") as stream:
            with Progress(f"downloading {file.name}", answer.length) as progress:
                while block := answer.read(1 << 18):
                    stream.write(block)
                    digest.update(block)
                    progress.advance(len(block))
            stream.flush()
            os.fsync(stream.fileno())
        if digest.hexdigest() == md5:
            part.chmod(0o644)
            part.replace(file)
        return digest.hexdigest()
    finally:
        part.unlink(missing_ok=True)


def _sweep(file: Path) -> None:
    """Remove what killed downloads left an hour ago or earlier."""
    for part in file.parent.glob(f".{file.name}-*"):
        if time.time() - part.stat().st_mtime > 3600:
            part.unlink(missing_ok=True)


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
    return str(reason) or type(error).__name__
