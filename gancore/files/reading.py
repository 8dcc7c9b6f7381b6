"""Reading files of strangers: what is a regular file, within limits, refused in one clear line."""

from __future__ import annotations

import errno
import hashlib
import math
import os
import re
import stat
import tomllib
from collections.abc import Callable, Container, Iterator, Mapping
from datetime import date, time
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from gancore.errors import InputError, RecipeError
from gancore.options import explain
from gancore.text import shown

Model = TypeVar("Model", bound=BaseModel)

LARGEST = 256 << 10
"""Bytes of a TOML file; the largest of ours have three thousand."""

DEEPEST = 32
"""Tables and lists in one another; recipes have three."""

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor, end a line or turn the direction of writing."""

BLOCK = 1 << 20
"""Bytes that are read at a time."""

LONGEST = 1 << 20
"""Bytes of a line that is read; ours have two thousand."""

PLAIN = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_BINARY"))
"""Flags by which opening waits for nothing, should a file have become something else."""

KINDS: dict[str, Callable[[int], bool]] = {
    "a FIFO": stat.S_ISFIFO,
    "a socket": stat.S_ISSOCK,
    "a device": lambda mode: stat.S_ISCHR(mode) or stat.S_ISBLK(mode),
}

PIPE = re.compile(r"/dev/stdin|/(?:dev|proc/self)/fd/(\d{1,9})")
"""Where a shell puts what it pipes into a command."""

REMEDIES = {
    **dict.fromkeys((errno.EACCES, errno.EPERM), "Get the rights to it"),
    **dict.fromkeys((errno.EMFILE, errno.ENFILE), "End other programs, or raise ulimit -n"),
    errno.ELOOP: "Remove the link that leads to itself",
    **dict.fromkeys((errno.EIO, errno.ESTALE, errno.EAGAIN), "Try again, or see to its disk"),
}


def opened(path: Path) -> BufferedReader:
    """Open a regular file for reading. Raises OSError, for anything else too.

    A FIFO, socket or device is not even opened: that may wait for ever, or set something off. What
    takes the place of the file in between is seen as well.
    """
    _refuse_odd(path, os.stat(path))
    handle = os.open(path, os.O_RDONLY | PLAIN)
    try:
        _refuse_odd(path, os.fstat(handle))
    except OSError:
        os.close(handle)
        raise
    return os.fdopen(handle, "rb")


def _refuse_odd(path: Path, about: os.stat_result) -> None:
    if stat.S_ISDIR(about.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    for kind, is_one in KINDS.items():
        if is_one(about.st_mode):
            raise OSError(errno.ENXIO, f"it is {kind}, and no regular file", str(path))


def is_there(path: Path) -> bool:
    """Whether there is anything of this name. Raises InputError where that can't be told."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise InputError(unreadable(error, path)) from error
    return True


def unreadable(error: OSError, place: object) -> str:
    """Return what to say of a file or folder that the system does not let be read."""
    remedy = REMEDIES.get(error.errno or 0)
    return f"{shown(str(place), 4096)}: can't be read: {error.strerror or error}" + (
        f". {remedy}" if remedy else ""
    )


