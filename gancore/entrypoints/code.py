"""Code: a hash of the files that decide how an installed component works. Nothing is imported."""

from __future__ import annotations

import hashlib
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path

CODE = frozenset({".py", ".pyc", ".so", ".pyd"})
"""Ends of the names of files that may be imported."""


def installed_code(point: EntryPoint) -> str:
    """Hash the package that an entry point names, and all else that its distribution has installed.

    It is "unknown" in a zip.
    """
    digest = hashlib.sha256()
    try:
        files = _code_files(point.module)
        if not files:
            return "unknown"
        named = {_name(path, files[0]): path for path in files} | _installed(point)
        for name, path in sorted(named.items()):
            digest.update(f"{name}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    except (ImportError, OSError, ValueError):  # what is wrong is told when it is loaded
        return "unknown"
    return digest.hexdigest()[:8]


def _name(path: Path, top: Path) -> str:
    """Return a file's path as a record has it; `top` is the package's `__init__`, or the file."""
    folder = top.parent.parent if top.stem == "__init__" else top.parent
    return path.relative_to(folder).as_posix()


def _installed(point: EntryPoint) -> dict[str, Path]:
    """Return the files that a distribution's record lists, by their paths there.

    Left out are its metadata, scripts, what is cached, and where an editable install points to.
    """
    dist = point.dist
    there = {}
    for entry in (dist.files if dist else None) or ():
        first = entry.parts[0]
        is_about = first.endswith((".dist-info", ".egg-info", ".data")) or ".." in entry.parts
        is_pointer = len(entry.parts) == 1 and (
            entry.suffix == ".pth" or first.startswith("__editable__")
        )
        path = Path(str(entry.locate()))
        if not (is_about or is_pointer or _cached(path)) and path.is_file():
            there[entry.as_posix()] = path
    return there


def _code_files(module: str) -> list[Path]:
    """Return the files of the package in which a module is, its `__init__` first."""
    for name in accumulate(module.split("."), "{}.{}".format):
        spec = find_spec(name)
        if spec is None:
            break
        if spec.origin is not None:  # else a namespace, which other distributions share
            top = Path(spec.origin)
            if not spec.submodule_search_locations:
                return [top]
            others = {path for path in top.parent.rglob("*") if path.suffix in CODE} - {top}
            # an editor's lock is a link to nowhere; what is cached is of what is there
            return [top, *sorted(path for path in others if path.is_file() and not _cached(path))]
    return []


def _cached(path: Path) -> bool:
    return path.parent.name == "__pycache__"
