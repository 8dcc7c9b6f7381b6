"""Marks: which hooks an object implements, and what keeps one of them from ever acting."""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pluggy import HookimplOpts

from gancore import hooks
from gancore.errors import PluginError
from gancore.text import did_you_mean

HOOKS = tuple(sorted(name for name, spec in vars(hooks).items() if hasattr(spec, "gancore_spec")))
"""The names of all hooks."""

STARS: Mapping[Any, str] = {
    inspect.Parameter.KEYWORD_ONLY: "",
    inspect.Parameter.VAR_POSITIONAL: "*",
    inspect.Parameter.VAR_KEYWORD: "**",
}
"""Kinds of parameters that no hook call gives a value, and how they are written."""

UNNAMED = (inspect.Parameter.POSITIONAL_ONLY,)
"""Kinds that get none by name, as those with a default do."""


class Implementation(NamedTuple):
    """A marked method: the hook that it implements, its own name, and what its mark says."""

    hook: str
    method: str
    wraps: bool
    """Whether it wraps others' answers."""
    optional: bool
    """Whether the hook need not exist."""


def implementations(subject: object) -> list[Implementation]:
    """Return the marked methods of an object, or a class, unknown hooks among them."""
    marked = {name: _mark(inspect.getattr_static(subject, name, None)) for name in dir(subject)}
    return [
        Implementation(
            mark["specname"] or name,
            name,
            bool(mark["wrapper"] or mark["hookwrapper"]),
            mark["optionalhook"],
        )
        for name, mark in marked.items()
        if mark is not None
    ]


def implemented(subject: object) -> list[str]:
    """Return the hooks that an object, or a class, answers itself. A wrapper answers none."""
    own = {hook for hook, _, wraps, _ in implementations(subject) if not wraps}
    return [hook for hook in HOOKS if hook in own]


def fault(subject: object) -> str:
    """Return why a method of an object, or a class, would never act as a hook; "" if all do.

    A hook is a plain function, marked, whose parameters are named and positional, and an object
    has one method a hook, beside wrappers.
    """
    cls = subject if isinstance(subject, type) else type(subject)
    own = {} if subject is cls else getattr(subject, "__dict__", {})
    for name in dir(subject):
        value = inspect.getattr_static(subject, name, None)
        if reason := _fault(name, value, bound=name not in own):
            return f"{cls.__qualname__}.{name} {reason}"
    seen: dict[str, str] = {}
    for hook, method, wraps, _ in implementations(subject):
        if not wraps and hook in seen:
            both = f"{seen[hook]} and {method}"
            return f"{cls.__qualname__} implements {hook} twice, by {both}: drop one"
        if not wraps:
            seen[hook] = method
    return ""


def refuse_idle(who: str, instance: object) -> None:
    """Raise PluginError, which names `who`, for a plugin without a hook, or with one never called.

    That is a class in place of an instance, too.
    """
    if isinstance(instance, type):
        raise PluginError(f"{who} is a class: give an instance, made by calling it")
    if reason := fault(instance):
        raise PluginError(f"{who}: {reason}")
    marked = implementations(instance)
    if not marked:
        raise PluginError(f"{who} has no hook: mark its methods with @hookimpl")
    for hook, _, _, optional in marked:
        if hook not in HOOKS and not optional:
            raise PluginError(f"{who}: there is no hook {hook!r}.{did_you_mean(hook, HOOKS)}")


def _fault(name: str, value: object, *, bound: bool) -> str:
    mark = _mark(value)
    if mark is None:
        is_meant = callable(value) and name in HOOKS
        return "is never called: mark it with @hookimpl" if is_meant else ""
    if not isinstance(value, types.FunctionType | types.MethodType):
        return f"is a {type(value).__name__}: a hook is a plain function"
    layers = list(_layers(value))
    if any(map(_is_async, layers)):
        return "is async, and nobody would await it: a hook is a plain function"
    if any(map(inspect.isgeneratorfunction, layers)) and not (
        mark["wrapper"] or mark["hookwrapper"]
    ):
        return (
            "has a yield, so that a call runs none of it: drop the yield, or mark a wrapper of "
            "others' answers with @hookimpl(wrapper=True)"
        )
    hook = mark["specname"] or name
    known = list(inspect.signature(getattr(hooks, hook)).parameters) if hook in HOOKS else []
    parameters = list(inspect.signature(layers[-1]).parameters.values())
    if bound and parameters and parameters[0].name in known:
        return "has no self, whose place its first parameter takes: write it"
    for parameter in parameters:
        is_default = parameter.default is not parameter.empty
        is_skipped = known and (parameter.name not in known or parameter.kind in UNNAMED)
        if parameter.kind in STARS or (is_default and is_skipped):
            return (
                f"has the parameter {STARS.get(parameter.kind, '')}{parameter.name}, which never "
                "gets a value: a hook's parameters are named and positional"
                + (f", here {', '.join(known)} or fewer" if known else "")
            )
    return ""


def _mark(value: object) -> HookimplOpts | None:
    """Return the options of @hookimpl, also where it is under a static method, property ..."""
    mark: HookimplOpts | None = inspect.getattr_static(value, f"{hooks.PROJECT}_impl", None)
    if isinstance(mark, dict):
        return mark
    match value:
        case staticmethod() | classmethod() | types.MethodType():
            return _mark(value.__func__)
        case property():
            return _mark(value.fget)
        case functools.partial() | functools.partialmethod() | functools.cached_property():
            return _mark(value.func)
    return None


def _layers(function: Any) -> Iterator[Any]:
    """Yield a function, and what it decorates, innermost last."""
    function = getattr(function, "__func__", function)
    yield function
    if hasattr(function, "__wrapped__"):
        yield from _layers(function.__wrapped__)


def _is_async(function: Any) -> bool:
    return inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function)
