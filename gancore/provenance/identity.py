"""The identity of a run: which data and code, beside the recipe, decide its numbers.

It is in checkpoints, in environment.json and in the name of a board's run folder; what has changed
of it makes another run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass

from torch import nn

from gancore import entrypoints, options
from gancore.data import Dataset
from gancore.entrypoints import Kind
from gancore.errors import GancoreError, RecipeError
from gancore.files.stored import Json, Stored, Text
from gancore.plugins import Loaded
from gancore.provenance.sources import Core, class_code, core_code
from gancore.recipe import Component, Recipe

SCORING = ("extractor", "score.weights")
"""Components that decide no update, only scores."""

SHOWN = 5
"""Modules that a line names, at most."""


class MadeOf(Stored):
    """An identity, as far as whoever wrote it knew it; None is what was not known.

    data        the hash of the samples
    plugins, components
                where each comes from, with a hash of its code
    core        hashes of gancore's own code
    versions, python
                of packages and of Python
    where       what else decides the numbers of a board's run: its device and threads
    """

    data: Text | None = None
    plugins: dict[Text, Text] | None = None
    components: dict[Text, Text] | None = None
    core: Core | None = None
    versions: dict[Text, Text] | None = None
    python: Text | None = None
    where: dict[Text, Text] | None = None


def made_of(data: Dataset, plugins: Iterable[Loaded], components: Mapping[str, str]) -> MadeOf:
    """Return the data's hash, where plugins and components come from, and the core's code."""
    return MadeOf.model_construct(
        data=data.fingerprint,
        plugins=plugin_origins(plugins),
        components=dict(components),
        core=core_code(),
    )


def plugin_origins(plugins: Iterable[Loaded]) -> dict[str, str]:
    """Return where each plugin comes from, with a hash of its code."""
    return {
        plugin.name: entrypoints.origin(plugin.source)
        if plugin.source
        else class_origin(type(plugin.instance), [type(plugin.instance)])
        for plugin in plugins
    }


def network_origin(network: nn.Module) -> str:
    """Return the class of a network that came from Python, with a hash of its modules' code."""
    return class_origin(type(network), {type(module) for module in network.modules()})


def class_origin(cls: type, kinds: Iterable[type]) -> str:
    """Return a class's name with a hash of the code of these."""
    return f"{cls.__module__}.{cls.__qualname__} (code {class_code(kinds)})"


def changes(then: MadeOf, now: MadeOf, *, but: Iterable[str] = ()) -> list[str]:
    """Return a line for each thing that two identities both have and that differs.

    Components named in `but` are left out. So is core code that another version of Python hashed.
    """
    lines = []
    if then.data and now.data and then.data != now.data:
        lines.append(f"data: other samples, whose hash was {then.data[:12]} and is {now.data[:12]}")
    for group, word in GROUPS.items():
        old, new = getattr(then, group) or {}, getattr(now, group) or {}
        lines += [
            f"{word}{name}: was {old[name]!r}, is {new[name]!r}"
            for name in sorted(old.keys() & new.keys() - {*but})
            if old[name] != new[name]
        ]
    if then.python and now.python and then.python != now.python:
        lines.append(f"Python: was {then.python}, is {now.python}")
    if edited := _edited(then.core, now.core):
        more = f" and {len(edited) - SHOWN} more" if len(edited) > SHOWN else ""
        lines.append(f"gancore's own code, in {', '.join(edited[:SHOWN])}{more}")
    return lines


GROUPS = {"plugins": "plugin ", "components": "", "versions": "", "where": ""}
"""Tables that are compared by name, and what a line calls one of their names."""


def _edited(then: Core | None, now: Core | None) -> list[str]:
    """Return the modules of the core that differ."""
    if not (then and now) or then.python != now.python:
        return []
    old, new = then.modules, now.modules
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def uncompared(then: MadeOf, now: MadeOf) -> str:
    """Return what of an identity can't be compared with an earlier one, as words; or nothing."""
    unknown = [word for key, word in WORDS.items() if getattr(then, key) is None]
    if then.core and now.core and then.core.python != now.core.python:
        python = f"by Python {then.core.python} then, by {now.core.python} now"
        unknown.append(f"{WORDS['core']} (hashed {python})")
    unknown += [
        f"the code of {name}"
        for origins in (now.plugins or {}, now.components or {})
        for name, origin in origins.items()
        if name not in SCORING and origin.endswith("(code unknown)")
    ]
    return ", ".join(unknown)


WORDS = {
    "data": "data",
    "plugins": "plugins' code",
    "components": "networks' code",
    "core": "gancore's own code",
}


def as_now(saved: Mapping[str, Json], classes: Mapping[str, type]) -> dict[str, Json]:
    """Return a recipe table, which an earlier gancore may have saved, as this one would save it.

    A key that it lacks has its default, an old name is the new one.

    classes  of plugins by name, for those that no entry point names

    A table that is no recipe, as a caller of `Trainer` may give one, stays as it is.
    """
    try:
        recipe = Recipe.parse(saved)
    except RecipeError:
        return dict(saved)
    return {
        **recipe.table(),
        "data": _completed("dataset", recipe.data, {}),
        "generator": _completed("generator", recipe.generator, {}),
        "critic": _completed("critic", recipe.critic, {}),
        "loss": _completed("plugin", recipe.loss, classes),
        "plugin": [_completed("plugin", section, classes) for section in recipe.plugin],
    }


def _completed(kind: Kind, section: Component, classes: Mapping[str, type]) -> dict[str, Json]:
    """Return a component's section with the defaults of what it lacks; as it is if not found."""
    table = section.table()
    try:
        factory = classes.get(section.name) or entrypoints.load(entrypoints.get(kind, section.name))
        known = fields(factory) if is_dataclass(factory) else ()
        made = {
            option.name: option.default_factory()
            for option in known
            if option.init and option.default_factory is not MISSING
        }
        return {**options.complete(factory, made), **table}
    except GancoreError:
        return table
