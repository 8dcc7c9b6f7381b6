"""What several commands print."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from gancore.text import printable, shown

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from gancore.scoring.protocol import Scores

NARROWEST = 40
"""Columns that a table has at least."""


def lines(text: str) -> list[str]:
    """Return text from elsewhere line by line, as a terminal may have it."""
    return [shown(line, 4096) for line in text.split("\n")]


def tell(text: str, *, err: bool = False) -> None:
    """Print text line by line, whatever it quotes: a terminal obeys control characters."""
    click.echo(printable(text), err=err)


def styled(text: str, style: str = "") -> Text:
    """Return text from elsewhere for rich, which then takes none of it for markup or emoji."""
    from rich.text import Text

    return Text("\n".join(lines(text)), style)


def as_json(value: Any) -> str:
    """Return JSON that a terminal may have: letters as they are, control characters escaped."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(
        letter if letter.isprintable() or letter == "\n" else json.dumps(letter)[1:-1]
        for letter in text
    )


def console() -> Console:
    """Return what prints on standard output: text as it is, with some width whatever COLUMNS is."""
    from rich.console import Console

    made = Console(file=sys.stdout, highlight=False, markup=False, emoji=False)
    made.width = max(made.width, NARROWEST)
    return made


def show_scores(scores: Scores) -> None:
    """Print scores by the names that their protocol allows, the protocol, and notes on the run."""
    from rich.text import Text

    from gancore.scoring.protocol import shown_protocol, shown_scores

    out = console()
    for name, value in shown_scores(scores).items():
        line = Text.assemble(styled(name, "bold"), "  ", styled(value, "cyan"))
        out.print(line, soft_wrap=True)
    out.print(styled(shown_protocol(scores.protocol), "dim"), soft_wrap=True)
    for note in scores.notes:
        out.print(styled(f"note: {note}", "yellow"), soft_wrap=True)
