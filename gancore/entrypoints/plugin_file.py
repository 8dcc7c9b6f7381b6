"""A plugin file: Python code that a command line names, whose marked classes are plugins."""

from __future__ import annotations

import hashlib
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from gancore.checks import guard
from gancore.errors import InputError, PluginError
from gancore.text import shown, snake_case

LARGEST = 1 << 20
"""Bytes of a plugin file at most."""


@dataclass(frozen=True, eq=False)
class PluginFile:
    """A file of plugins that was run.

    path     absolute
    content  what was run; the file may hold something else by now
    module   the name of the module that it has become
    classes  the names of its plugins' classes, by the names of the plugins
    """

    path: Path
    content: bytes = field(repr=False)
    module: str
    classes: Mapping[str, str]

    @property
    def origin(self) -> str:
        """What decides how its plugins work: `lp.py (code 1a2b3c4d)`, wherever the file is."""
        return f"{shown(self.path.name, 255)} (code {hashlib.sha256(self.content).hexdigest()[:8]})"


def module_of(path: Path) -> str:
    """Return the name of the module that a file becomes; no installed module begins like it."""
    return "plugin_file_" + "".join(one if one.isalnum() else "_" for one in path.stem)


def given(path: Path) -> str:
    """Return how a message names a file."""
    return f"--plugin-file {shown(str(path), 4096)}"


def is_plugin(candidate: object) -> bool:
    """Whether this is a class that `@gancore.plugin` itself has marked, and not its base."""
    if not isinstance(candidate, type):
        return False
    marks = vars(candidate).get("__dataclass_params__")
    return marks is not None and not (marks.eq or marks.frozen)


def run_file(path: Path) -> PluginFile:
    """Run a file as a module of its own. What it imports, draws or sets is not taken back.

    path: absolute

    Raises InputError for what can't be read, or is no file; PluginError, with the line at fault,
    for what can't be run, and for a file without a plugin.
    """
    from gancore.files.reading import read_bytes, unreadable

    if path.suffix != ".py":
        raise InputError(f"{given(path)}: expected a file of Python code, NAME.py")
    try:
        content = read_bytes(path, LARGEST)
    except OSError as error:
        raise InputError(f"--plugin-file {unreadable(error, path)}") from error
    module = ModuleType(module_of(path))
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    try:
        exec(compile(content, path, "exec", dont_inherit=True), vars(module))
    except KeyboardInterrupt as error:
        guard.name(error, f"the import of {path.name}")
        raise
    except BaseException as error:  # whatever it is, SystemExit too
        text = error.msg if isinstance(error, SyntaxError) else str(error)
        raise PluginError(
            f"{given(path)}{_line(error, path)}: {type(error).__name__}: "
            f"{shown(' '.join(text.split()), 1000)}. Mend the file, or leave it out"
        ) from error
    return PluginFile(path, content, module.__name__, _classes(module, path))


def _line(error: BaseException, path: Path) -> str:
    """Return where in a file an error comes from, `, line 3`; nothing where that is not known."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines.append(error.lineno)
    return f", line {lines[-1]}" if lines and lines[-1] else ""


def _classes(module: ModuleType, path: Path) -> dict[str, str]:
    """Return the names of the classes marked in a module itself, by the names of the plugins."""
    classes: dict[str, str] = {}
    marked = {one: name for name, one in vars(module).items() if is_plugin(one)}
    for cls, name in marked.items():
        called = snake_case(cls.__name__)
        if cls.__module__ != module.__name__:  # imported from elsewhere
            continue
        if called in classes:
            raise PluginError(
                f"{given(path)}: its classes {classes[called]} and {name} are both the plugin "
                f"{called!r}: rename one"
            )
        classes[called] = name
    if not classes:
        raise PluginError(f"{given(path)}: no class in it is marked with @gancore.plugin: mark one")
    return classes
