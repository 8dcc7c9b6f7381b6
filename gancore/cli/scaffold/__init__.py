"""The scaffold of a plugin package: what `gan plugins new` writes."""

from __future__ import annotations

import keyword
import re
from importlib.metadata import version
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from gancore import entrypoints
from gancore.errors import InputError
from gancore.files.writing import delete, write_text

__all__ = ["write_plugin"]


def write_plugin(name: str, parent: Path) -> Path:
    """Write the package gancore-<name> into `parent` and return its folder.

    Nothing is overwritten. Raises InputError for a name that no plugin can have, for one that an
    installed plugin has, and where the folder is there already.
    """
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        raise InputError(
            f"{name!r} is no name for a plugin: expected lower-case letters, digits and single "
            "underscores, such as my_penalty"
        )
    for plugin in entrypoints.find("plugin"):
        if plugin.name == name:
            raise InputError(f"there is a plugin {plugin} already: choose another name")
    folder = parent / f"gancore-{name.replace('_', '-')}"
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise InputError(f"{folder} is there already: nothing was written") from None
    core = version("gancore").split(".")
    words = {
        "name": name,
        "package": f"gancore_{name}",
        "function": name if name.endswith("penalty") else f"{name}_penalty",
        "distribution": folder.name,
        "cls": "".join(part.capitalize() for part in name.split("_")),
        "low": f"{core[0]}.{core[1]}",
        "high": f"{core[0]}.{int(core[1]) + 1}",
    }
    try:
        _render(files("gancore.cli.scaffold") / "template", folder, words)
    except OSError:
        delete(folder)  # all of it or nothing
        raise
    return folder


def _render(template: Traversable, target: Path, words: dict[str, str]) -> None:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    target.mkdir(exist_ok=True)
    for item in template.iterdir():
        # names are templates too; `dot-` stands for the dot that build backends tend to skip
        name = environment.from_string(item.name.removesuffix(".j2")).render(words)
        path = target / re.sub(r"^dot-", ".", name)
        if item.is_dir():
            _render(item, path, words)
        else:
            text = item.read_text(encoding="utf-8")
            write_text(path, environment.from_string(text).render(words))
