"""Entry points: what is installed for gancore, and the plugins of files that a command line names.

`find` reads metadata only and imports nothing; `load` imports one. `add_file` runs a file at once.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distribution, entry_points
from pathlib import Path
from typing import Any, Literal

from gancore.checks import guard, settings
from gancore.entrypoints.code import installed_code
from gancore.entrypoints.plugin_file import PluginFile, given, is_plugin, module_of, run_file
from gancore.errors import ContractError, MissingError, PluginError
from gancore.text import close_to, did_you_mean, shown

__all__ = [
    "Available",
    "Kind",
    "PluginFile",
    "add_file",
    "files",
    "find",
    "forget_files",
    "get",
    "is_plugin",
    "load",
    "origin",
]

Kind = Literal[
    "plugin", "dataset", "generator", "critic", "extractor", "metric", "executor", "command"
]

OURS = frozenset(
    {"clip", "cr", "dragan", "gp", "lazy", "lecam", "probe", "r1", "r2", "sn", "tensorboard"}
)
"""Names of the plugins that this project publishes, each as the distribution gancore-<name>."""

MADE_IN_PYTHON = "python:"
"""Begins the names of networks and data that a run was given in Python."""


@dataclass(frozen=True)
class Available:
    """What can be had by a name: an entry point, not imported yet, or a plugin in a file.

    distribution, version
            of what has it installed; for a plugin in a file they are the file's name, and nothing
    file    the file, where the plugin is in one
    """

    kind: Kind
    name: str
    distribution: str
    version: str
    point: EntryPoint
    file: PluginFile | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.brought_by})"

    @property
    def brought_by(self) -> str:
        """The distribution with its version, or the name of the file."""
        return f"{self.distribution} {self.version}".rstrip()


_files: dict[str, PluginFile] = {}
"""The plugin files that were added, by the names of their modules."""


def find(kind: Kind) -> Iterator[Available]:
    """Yield every entry point of the group `gancore.<kind>s`, and plugins of files, by name."""
    available = [
        Available(kind, point.name, *_origin(point), point)
        for point in entry_points(group=f"gancore.{kind}s")
    ]
    if kind == "plugin":
        available += [
            Available(kind, name, file.path.name, "", _point(file, name), file)
            for file in _files.values()
            for name in file.classes
        ]
    yield from sorted(available, key=lambda one: (one.name, one.distribution))


def _origin(point: EntryPoint) -> tuple[str, str]:
    """Return distribution and version; one that is half removed has neither."""
    dist = point.dist
    return ((dist and dist.name) or "unknown", (dist and dist.version) or "0")


def _point(file: PluginFile, name: str) -> EntryPoint:
    return EntryPoint(name, f"{file.module}:{file.classes[name]}", "gancore.plugins")


def files() -> tuple[Path, ...]:
    """Return the paths, absolute, of the plugin files that were added."""
    return tuple(file.path for file in _files.values())


def forget_files() -> None:
    """Take back what `add_file` did."""
    for module in _files:
        sys.modules.pop(module, None)
    _files.clear()


def add_file(path: Path) -> PluginFile:
    """Run a file, and let `find` yield its plugins: the classes in it marked with `@plugin`.

    The name of a plugin is that of its class in snake_case. A file that was added is not run again.

    Raises InputError for what can't be read, or is no file; PluginError for what can't be run, has
    no plugin, or has one whose name is taken; ContractError where it changes a global setting.
    """
    from gancore.files.reading import expanded
    from gancore.isolation import randomness  # noqa: F401  (torch: draws of the file are undone)

    path = expanded(str(path)).absolute()
    module = module_of(path)
    if before := _files.get(module):
        if before.path != path:
            raise PluginError(f"{given(path)}: {shown(before.path.name)} is added too: rename one")
        return before
    try:
        with _leaving_no_trace(f"the import of {path.name}"):
            file = run_file(path)
        _refuse_taken(file)
    except BaseException:
        sys.modules.pop(module, None)
        raise
    _files[module] = file
    return file


def _refuse_taken(file: PluginFile) -> None:
    taken = {available.name: available for available in find("plugin")}
    for name, cls in file.classes.items():
        if name in taken:
            raise PluginError(
                f"{given(file.path)}: its class {cls} is the plugin {name!r}, and so is "
                f"{taken[name]}: rename the class"
            )


def get(kind: Kind, name: str) -> Available:
    """Return the one of this name.

    Raises MissingError when there is none, with close names or what to install, and PluginError
    when several distributions bring it, with their names, and for what was made in Python.
    """
    available = list(find(kind))
    matches = [one for one in available if one.name == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        both = " and ".join(one.brought_by for one in matches)
        raise PluginError(f"{kind} {name!r} is brought by {both}: uninstall all but one")
    if name.startswith(MADE_IN_PYTHON):
        raise PluginError(
            f"{kind} {name!r} was made in Python, and no recipe can build it: give it to "
            "gancore.Trainer"
        )
    names = {one.name for one in available}
    if (kind == "plugin" and name in OURS) or (kind, name) == ("executor", "ray"):
        hint = f" It comes with the package gancore-{name}: pip install it."
        raise MissingError(f"no {kind} {name!r} is installed.{hint}", close=False)
    raise MissingError(
        f"no {kind} {name!r} is installed.{did_you_mean(name, names)}",
        close=bool(close_to(name, names)),
    )


def origin(available: Available) -> str:
    """Return what decides how a component works: `gancore-gp==0.1.0 (code 1a2b3c4d)`.

    The code is a hash of the files of its package, and of all files that its distribution has
    installed: an author may change them and keep the version. An editable install has no list of
    its files: there it is a hash of the package alone. The core's own parts have a version and no
    hash. For a plugin in a file it is the file's name, with a hash of its content.
    """
    if available.file is not None:
        return available.file.origin
    brought_by = f"{available.distribution}=={available.version}"
    if available.distribution == "gancore":
        return brought_by
    return f"{brought_by} (code {installed_code(available.point)})"


def load(available: Available) -> Any:
    """Import what an entry point names.

    Filters of warnings, and what its modules draw or seed, are put back: they are imported once,
    and runs are made often.

    Raises PluginError when its distribution excludes this version of gancore, or when the
    import fails, naming the distribution and the cause; ContractError when it changes torch's
    global settings.
    """
    _check_core_version(available)
    try:
        with _leaving_no_trace(_import_of(available)):
            return available.point.load()
    except ContractError:
        raise
    except KeyboardInterrupt as error:
        guard.name(error, _import_of(available))
        raise
    except BaseException as error:
        cause = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"{available.kind} {available} can't be imported: {cause}. "
            f"Reinstall or remove {available.distribution}."
        ) from error


@contextmanager
def _leaving_no_trace(who: str) -> Iterator[None]:
    """Put back torch's settings, the filters of warnings and the random generators."""
    with settings.kept(who), warnings.catch_warnings(), _draws_kept():
        yield


def _import_of(available: Available) -> str:
    return f"the import of {available.kind} {available}"


def _draws_kept() -> AbstractContextManager[None]:
    if "torch" not in sys.modules:  # nobody has drawn yet, and it takes seconds to import
        return nullcontext()
    from gancore.isolation.randomness import kept

    return kept()


def _check_core_version(available: Available) -> None:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    core = distribution("gancore").version
    dist = available.point.dist
    for text in (dist.requires if dist else None) or ():
        try:
            need = Requirement(text)
        except InvalidRequirement as error:
            raise PluginError(
                f"{available.kind} {available} declares a requirement that can't be read, "
                f"{text!r}: reinstall or remove {available.distribution}"
            ) from error
        if canonicalize_name(need.name) != "gancore" or (
            need.marker and not need.marker.evaluate()
        ):
            continue
        if not need.specifier.contains(core, prereleases=True):
            raise PluginError(
                f"{available.kind} {available} needs gancore{need.specifier}, this is gancore "
                f"{core}: install a version of {available.distribution} made for it"
            )
