"""What a card is shown as: a table, card.json, card.md, card.png."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from gancore.cli.tables import console, styled
from gancore.errors import InputError
from gancore.files.writing import replacing, write_text
from gancore.report.style import our_style
from gancore_truth.card import Card
from gancore_truth.columns import Cell, Column, cells, columns

STYLES = {"best": "bold green", "tie": "green", "": ""}
MARKS = {"best": "*", "tie": "=", "": ""}
LEGEND = "* best of its column; = no different from it at 5 %; ± half a 95 % interval"
FILES = ("card.json", "card.md", "card.png")


def refuse_taken(folder: Path) -> None:
    """Refuse a folder in which something else than a card would be replaced. Raises InputError."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is no folder: name another")
    there = [name for name in FILES if (folder / name).exists()]
    if there and "card.json" not in there:
        raise InputError(f"{folder} has a {there[0]} that is no card's: name another --out")


def show(card: Card) -> None:
    """Print the card: rows are regularizers. What does not fit beside goes below."""
    out = console()
    notes: dict[str, int] = {}
    names = [line.row.name for line in card.lines]
    shown = [(column, _texts(column, card, notes)) for column in columns(card)]
    for group in _groups(out, names, shown):
        table = Table(title_justify="left", caption_justify="left")
        table.add_column("")
        for column, _ in group:
            table.add_column(styled(column.title), justify="right")
        for number, name in enumerate(names):
            texts = [column_cells[number] for _, column_cells in group]
            table.add_row(styled(name), *(styled(text, style) for text, style in texts))
        out.print(table)
    out.print(styled(_below(card), "dim"), soft_wrap=True)
    for note, number in notes.items():
        out.print(styled(f"[{number}] {note}", "dim"), soft_wrap=True)


def _texts(column: Column, card: Card, notes: dict[str, int]) -> list[tuple[str, str]]:
    """Return each cell's text, with its mark or the number of its note, and its style."""
    return [(_marked(cell, notes), STYLES[cell.mark]) for cell in cells(column, card.lines)]


def _marked(cell: Cell, notes: dict[str, int]) -> str:
    if not cell.why:
        return f"{cell.text}{MARKS[cell.mark] or ' '}"
    return f"{cell.text} [{notes.setdefault(cell.why, len(notes) + 1)}]"


Shown = tuple[Column, list[tuple[str, str]]]


def _groups(out: Console, names: Sequence[str], shown: Sequence[Shown]) -> Iterator[list[Shown]]:
    """Yield as many columns as a line has room for."""
    first = max(map(cell_len, names)) + 4
    group: list[Shown] = []
    width = first
    for column, texts in shown:
        words = [*column.title.split("\n"), *(text for text, _ in texts)]
        wide = max(map(cell_len, words)) + 3
        if group and width + wide > out.width:
            yield group
            group, width = [], first
        group.append((column, texts))
        width += wide
    if group:
        yield group


def _below(card: Card) -> str:
    training = card.settings.training
    return (
        f"{card.settings.seeds} seeds; {training.updates} updates of {training.batch} samples; "
        f"Adam {training.lr:g}; a critic of {training.depth} × {training.width}\n{LEGEND}"
    )


def write(card: Card, folder: Path) -> None:
    """Write card.json, card.md and card.png. Raises InputError where they can't be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "card.json", json.dumps(card.table(), indent=1) + "\n")
        write_text(folder / "card.md", markdown(card))
        _draw(card, folder / "card.png")
    except OSError as error:
        raise InputError(f"{folder} can't be written to: {error.strerror}") from error


def markdown(card: Card) -> str:
    """Return the card as a Markdown table, columns as rows: it has more columns than fit."""
    notes: dict[str, int] = {}
    names = [line.row.name for line in card.lines]
    lines = ["| | " + " | ".join(map(_escaped, names)) + " |", "|---" * (len(names) + 1) + "|"]
    for column in columns(card):
        texts = [text.strip() for text, _ in _texts(column, card, notes)]
        title = ", ".join(column.title.split("\n"))
        lines.append("| " + " | ".join([title, *map(_escaped, texts)]) + " |")
    below = [*_below(card).split("\n"), *(f"[{number}] {note}" for note, number in notes.items())]
    return "\n".join([*lines, "", *(f"{_escaped(line)}  " for line in below)]) + "\n"


def _escaped(text: str) -> str:
    return "".join(f"\\{letter}" if letter in "\\|*_<>[]`" else letter for letter in text)


def _draw(card: Card, path: Path) -> None:
    """Draw each column of which one value is better than another, a point a row."""
    drawn = [column for column in columns(card) if column.badness]
    names = [line.row.name for line in card.lines]
    with our_style():
        from matplotlib.figure import Figure

        wide = 4
        high = -(-len(drawn) // wide)
        size = (3.2 * wide, (1.0 + 0.28 * len(names)) * high)
        figure = Figure(figsize=size, layout="constrained")
        for number, column in enumerate(drawn):
            axes = figure.add_subplot(high, wide, number + 1)
            for row, line in enumerate(card.lines):
                measure = column.get(line)
                if measure is not None:
                    axes.errorbar(measure.value, row, xerr=measure.half, fmt="o", color="C0")
            axes.set_yticks(range(len(names)), names if number % wide == 0 else [""] * len(names))
            axes.set_ylim(len(names) - 0.5, -0.5)
            axes.set_title(column.title, fontsize="small")
            if "estimate" in column.title:
                axes.set_xscale("log")
        with replacing(path) as file:
            figure.savefig(file, format="png", dpi=100)
