"""Options: what a recipe may set on a plugin, network, data set or extractor.

The options of a component are the keyword-only parameters of its constructor (a plugin's
dataclass fields), validated by their annotations. Authors never write a check.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from gancore.checks import guard
from gancore.errors import PluginError
from gancore.text import did_you_mean, shown

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")

MOST_FAULTS = 20
"""Lines that a message has at most."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100

RESERVED = frozenset({"name", "as"})
"""Keys of a `[[plugin]]` table that are the core's own, never options."""

_STRICT = {"extra": "forbid", "strict": True, "allow_inf_nan": False}


def fault(cls: type) -> str:
    """Return why an attribute of a class is no option, or may be none; empty if all are fine."""
    annotations = inspect.get_annotations(cls)
    for name, value in vars(cls).items():
        is_value = not (callable(value) or hasattr(value, "__get__"))
        if is_value and not name.startswith("_") and name not in annotations:
            return (
                f"{cls.__qualname__}.{name} has a default but no annotation, so it is no option: "
                f"write `{name}: {type(value).__name__} = {value!r}`"
            )
    for name in annotations:
        if name in RESERVED:
            return f"{cls.__qualname__}.{name}: a recipe reserves this key"
    return ""


def parameters(target: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the keyword-only parameters of `target`, annotations resolved.

    Raises PluginError when one has no annotation, or one that can't be resolved.
    """
    label = getattr(target, "__qualname__", repr(target))
    try:
        signature = inspect.signature(target)
        hints = get_type_hints(_annotated(target), include_extras=True)
    except (NameError, TypeError, ValueError) as error:
        raise PluginError(f"the options of {label} can't be read: {error}") from error
    keywords = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            continue
        if name not in hints:
            raise PluginError(f"option {name!r} of {label} has no type: annotate it")
        keywords[name] = parameter.replace(annotation=hints[name])
    return keywords


def _annotated(target: Callable[..., Any]) -> Any:
    """Return what has the annotations: a dataclass, or else the function itself or `__init__`."""
    if inspect.isclass(target) and not is_dataclass(target):
        return target.__init__
    return target


def type_name(annotation: Any) -> str:
    """Return an option's type as an author would write it, constraints included."""
    if get_origin(annotation) is Annotated:
        base, *limits = get_args(annotation)
        return " ".join([type_name(base), *map(_limit, limits)])
    return (
        annotation.__name__
        if isinstance(annotation, type) and not get_args(annotation)
        else (str(annotation).replace("typing.", ""))
    )


def _limit(constraint: object) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    bounds = {sign: getattr(constraint, name, None) for name, sign in signs.items()}
    shown = [f"{sign} {bound}" for sign, bound in bounds.items() if bound is not None]
    return " ".join(shown) or repr(constraint)


class Given(dict[str, Any]):
    """Options as they were given; `typed` has the text of those that a command line gave."""

    def __init__(self, options: Mapping[str, Any], typed: Mapping[str, str]) -> None:
        super().__init__(options)
        self.typed = typed


def checked(
    check: Callable[[bytes], T], table: dict[str, Any], typed: Mapping[tuple[str | int, ...], str]
) -> T:
    """Return what `check` makes of a table as JSON; text is what was typed where it takes text.

    1_000 on a command line is a number, but the name of a folder is `1_000`. The table is changed.

    typed: what a command line gave, by its place in the table

    Raises what `check` does.
    """
    from pydantic import ValidationError
    from pydantic_core import to_json

    try:
        return check(to_json(table, inf_nan_mode="constants"))
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)
        texts = [fault["loc"] for fault in faults if fault["type"] == "string_type"]
    for place in texts:
        if place in typed:
            *parents, last = place
            here: Any = table
            for part in parents:
                here = here[part]
            here[last] = typed[place]
    return check(to_json(table, inf_nan_mode="constants"))


def validate(target: Callable[..., Any], options: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return `options` as the types that `target` declares; `where` begins each error line.

    An integer may stand for a float, and a list for a tuple. Nothing else is converted. Raises
    PluginError for that, for unknown keys, inf and nan.
    """
    from pydantic import ValidationError

    known = parameters(target)
    try:
        return _read(known, dict(options), options)
    except ValidationError as error:
        raise PluginError(explain(error, where, lambda path: known)) from error


def build(target: Callable[..., T], given: Mapping[str, Any], where: str, *args: Any) -> T:
    """Validate the options of any component and call it with `args` and them.

    A ValueError of its own (a size it can't be built for, say) becomes a PluginError.
    """
    validated = validate(target, given, where)
    try:
        with guard.named(f"the construction of {getattr(target, '__qualname__', target)}, {where}"):
            return target(*args, **validated)
    except ValueError as error:
        raise PluginError(f"{where}: {error}") from error


def _read(
    known: Mapping[str, inspect.Parameter], table: dict[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    typed = options.typed if isinstance(options, Given) else {}
    return checked(_adapter(known).validate_json, table, {(key,): typed[key] for key in typed})


def complete(target: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return `options` and, for those left out, the defaults, as plain TOML values.

    None has no place in TOML and is left out: it is the default wherever it is allowed.
    """
    from pydantic_core import to_jsonable_python

    known, table = parameters(target), dict(options)
    if isinstance(options, Given):
        _read(known, table, options)  # which puts in what was typed
    defaults = {
        name: parameter.default
        for name, parameter in known.items()
        if isinstance(parameter.default, str | int | float | bool | list | tuple | dict)
    }
    resolved = to_jsonable_python({**defaults, **table})
    return {name: value for name, value in resolved.items() if value is not None}


def explain(
    error: ValidationError, where: str, known: Callable[[tuple[str | int, ...]], Iterable[str]]
) -> str:
    """Return a line for each fault: file, key path, what was expected, did you mean.

    `known(path)` names the keys that the table at `path` may have. What was given is cut short,
    and so are more than twenty lines; control characters are escaped.
    """
    lines = []
    for fault in error.errors(include_url=False)[:MOST_FAULTS]:
        path = fault["loc"]
        key = shown(".".join(map(str, path)))
        place = f"{where}: {key}" if key else where
        match fault["type"]:
            case "extra_forbidden":
                hint = did_you_mean(shown(str(path[-1])), known(path[:-1]))
                lines.append(f"{place}: unknown key.{hint}")
            case "unavailable":
                lines.append(f"{place}: {shown(fault['msg'], 1000)}")
            case "missing":
                lines.append(f"{place}: missing; it has no default")
            case _:
                expected = shown(fault["msg"].removeprefix("Input should be "), 1000)
                lines.append(
                    f"{place}: expected {expected}, got {shown(_SHORT.repr(fault['input']))}"
                )
    if error.error_count() > MOST_FAULTS:
        lines.append(f"{where}: and {error.error_count() - MOST_FAULTS} more")
    return "\n".join(lines)


def _adapter(known: Mapping[str, inspect.Parameter]) -> TypeAdapter[dict[str, Any]]:
    from typing import Required

    from pydantic import TypeAdapter
    from typing_extensions import TypedDict

    keys = {
        name: Required[option.annotation] if option.default is option.empty else option.annotation
        for name, option in known.items()
    }
    make: Any = TypedDict  # its keys are known at run time only
    table = make("table", keys, total=False)
    table.__pydantic_config__ = _STRICT
    return TypeAdapter(table)
