"""The pickles that CIFAR-10 is published as, read without calling anything that they name."""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gancore.text import shown

MOST_OPCODES = 1 << 18
"""A published file has 30 thousand."""

LONGEST_KEY = 100

NAMES = {
    *(("numpy", name) for name in ("_reconstruct", "_frombuffer", "ndarray", "dtype")),
    ("_codecs", "encode"),
}
"""What a pickled array names, by package: NumPy's modules have been called several things."""

CONSTANTS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BYTEARRAY8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
}


@dataclass
class Made:
    """What would be made by a call."""

    call: Any
    arguments: Any
    state: Any = None


def unpickled(content: bytes) -> Any:
    """Return what a pickle holds: lists, tables, tuples, text, numbers, and `Made` for calls.

    Nothing of it is called, hashed, compared or printed but the short texts that are keys of
    tables, as that takes forever with a few tuples in one another. Old strings come as text.
    Raises ValueError and others for what no file of CIFAR-10 has.
    """
    stack: list[Any] = []
    outer: list[list[Any]] = []
    memo: dict[int, Any] = {}
    argument: Any
    for number, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if number == MOST_OPCODES:
            raise ValueError(f"over {MOST_OPCODES:,} opcodes")
        items: list[Any] = []
        if opcode.name in ("LIST", "TUPLE", "DICT", "APPENDS", "SETITEMS"):  # from the mark on
            stack, items = outer.pop(), stack
        match opcode.name:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                outer.append(stack)
                stack = []
            case "NONE":
                stack.append(None)
            case "NEWTRUE" | "NEWFALSE" as name:
                stack.append(name == "NEWTRUE")
            case name if name in CONSTANTS:
                stack.append(argument)
            case "EMPTY_LIST" | "LIST":
                stack.append(items)
            case "EMPTY_TUPLE" | "TUPLE":
                stack.append(tuple(items))
            case "EMPTY_DICT" | "DICT":
                stack.append(_filled({}, items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                count = int(name[-1])
                stack[-count:] = [tuple(stack[-count:])]
            case "APPEND":
                last = stack.pop()
                stack[-1].append(last)
            case "APPENDS":
                stack[-1].extend(items)
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _filled(stack[-1], [key, value])
            case "SETITEMS":
                _filled(stack[-1], items)
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(_named(*argument.split(" ")))
            case "STACK_GLOBAL":
                name = stack.pop()
                stack.append(_named(stack.pop(), name))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(_made(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                stack[-1].state = state
            case "STOP":
                return stack.pop()
            case name:
                raise ValueError(f"the opcode {name}, which no file of CIFAR-10 has")


def pixels(array: Any) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a pickled array. Raises ValueError and others for any but of uint8 in C order."""
    match array:
        case Made("_reconstruct", _, (_, shape, dtype, False, data)):
            pass
        case Made("_frombuffer", (data, dtype, shape, "C")):
            pass
        case _:
            raise ValueError("data that is no array in C order")
    match dtype:
        case Made("dtype", ("u1" | "|u1" | "uint8", *_)):
            content = data.encode("latin-1") if isinstance(data, str) else data
            return np.frombuffer(content, np.uint8).reshape(shape)
    raise ValueError("an array that is not uint8")


def _filled(table: dict[Any, Any], items: Sequence[Any]) -> dict[Any, Any]:
    """Put keys and values, which take turns, into a table."""
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str | bytes) or len(key) > LONGEST_KEY:
            raise ValueError("a table with keys other than short texts")
        table[key] = value
    return table


def _named(module: Any, name: Any) -> str:
    """Return the name of a function or class that an array needs, and refuse any other."""
    if not isinstance(module, str) or not isinstance(name, str):
        raise ValueError("a name that is no text")
    if (module.partition(".")[0], name) not in NAMES:
        raise ValueError(f"a call of {shown(f'{module}.{name}')}, refused")
    return name


def _made(call: Any, arguments: Any) -> Any:
    # what Python 3 calls to have bytes in a pickle that Python 2 can read
    return arguments[0] if call == "encode" else Made(call, arguments)
