"""Decoded images kept on disk, so that the second start is instant."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import tempfile
import time
from pathlib import Path

from gancore.data import Dataset


def cache_folder() -> Path:
    """Return the folder of the cache: gancore in XDG_CACHE_HOME, or in ~/.cache.

    Raises RuntimeError when there is no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "gancore"


class Cache:
    """One file a place and set of options (`slot`), good for one state of its content (`key`).

    Nothing that goes wrong here is an error: then there is no cache.
    """

    def __init__(self, slot: str, key: str) -> None:
        self.slot, self.key = hashlib.sha256(slot.encode(errors="surrogateescape")).hexdigest(), key

    @property
    def file(self) -> Path:
        """Where the tensors are."""
        return cache_folder() / f"images-{self.slot[:24]}.safetensors"

    def load(self, name: str) -> Dataset | None:
        """Return the data set if it is there, whole and of this key."""
        from safetensors import safe_open

        try:
            with safe_open(self.file, framework="pt") as stored:
                about = stored.metadata() or {}
                if about.get("key") != self.key:
                    return None
                tensors = {each: stored.get_tensor(each) for each in stored.keys()}  # noqa: SIM118
            found = Dataset(name, tensors["samples"], tensors.get("labels"))
        except Exception:  # whatever is wrong with the file, it is made anew
            return None
        return found if about.get("content") == _content(found) else None

    def save(self, data: Dataset) -> None:
        """Keep a data set in place of any before; the file appears whole or not at all."""
        from safetensors.torch import save_file

        tensors = {"samples": data.samples}
        if data.labels is not None:
            tensors["labels"] = data.labels
        part = None
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._sweep()
            handle, name = tempfile.mkstemp(
                prefix=f"{self.file.stem}-", suffix=".part", dir=self.file.parent
            )
            part = Path(name)
            os.close(handle)
            save_file(tensors, part, metadata={"key": self.key, "content": _content(data)})
            with part.open("rb") as stream:
                os.fsync(stream.fileno())
            part.replace(self.file)
        except Exception as error:  # safetensors raises its own for a full disk
            logging.getLogger(__name__).warning("decoded images are not cached: %s", error)
        finally:
            if part is not None:
                part.unlink(missing_ok=True)

    def _sweep(self) -> None:
        """Remove what killed processes left an hour ago or earlier."""
        for part in self.file.parent.glob("images-*.part"):
            with contextlib.suppress(OSError):
                if time.time() - part.stat().st_mtime > 3600:
                    part.unlink()


def _content(data: Dataset) -> str:
    labels = b"" if data.labels is None else data.labels.numpy().tobytes()
    return f"{data.sha256} {hashlib.sha256(labels).hexdigest()}"