def expanded(path: str) -> Path:
    """Return a path with its ~ or ~USER put out in full. Raises InputError for no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        user = shown(Path(path).parts[0])
        raise InputError(
            f"{shown(path, 4096)}: {user} has no home here. Write the folder out, or ./{user} for "
            "one of that name"
        ) from error


def read_toml(path: Path, *, pipe: bool = False) -> dict[str, Any]:
    """Read a TOML file. Raises RecipeError with the file, line and column.

    pipe: whether it may be one under /dev/fd, /proc/self/fd or /dev/stdin, which the shell made

    So are files refused that no recipe or board needs: large ones, deep nesting, absurd numbers,
    control characters in keys and strings.
    """
    where = shown(str(path), 4096)
    try:
        text = read_text(path, LARGEST, pipe=pipe)
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


def read_json(path: Path, model: type[Model], remedy: str, *, largest: int) -> Model:
    """Return what a JSON file holds, as the model has it, in so many bytes at most.

    Raises InputError with the file, what was expected and the remedy for any other.
    """
    where = shown(str(path), 4096)
    text = read_text(path, largest)
    try:
        return model.model_validate_json(text)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_input=False)
        if first["type"] == "json_invalid":
            raise InputError(f"{where}: is no JSON: {shown(first['msg'])}. {remedy}") from error
        raise InputError(f"{explain(error, where, lambda path: ())}. {remedy}") from error


def read_text(path: Path, largest: int, *, errors: str = "strict", pipe: bool = False) -> str:
    """Read a UTF-8 file of so many bytes at most; Windows' mark of one is none of its text.

    errors: what is made of bytes that are none, as `bytes.decode` has it
    pipe: as `read_toml` has it

    Raises InputError.
    """
    where = shown(str(path), 4096)
    try:
        return read_bytes(path, largest, pipe=pipe).decode("utf-8-sig", errors)
    except OSError as error:
        raise InputError(unreadable(error, path)) from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8 text: {error.reason}") from error
    except ValueError as error:  # a name with a null byte
        raise InputError(f"{where}: can't be read: {error}") from error


def read_bytes(path: Path, largest: int, *, pipe: bool = False) -> bytes:
    """Read a regular file of so many bytes at most. Raises OSError; InputError for a larger one.

    pipe: as `read_toml` has it
    """
    with (_opened_pipe(path) if pipe else None) or opened(path) as file:
        content = bytearray()
        while block := file.read(min(BLOCK, largest + 1 - len(content))):
            content += block
    if block is None:  # some of the kernel's have nothing to tell yet
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN), str(path))
    if len(content) > largest:
        raise InputError(too_large(path, largest))
    return bytes(content)


def _opened_pipe(path: Path) -> BufferedReader | None:
    """Return the pipe that a shell has opened for this process under such a name, if it is one."""
    match = PIPE.fullmatch(str(path))
    if match is None:
        return None
    handle = int(match[1] or 0)
    return os.fdopen(os.dup(handle), "rb") if stat.S_ISFIFO(os.fstat(handle).st_mode) else None


def read_end(path: Path, count: int) -> bytes:
    """Read the last bytes of a regular file, so many at most. Raises OSError."""
    with opened(path) as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - count))
        return file.read(count) or b""


def read_lines(path: Path, largest: int) -> Iterator[bytes]:
    """Yield the whole lines of a regular file of so many bytes at most, one at a time.

    A last line that does not end is left out, and what of a line is over a mebibyte.
    Raises InputError.
    """
    try:
        with opened(path) as file:
            left, is_new = largest, True
            while line := file.readline(LONGEST):
                left -= len(line)
                if left < 0:
                    raise InputError(too_large(path, largest))
                is_whole = line.endswith(b"\n")
                if is_new and (is_whole or len(line) == LONGEST):
                    yield line.removesuffix(b"\n")
                is_new = is_whole
    except OSError as error:
        raise InputError(unreadable(error, path)) from error


def sha256(path: Path, largest: int) -> str:
    """Hash a regular file of so many bytes at most. Raises OSError; InputError for a larger one."""
    digest, left = hashlib.sha256(), largest
    with opened(path) as file:
        if os.fstat(file.fileno()).st_size > largest:  # which may take hours to read
            raise InputError(too_large(path, largest))
        while block := file.read(min(BLOCK, left + 1)):
            left -= len(block)
            if left < 0:  # it grows
                raise InputError(too_large(path, largest))
            digest.update(block)
    return digest.hexdigest()


def too_large(path: object, largest: int) -> str:
    """Return what to say of a file that is over a limit in bytes."""
    limit = f"{largest >> 30} GiB" if largest >= 1 << 31 else f"{largest >> 10} KiB"
    return f"{shown(str(path), 4096)}: over the limit of {limit} for such a file"


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
            left += [(f"{path}.{key}".lstrip("."), inner, depth + 1) for key, inner in items]


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
