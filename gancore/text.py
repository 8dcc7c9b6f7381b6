"""Text: words from elsewhere made harmless, and the names that a mistyped one may have meant."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable
from difflib import get_close_matches


def shown(text: str, longest: int = 100) -> str:
    """Return text from elsewhere as a message may hold it: cut short, control characters escaped.

    Nothing of it then moves a terminal's cursor, or ends the line.
    """
    cut = text if len(text) <= longest else f"{text[:longest]}…"
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in cut
    )


def printable(text: str) -> str:
    """Return lines as a terminal may have them, whole, their control characters escaped."""
    return "\n".join(shown(line, len(line)) for line in text.split("\n"))


def quoted(word: str) -> str:
    """Return a word for a POSIX shell, in printable characters, whatever is in it."""
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
    """Return the two known names at most that `wrong` may have been meant to be."""
    return get_close_matches(wrong, sorted(known), n=2, cutoff=0.6)
