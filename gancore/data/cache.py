"""Tensors kept on disk that are slow to make: decoded images, features of reference samples."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from gancore.files.reading import opened
from gancore.files.writing import replacing


def cache_folder() -> Path:
    """Return the folder of the cache: gancore in XDG_CACHE_HOME, or in ~/.cache.

    Raises RuntimeError when there is no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "gancore"


class Cache:
    """One file for each thing that can be made (`slot`), good for one state of its source (`key`).

    kind begins the file's name. Where anything goes wrong here, there is no cache, and no error.

    note  a text beside the tensors, as `load` found it, or as `save` is to keep it
    """

    note = ""

    def __init__(self, kind: str, slot: str, key: str) -> None:
        self.kind, self.key = kind, key
        self.slot = hashlib.sha256(slot.encode(errors="surrogateescape")).hexdigest()

    @property
    def file(self) -> Path:
        """Where the tensors are."""
        return cache_folder() / f"{self.kind}-{self.slot[:24]}.safetensors"

    def load(self) -> dict[str, Tensor] | None:
        """Return the tensors if they are there, whole and of this key."""
        from safetensors import safe_open

        try:
            opened(self.file).close()  # it is a regular file then, which is read by its name
            with safe_open(self.file, framework="pt") as stored:
                about = stored.metadata() or {}
                if about.get("key") != self.key:
                    return None
                tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        except Exception:  # whatever is wrong with the file, it is made anew
            return None
        self.note = about.get("note", "")
        return tensors if about.get("content") == _content(tensors, self.note) else None

    def save(self, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors in place of any before; the file appears whole or not at all."""
        from safetensors.torch import save_file

        try:
            content = _content(tensors, self.note)
            about = {"key": self.key, "content": content, "note": self.note}
            with replacing(self.file) as file:
                save_file(dict(tensors), file.name, metadata=about)
        except Exception as error:  # safetensors raises its own for a full disk
            logging.getLogger(__name__).warning("%s are not cached: %s", self.kind, error)


def _content(tensors: Mapping[str, Tensor], note: str) -> str:
    digest = hashlib.sha256(note.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()
