"""Text: strangers' words made harmless for terminals, and suggestions for mistyped names."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches


def shown(text: str, longest: int = 100) -> str:
    """Return a stranger's text for a message: cut short, its control characters escaped.

    It can't move a terminal's cursor, nor end the line.
    """
    cut = text if len(text) <= longest else f"{text[:longest]}…"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in cut
    )


def printable(text: str) -> str:
    """Return lines of text with their control characters escaped; nothing is cut."""
    return "\n".join(shown(line, len(line)) for line in text.split("\n"))


def quoted(word: str) -> str:
    """Return a word quoted for a POSIX shell; characters that don't print are escaped."""
    if word.isprintable():
        return shlex.quote(word)
    escaped = "".join(
        letter if letter.isprintable() and letter not in "\\%'-" else _octal(letter)
        for letter in word
    )
    return f"\"$(printf '{escaped}')\""


def _octal(character: str) -> str:
    return "".join(f"\\{byte:03o}" for byte in os.fsencode(character))


def snake_case(name: str) -> str:
    """Return the name of a class as that of a plugin: `GradientPenalty` is `gradient_penalty`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return `" Did you mean 'x'?"`, or the known names if none is close, or nothing."""
    names = sorted(known)
    if close := close_to(wrong, names):
        return f" Did you mean {' or '.join(map(repr, close))}?"
    return f" Known: {', '.join(names)}." if names else ""


def close_to(wrong: str, known: Iterable[str]) -> list[str]:
    """Return the known names, two at most, that are most like `wrong`."""
    return get_close_matches(wrong, sorted(known), n=2, cutoff=0.6)
