"""The run folder: where everything of a run is kept, and how it is read back."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import tomli_w

from gancore.entrypoints import PluginFile
from gancore.errors import InputError
from gancore.files.reading import (
    LONGEST,
    is_there,
    read_end,
    read_json,
    read_lines,
    read_toml,
    unreadable,
)
from gancore.files.stored import Json
from gancore.files.writing import delete, growing, replacing, sync, write_bytes, write_text
from gancore.provenance.environment import EARLIER, Environment, Stretch
from gancore.provenance.identity import MadeOf
from gancore.recipe import Recipe
from gancore.scoring.protocol import Scores
from gancore.text import shown
from gancore.training.record import Record

LARGEST = 1 << 20
"""Bytes of scores.json and environment.json; ours have two thousand."""

LARGEST_METRICS = 1 << 30
"""Bytes of metrics.jsonl: some three million records."""

TRAIN_AGAIN = "Copy the run folder anew, or train again"
BOARD_AGAIN = "Run its board again: gan leaderboard"


class _Inside:
    """The path of what has this name in a run folder."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, run: Run, owner: type[Run]) -> Path:
        return run.path / self._name


@dataclass(frozen=True)
class Run:
    """A run folder.

    Holds recipe.toml, environment.json, metrics.jsonl, curves.png, samples/, checkpoints/ and
    scores.json; plugin-files/ where --plugin-file was given; report.html and samples.gif once
    `gan report` has made them.
    """

    path: Path
    recipe_path = _Inside("recipe.toml")
    """The resolved recipe."""
    environment_path = _Inside("environment.json")
    """What the run ran on."""
    expected_path = _Inside("expected.json")
    """What a board expects the run to be made of, where it is one of a board."""
    metrics_path = _Inside("metrics.jsonl")
    """One record a line."""
    curves_path = _Inside("curves.png")
    """The records as a picture."""
    scores_path = _Inside("scores.json")
    """The final scores and their protocol."""
    report_path = _Inside("report.html")
    """Scores, pictures and recipe on one page."""
    animation_path = _Inside("samples.gif")
    """The sample grids as an animation."""
    plugin_files = _Inside("plugin-files")
    """Copies of the plugin files that were used. None is ever run."""
    checkpoints = _Inside("checkpoints")
    """The folder of checkpoints."""

    @classmethod
    def open(cls, path: str | Path) -> Run:
        """Return an existing run; raises InputError when the folder holds none."""
        run = cls(Path(path))
        if not is_there(run.recipe_path):
            lost = (
                ", but checkpoints: gan run RECIPE --resume --out writes it anew into that folder"
            )
            raise InputError(
                f"{path} is no run folder: it has no {run.recipe_path.name}"
                f"{lost if run.checkpoints.is_dir() else ''}"
            )
        return run

    def sample_path(self, step: int) -> Path:
        """The sample grid of a step."""
        return self.path / "samples" / f"step-{step:06d}.png"

    def read(self) -> SavedRun:
        """Read all files of the run, each once. Raises InputError for a broken one."""
        table = self.read_table()
        return SavedRun(
            run=self,
            recipe=Recipe.parse(table, shown(str(self.recipe_path), 4096)),
            table=table,
            records=tuple(self.read_records()),
            environment=self.read_environment(),
            scores=self.read_scores(),
            expected=self.read_expected(),
        )

    def read_recipe(self) -> Recipe:
        """Read the resolved recipe. Raises RecipeError."""
        return Recipe.load(self.recipe_path)

    def read_table(self) -> Mapping[str, Json]:
        """Read the resolved recipe as it stands in the file. Raises RecipeError."""
        return read_toml(self.recipe_path)

    def read_environment(self) -> Environment | None:
        """Read versions, plugins, device and the like. Raises InputError for a broken file."""
        if not is_there(self.environment_path):
            return None
        return read_json(self.environment_path, Environment, TRAIN_AGAIN, largest=LARGEST)

    def read_expected(self) -> MadeOf | None:
        """Read what a board expects data and code to be; None for a run of no board.

        Raises InputError for a broken file.
        """
        if not is_there(self.expected_path):
            return None
        return read_json(self.expected_path, MadeOf, BOARD_AGAIN, largest=LARGEST)

    def read_scores(self) -> Scores | None:
        """Read the scores; None before scoring. Raises InputError for a broken file."""
        if not is_there(self.scores_path):
            return None
        remedy = "Delete it, and score the run again: gan score RUN"
        return read_json(self.scores_path, Scores, remedy, largest=LARGEST)

    def read_records(self) -> Iterator[Record]:
        """Yield the records so far, one at a time; a last line that was cut off is left out.

        Raises InputError with the line that is broken.
        """
        for number, line in enumerate(self._lines(), 1):
            yield self._record(line, number)

    def last_record(self) -> Record | None:
        """Read the last record from the end of the file, whatever is before it.

        Raises InputError if it is broken.
        """
        if not is_there(self.metrics_path):
            return None
        try:
            end = read_end(self.metrics_path, LONGEST)
        except OSError as error:
            raise InputError(unreadable(error, self.metrics_path)) from error
        *before, line = (b"\n" + end).split(b"\n")[:-1]
        return self._record(_text(line), "last") if before else None

    def _lines(self) -> Iterator[str]:
        if is_there(self.metrics_path):
            yield from map(_text, read_lines(self.metrics_path, LARGEST_METRICS))

    def _record(self, line: str, number: int | str) -> Record:
        try:
            return Record.parse(line)
        except ValueError as error:
            raise InputError(
                f"{shown(str(self.metrics_path), 4096)}: line {number}: expected finite numbers, "
                f"step and seconds among them, got {shown(line)}. gan run --resume leaves it out"
            ) from error

    def append(self, record: Record) -> None:
        """Add a record. Raises InputError where the records are no plain file."""
        with growing(self.metrics_path) as file:
            file.write(f"{record.line()}\n".encode())

    def cut_records(self, step: int, tell: Callable[[str], None]) -> None:
        """Drop the records after a step, and the unreadable ones, the first of which is told."""
        faults, first = 0, ""
        with replacing(self.metrics_path) as file:
            for number, line in enumerate(self._lines(), 1):
                try:
                    record = self._record(line, number)
                except InputError as error:
                    faults, first = faults + 1, first or str(error)
                    continue
                if record.step <= step:
                    file.write(f"{record.line()}\n".encode())
        if faults:
            tell(first + (f", and {faults - 1:,} more" if faults > 1 else ""))

    def sync_records(self) -> None:
        """Bring the records to the disk, where a checkpoint after them will be."""
        if is_there(self.metrics_path):
            sync(self.metrics_path)

    def write_environment(self, now: Stretch, before: Environment | None, start: int) -> None:
        """Write what the run is made on from a step on, beside what it was made on before.

        A stretch under the same conditions goes on. A stretch without an update left is dropped.
        """
        earlier = [*before.earlier, before.current()] if before and start else []
        earlier = [stretch for stretch in earlier if stretch.from_step < start]
        if earlier and _is_like(earlier[-1], now):
            start = earlier.pop().from_step
        tables = [stretch.table() for stretch in earlier[-EARLIER:]]
        table = {**now.table(), "from_step": start, "earlier": tables}
        while len(json.dumps(table, indent=2)) > LARGEST and tables:
            del tables[0]
        self.write_json(self.environment_path, table)

    def write_scores(self, now: Scores, before: Scores | None) -> Scores:
        """Write the scores of a step, and return them with those that were there before.

        Those of the same step under the same protocol stay; others are replaced.
        """
        if before and (before.step, before.protocol) == (now.step, now.protocol):
            now = now.together_with(before)
        self.write_json(self.scores_path, now.table())
        return now

    def write_recipe(self, table: Mapping[str, Json]) -> None:
        """Write the resolved recipe."""
        write_text(self.recipe_path, tomli_w.dumps(table))

    def write_plugin_files(self, files: Iterable[PluginFile]) -> None:
        """Write copies of the plugin files that the run is made with, and no others."""
        contents = {file.path.name: file.content for file in files}
        for path in self.plugin_files.glob("*"):
            if path.name not in contents:
                delete(path)
        for name, content in contents.items():
            write_bytes(self.plugin_files / name, content)

    def write_json(self, path: Path, value: Json) -> None:
        """Write one of the run's JSON files."""
        write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _text(line: bytes) -> str:
    """Return a line as text; it is judged alone, and bytes that are none make no record."""
    return line.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")


def _is_like(one: Stretch, other: Stretch) -> bool:
    """Whether two stretches are under the same conditions, whichever step they began at."""
    return {**one.table(), "from_step": 0} == {**other.table(), "from_step": 0}


@dataclass(frozen=True)
class SavedRun:
    """What the files of a run hold.

    recipe       the resolved one
    table        the same as recipe.toml has it
    records      the lines of metrics.jsonl, in order
    environment  None where there is no environment.json
    scores       None before scoring
    expected     what a board expects data and code to be; None for a run of no board
    """

    run: Run
    recipe: Recipe
    table: Mapping[str, Json]
    records: tuple[Record, ...]
    environment: Environment | None
    scores: Scores | None
    expected: MadeOf | None

    @property
    def step(self) -> int:
        """The generator updates that are recorded; 0 without records."""
        return self.records[-1].step if self.records else 0
