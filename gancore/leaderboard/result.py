"""The result of a board: leaderboard.json as a value, read, checked and written here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from gancore.files.reading import read_json
from gancore.files.stored import Number, Whole
from gancore.files.writing import write_text
from gancore.leaderboard.board import Budget
from gancore.leaderboard.statistics import Comparison, Part, Summary
from gancore.scoring.protocol import FeatureSpace

FORMAT: Literal[1] = 1
"""Of leaderboard.json."""

LARGEST = 64 << 20
"""Bytes of leaderboard.json; ours have forty thousand."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}$")]


class Values(Summary):
    """One score of an entry: a value a seed, and what is shown of all."""

    values: tuple[Number, ...] = Field(max_length=1000)
    seeds: tuple[Whole, ...] = Field(max_length=1000)

    @model_validator(mode="after")
    def _one_each(self) -> Self:
        if not len(set(self.seeds)) == len(self.seeds) == len(self.values):
            raise PydanticCustomError("unavailable", "expected different seeds, a value for each")
        return self


class EntryScore(Comparison, Values):
    """One score of an entry, and how it compares with the baseline's."""


class EntryCost(Part):
    """What an entry's critic update costs, as `gancore.cost.Cost`; empty where it is unknown."""

    seconds: Number | None = None
    flops: Number | None = None
    operations: Number | None = None
    memory: Whole | None = None
    time_ratio: Number | None = None
    flops_ratio: Number | None = None
    memory_ratio: Number | None = None


class Failure(Part):
    """A run without scores, and why."""

    seed: Whole
    error: str


class RunNote(Part):
    """What a run noticed."""

    seed: Whole
    note: str


class EntryResult(Part):
    """A row of the table.

    seconds    of each finished run
    missing    seeds that are not finished
    collapsed  seeds whose samples are all alike
    """

    name: Name
    label: str = ""
    plugins: dict[str, str] = Field(default={})
    generator_updates: Whole = 0
    critic_updates: Whole = 0
    seconds: tuple[Number, ...] = ()
    failed: tuple[Failure, ...] = ()
    missing: tuple[Whole, ...] = ()
    collapsed: tuple[Whole, ...] = ()
    notes: tuple[RunNote, ...] = ()
    scores: dict[Name, EntryScore] = Field(max_length=100)
    cost: EntryCost = EntryCost()


class Machine(Part):
    """What the runs ran on: of an environment, what is not one run's own."""

    versions: dict[str, str] = Field(default={})


class Decisions(Part):
    """How verdicts came about: the method of each score, None where none was decided."""

    alpha: Number | None = None
    power: Number | None = None
    tests: dict[Name, str | None] = Field(default={})


class Ranked(NamedTuple):
    """An entry that has the score that ranks, with it."""

    entry: EntryResult
    score: EntryScore


class Result(Part):
    """leaderboard.json: the entries from best to worst, and how they were made.

    metric    the score that ranks; empty where no run has one
    protocol  what the runs' protocols have in common: all but the seed
    """

    format: Literal[1]
    metric: str = Field(pattern=r"^[A-Za-z0-9_.+-]{0,64}$")
    higher_is_better: tuple[Name, ...] = Field(max_length=100)
    baseline: str = ""
    entries: tuple[EntryResult, ...] = Field(min_length=1, max_length=1000)
    protocol: FeatureSpace
    environment: Machine = Machine()
    budget: Budget | None
    seeds: tuple[Whole, ...] = ()
    threads: Whole = 0
    statistics: Decisions = Decisions()

    @model_validator(mode="after")
    def _different(self) -> Self:
        if len({entry.name for entry in self.entries}) < len(self.entries):
            raise PydanticCustomError("unavailable", "two entries have one name")
        return self

    def ranked(self) -> list[Ranked]:
        """Return the entries that have the score that ranks, from best to worst."""
        return [
            Ranked(entry, entry.scores[self.metric])
            for entry in self.entries
            if self.metric in entry.scores
        ]

    def other_metrics(self) -> list[str]:
        """Return the scores but the one that ranks."""
        keys = dict.fromkeys(key for entry in self.entries for key in entry.scores)
        return [key for key in keys if key != self.metric]

    def has_intervals(self) -> bool:
        """Return whether some entry has more than one run with the score that ranks."""
        return any(len(score.values) > 1 for _, score in self.ranked())

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read a leaderboard.json. Raises InputError for anything else."""
        remedy = "This is no leaderboard.json of this version: gan leaderboard BOARD makes one"
        return read_json(path, cls, remedy, largest=LARGEST)

    def write(self, path: Path) -> None:
        """Write leaderboard.json, whole or not at all."""
        write_text(path, json.dumps(self.table(), indent=2, ensure_ascii=False) + "\n")
