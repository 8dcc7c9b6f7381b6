"""Hashes of code, taken of its syntax trees: of the core's own, and of that of classes.

Comments, docstrings and empty lines change no hash. Another version of Python writes other trees,
so hashes by two versions are not compared.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Iterable
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

from pydantic import Field

from gancore.files.stored import Stored, Text

CORE = Path(__file__).parents[1]
PYTHON = "{}.{}".format(*sys.version_info)
"""The version that trees are written by."""

DECIDES_NOTHING = (
    *("__main__", "cli", "report", "leaderboard", "testing", "cost", "errors", "text", "files"),
    *("provenance.sources", "provenance.identity", "entrypoints"),
    *("training.run_folder", "training.record"),
    "data.*",  # loaded samples are known by their own hash
)
"""Modules and packages of the core, as patterns, that change no weight, sample or score of a run.

All others do, those that are yet to be written among them.
"""

WEIGHTS = ".safetensors"
"""The end of the names of the extractors' weights, which decide scores as code does."""


class Core(Stored):
    """Hashes of the core's code that decides numbers.

    python   the version that they go with
    code     of all
    modules  of each, by name
    """

    python: Text
    code: Text
    modules: dict[Text, Text] = Field(max_length=10_000)


@cache
def core_code() -> Core:
    """Return the hashes of the code that is installed, made once a process."""
    files = {_name(path): path for path in CORE.rglob("*") if _is_code(path)}
    modules = {name: file_code(files[name]) for name in sorted(files) if decides(name)}
    return Core(python=PYTHON, code=_digest(repr(modules).encode()), modules=modules)


def _is_code(path: Path) -> bool:
    return path.suffix in (".py", WEIGHTS) and path.is_file()  # an editor's lock is a link


def decides(name: str) -> bool:
    """Return whether a module of the core decides numbers; `step`, or `training.session`."""
    return not any(
        fnmatch(name, pattern) or fnmatch(name, f"{pattern}.*") for pattern in DECIDES_NOTHING
    )


def _name(path: Path) -> str:
    name = ".".join(path.relative_to(CORE).parts)
    return name.removesuffix(".py").removesuffix("__init__").removesuffix(".") or "__init__"


def class_code(kinds: Iterable[type]) -> str:
    """Hash the code in which classes, and those that they inherit from, are written.

    Of a module that is the whole file, of a script or a cell of a notebook the classes alone. Those
    of torch, the core and Python itself go by the version. Where nothing else is left it is "none",
    and "unknown" where a text can't be had.
    """
    bases = {base for kind in kinds for base in kind.__mro__ if _is_elsewhere(base)}
    codes = {_class_code(base) for base in bases}
    if "unknown" in codes:
        return "unknown"
    return _digest("".join(sorted(codes)).encode()) if codes else "none"


def _is_elsewhere(base: type) -> bool:
    top = base.__module__.partition(".")[0]
    return top not in ("torch", "gancore", "builtins")


@cache
def _class_code(base: type) -> str:
    try:
        file = None if base.__module__ == "__main__" else inspect.getsourcefile(base)
        if file is not None:
            return file_code(Path(file))
        return _code(textwrap.dedent(inspect.getsource(base)).encode())
    except (OSError, TypeError):
        return "unknown"


def file_code(path: Path) -> str:
    """Hash a file: the syntax tree of Python's, without docstrings, and the bytes of another."""
    content = path.read_bytes()
    return _code(content) if path.suffix == ".py" else _digest(content)


def _code(text: bytes) -> str:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # half saved: who imports it is told
        return _digest(text)
    _strip(tree)
    return _digest(ast.dump(tree).encode(errors="surrogatepass"))


def _strip(block: ast.AST) -> None:
    """Take the texts that stand as statements out of all blocks of a tree: nothing reads them."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        inner = getattr(block, name, None)
        if isinstance(inner, list):  # not that of a lambda
            inner[:] = [child for child in inner if not _is_text(child)]
            for child in inner:
                _strip(child)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:8]
