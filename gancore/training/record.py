"""A record: the numbers of one generator update, a line of metrics.jsonl."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern

LARGEST = 1e100
"""No number of a record comes near to it, and figures can be drawn of all below it."""

LONGEST_NOTE = 1000
"""Characters of a note."""


@dataclass(frozen=True)
class Record:
    """The numbers of one generator update.

    step     the generator updates made so far
    seconds  of training so far
    values   every number of the line by its key, step and seconds included
    notes    sentences on the run, in its last record
    """

    step: int
    seconds: float
    values: Mapping[str, float]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, float], notes: tuple[str, ...] = ()) -> Record:
        """Return the record of these numbers, step and seconds among them."""
        return cls(int(values["step"]), values["seconds"], values, notes)

    @classmethod
    def parse(cls, line: str) -> Record:
        """Return the record of a line. Raises ValueError for a line that holds none.

        Plain code checks it, as a board reads many records.
        """
        try:
            table: object = json.loads(line)
        except RecursionError as error:
            raise ValueError("nested too deep") from error
        if not isinstance(table, dict):
            raise ValueError("expected a table")
        notes = table.pop("notes", [])
        if not (
            {"step", "seconds"} <= table.keys()
            and type(table["step"]) is int
            and all(
                type(value) in (int, float) and abs(value) < LARGEST and key.isprintable()
                for key, value in table.items()
            )
            and isinstance(notes, list)
            and all(isinstance(note, str) for note in notes)
            and all(len(note) <= LONGEST_NOTE and note.isprintable() for note in notes)
        ):
            raise ValueError("expected finite numbers, step and seconds among them")
        return cls.of({intern(key): value for key, value in table.items()}, tuple(notes))

    def line(self) -> str:
        """Return the record as a line of metrics.jsonl, without its end."""
        notes = {"notes": list(self.notes)} if self.notes else {}
        return json.dumps({**self.values, **notes})
