"""Reading files of strangers: TOML, JSON and text, within limits, refused in one clear line."""

from __future__ import annotations

import json
import math
import re
import tomllib
from collections.abc import Container, Mapping
from datetime import date, time
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from gancore.errors import InputError, RecipeError
from gancore.options import explain, shown

LARGEST = 256 << 10
"""Bytes of a TOML file; the largest of ours have three thousand."""

DEEPEST = 32
"""Tables and lists in one another; recipes have three."""

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor, end a line or turn the direction of writing."""


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises RecipeError with the file, line and column.

    So are files refused that no recipe or board needs: large ones, deep nesting, absurd numbers,
    control characters in keys and strings.
    """
    where = shown(str(path), 4096)
    try:
        text = read_text(path, LARGEST)
    except InputError as error:
        raise RecipeError(str(error)) from error
    if _has_deep_key(text):
        raise RecipeError(f"{where}: a key of over {DEEPEST} parts. Write it flatter")
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}:{shown(_toml_place(error, text), 300)}") from error
    except (ValueError, RecursionError) as error:
        raise RecipeError(f"{where}: an absurd number, or absurdly deep nesting") from error
    refuse_absurd(table, where)
    return table


def read_json(path: Path, model: type[BaseModel], remedy: str, *, largest: int) -> dict[str, Any]:
    """Read a JSON file that has at least what the model says, in so many bytes at most.

    Raises InputError with the file, what was expected and the remedy for any other.
    """
    where = shown(str(path), 4096)
    text = read_text(path, largest)
    try:
        model.model_validate_json(text)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_input=False)
        if first["type"] == "json_invalid":
            raise InputError(f"{where}: is no JSON: {shown(first['msg'])}. {remedy}") from error
        raise InputError(f"{explain(error, where, lambda path: ())}. {remedy}") from error
    found: dict[str, Any] = json.loads(text)
    return found


def read_text(path: Path, largest: int, *, errors: str = "strict") -> str:
    """Read a UTF-8 file of so many bytes at most; Windows' mark of one is none of its text.

    errors: what is made of bytes that are none, as `bytes.decode` has it

    Raises InputError.
    """
    where = shown(str(path), 4096)
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise InputError(f"{where}: over the limit of {largest >> 10} KiB for such a file")
        return content.decode("utf-8-sig", errors)
    except OSError as error:
        raise InputError(f"{where}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8 text: {error.reason}") from error
    except ValueError as error:  # a name with a null byte
        raise InputError(f"{where}: can't be read: {error}") from error


def refuse_absurd(table: Mapping[str, Any], where: str, *, typed: Container[str] = ()) -> None:
    """Raise RecipeError for what no table of a recipe needs, before anything is made of it.

    That is: deep nesting, huge numbers, inf and nan, dates and times, control characters in keys
    and strings.

    typed: key paths where inf and nan may be, as what was typed there may be text
    """
    left: list[tuple[str, Any, int]] = [("", table, 0)]
    while left:
        path, value, depth = left.pop()
        if depth > DEEPEST:
            raise RecipeError(f"{where}: {shown(path)}: nested over {DEEPEST} deep")
        is_typed = path in typed and isinstance(value, float)
        if not is_typed and (fault := _absurdity(path, value)):
            raise RecipeError(f"{where}: {shown(path)}: {fault}")
        if isinstance(value, Mapping | list | tuple):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            left += [(f"{path}.{key}".lstrip("."), each, depth + 1) for key, each in items]


def _absurdity(path: str, value: Any) -> str | None:
    """Return what is wrong with a key path or a value that could stand nowhere."""
    if CONTROLS.search(path):
        return "a key with control characters. Write it without"
    if isinstance(value, int) and value.bit_length() > 1024:
        return "expected a number of a sane size"
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, got {value}"
    if isinstance(value, date | time):
        return f"expected no date or time, got {value}. Put quotes around it to make it text"
    if isinstance(value, str) and CONTROLS.search(value):
        return f"expected text without control characters, got {shown(repr(value))}"
    return None


_NO_KEYS = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}|\'{3}.*?\'{3,5}|"(?:\\.|[^"\\\n])*"|\'[^\'\n]*\'|#[^\n]*', re.DOTALL
)
"""The strings and comments of TOML."""


def _has_deep_key(text: str) -> bool:
    """Whether a key has absurdly many parts, which tomllib takes minutes to read."""
    bare = _NO_KEYS.sub("", text)
    return any(part.count(".") > DEEPEST for part in re.split(r"[=,\[\]{}\n]", bare))


def _toml_place(error: tomllib.TOMLDecodeError, text: str) -> str:
    """Return `line:column: message`; what is missing at the end is missing in the last line."""
    place = r"(?s)(.*) \(at (?:line (\d+), column (\d+)|end of document)\)"
    match = re.fullmatch(place, str(error))
    if match is None:
        return f"1:1: {error}"
    lines = text.splitlines() or [""]
    return f"{match[2] or len(lines)}:{match[3] or len(lines[-1]) + 1}: {match[1]}"
