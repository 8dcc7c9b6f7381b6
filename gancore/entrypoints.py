"""Entry points: the plugins, networks, data sets and extractors that are installed.

`find` reads metadata only and imports nothing; `load` imports one.
"""

from __future__ import annotations

import hashlib
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.metadata import EntryPoint, distribution, entry_points
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

from gancore.checks import guard, settings
from gancore.errors import ContractError, MissingError, PluginError
from gancore.text import close_to, did_you_mean

Kind = Literal["plugin", "dataset", "generator", "critic", "extractor"]

OURS = frozenset(
    {"clip", "cr", "dragan", "gp", "lazy", "lecam", "probe", "r1", "r2", "sn", "tensorboard"}
)
"""Names of the plugins that this project publishes, each as the distribution gancore-<name>."""

MADE_IN_PYTHON = "python:"
"""Begins the names of networks and data that a run was given in Python."""

CODE = frozenset({".py", ".pyc", ".so", ".pyd"})
"""Ends of the names of files that may be imported."""


@dataclass(frozen=True)
class Found:
    """An entry point of an installed distribution, not imported yet."""

    kind: Kind
    name: str
    distribution: str
    version: str
    point: EntryPoint

    def __str__(self) -> str:
        return f"{self.name} ({self.distribution} {self.version})"


def find(kind: Kind) -> Iterator[Found]:
    """Yield every installed entry point of the group `gancore.<kind>s`, by name."""
    found = [
        Found(kind, point.name, *_origin(point), point)
        for point in entry_points(group=f"gancore.{kind}s")
    ]
    yield from sorted(found, key=lambda each: (each.name, each.distribution))


def _origin(point: EntryPoint) -> tuple[str, str]:
    return (point.dist.name, point.dist.version) if point.dist else ("unknown", "0")


def get(kind: Kind, name: str) -> Found:
    """Return the one entry point of this name.

    Raises MissingError when there is none, with close names or what to install, and PluginError
    when several distributions bring it, with their names, and for what was made in Python.
    """
    installed = list(find(kind))
    matches = [found for found in installed if found.name == name]
    if len(matches) == 1:
        return matches[0]
    if matches:
        both = " and ".join(f"{found.distribution} {found.version}" for found in matches)
        raise PluginError(f"{kind} {name!r} is brought by {both}: uninstall all but one")
    if name.startswith(MADE_IN_PYTHON):
        raise PluginError(
            f"{kind} {name!r} was made in Python, and no recipe can build it: give it to "
            "gancore.Trainer"
        )
    names = {found.name for found in installed}
    if kind == "plugin" and name in OURS:
        hint = f" It comes with the package gancore-{name}: pip install it."
        raise MissingError(f"no plugin {name!r} is installed.{hint}", close=False)
    raise MissingError(
        f"no {kind} {name!r} is installed.{did_you_mean(name, names)}",
        close=bool(close_to(name, names)),
    )


def origin(found: Found) -> str:
    """Return what decides how a component works: `gancore-gp==0.1.0 (code 1a2b3c4d)`.

    The code is a hash of the files of its package and of all that its distribution has installed,
    whose author may change them without the version. Where that is editable no list says what else
    there is: then it is the package's alone. The core's goes by its version alone.
    """
    brought_by = f"{found.distribution}=={found.version}"
    if found.distribution == "gancore":
        return brought_by
    return f"{brought_by} (code {_code(found)})"


def _code(found: Found) -> str:
    """Hash a component's package and all else that its distribution has installed.

    Unknown in a zip.
    """
    digest = hashlib.sha256()
    try:
        files = _code_files(found.point.module)
        if not files:
            return "unknown"
        named = {_name(path, files[0]): path for path in files} | _installed(found)
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


def _installed(found: Found) -> dict[str, Path]:
    """Return the files that a distribution's record lists, by their paths there.

    Left out are its metadata, scripts, what is cached, and where an editable install points to.
    """
    dist = found.point.dist
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


def load(found: Found) -> Any:
    """Import what an entry point names.

    Filters of warnings, and what its modules draw or seed, are put back: they are imported once,
    and runs are made often.

    Raises PluginError when its distribution excludes this version of gancore, or when the
    import fails, naming the distribution and the cause; ContractError when it changes torch's
    global settings.
    """
    _check_core_version(found)
    try:
        with settings.kept(_import_of(found)), warnings.catch_warnings(), _draws_kept():
            return found.point.load()
    except ContractError:
        raise
    except KeyboardInterrupt as error:
        guard.name(error, _import_of(found))
        raise
    except BaseException as error:
        cause = f"{type(error).__name__}: {error}"
        raise PluginError(
            f"{found.kind} {found} can't be imported: {cause}. "
            f"Reinstall or remove {found.distribution}."
        ) from error


def _import_of(found: Found) -> str:
    return f"the import of {found.kind} {found}"


def _draws_kept() -> AbstractContextManager[None]:
    if "torch" not in sys.modules:  # nobody has drawn yet, and it takes seconds to import
        return nullcontext()
    from gancore.isolation.randomness import kept

    return kept()


def _check_core_version(found: Found) -> None:
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    core = distribution("gancore").version
    dist = found.point.dist
    for text in (dist.requires if dist else None) or ():
        try:
            need = Requirement(text)
        except InvalidRequirement as error:
            raise PluginError(
                f"{found.kind} {found} declares a requirement that can't be read, {text!r}: "
                f"reinstall or remove {found.distribution}"
            ) from error
        if canonicalize_name(need.name) != "gancore" or (
            need.marker and not need.marker.evaluate()
        ):
            continue
        if not need.specifier.contains(core, prereleases=True):
            raise PluginError(
                f"{found.kind} {found} needs gancore{need.specifier}, this is gancore {core}: "
                f"install a version of {found.distribution} made for it"
            )
