"""The run folder: where everything of a run is kept, and how it is read back."""

from __future__ import annotations

import codecs
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import Field

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
from gancore.files.stored import Number, Stored, Text, Whole
from gancore.files.writing import delete, growing, replacing, sync, write_bytes, write_text
from gancore.provenance.identity import MadeOf
from gancore.recipe import Recipe
from gancore.scoring.protocol import Protocol
from gancore.text import shown

LARGEST = 1 << 20
"""Bytes of scores.json and environment.json; ours have two thousand."""

LARGEST_NUMBER = 1e100
"""What no record comes near to, and figures can be drawn of."""

LARGEST_METRICS = 1 << 30
"""Bytes of metrics.jsonl: some three million records."""

EARLIER = 100
"""Stretches before the current one that environment.json tells of, the latest ones."""

TRAIN_AGAIN = "Copy the run folder anew, or train again"
BOARD_AGAIN = "Run its board again: gan leaderboard"


class Scores(Stored):
    """scores.json."""

    scores: dict[Text, Number]
    protocol: Protocol
    spread: Number | None = None
    notes: list[Text] = Field(default=[])
    step: Whole | None = None


class Git(Stored):
    """The state of the sources."""

    commit: Text
    dirty: bool


class Stretch(MadeOf):
    """What a part of a run was made on, from an update on."""

    versions: dict[Text, Text]
    plugins: dict[Text, Text]
    python: Text
    platform: Text
    device: Text
    device_name: Text
    cpu: Text | None = None
    cpu_capability: Text | None = None
    blas: Text | None = None
    threads: Whole
    git: Git | None
    from_step: Whole = 0


class Environment(Stretch):
    """environment.json: the current stretch, and those before it."""

    earlier: list[Stretch] = Field(default=[], max_length=EARLIER)


@dataclass(frozen=True)
class Run:
    """A run folder.

    Holds recipe.toml, environment.json, metrics.jsonl, curves.png, samples/, checkpoints/ and
    scores.json; plugin-files/ where --plugin-file was given; report.html and samples.gif once
    `gan report` has made them.
    """

    path: Path

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

    @property
    def recipe_path(self) -> Path:
        """The resolved recipe."""
        return self.path / "recipe.toml"

    @property
    def environment_path(self) -> Path:
        """What the run ran on."""
        return self.path / "environment.json"

    @property
    def expected_path(self) -> Path:
        """What a board expects the run to be made of, where it is one of a board."""
        return self.path / "expected.json"

    @property
    def metrics_path(self) -> Path:
        """One record a line."""
        return self.path / "metrics.jsonl"

    @property
    def curves_path(self) -> Path:
        """The records as a picture."""
        return self.path / "curves.png"

    @property
    def scores_path(self) -> Path:
        """The final scores and their protocol."""
        return self.path / "scores.json"

    @property
    def report_path(self) -> Path:
        """Scores, pictures and recipe on one page."""
        return self.path / "report.html"

    @property
    def animation_path(self) -> Path:
        """The sample grids as an animation."""
        return self.path / "samples.gif"

    @property
    def plugin_files(self) -> Path:
        """The folder of copies of the plugin files that were used. None is ever run."""
        return self.path / "plugin-files"

    @property
    def checkpoints(self) -> Path:
        """The folder of checkpoints."""
        return self.path / "checkpoints"

    def sample_path(self, step: int) -> Path:
        """The sample grid of a step."""
        return self.path / "samples" / f"step-{step:06d}.png"

    @property
    def recipe(self) -> Recipe:
        """The resolved recipe."""
        return Recipe.load(self.recipe_path)

    @property
    def recipe_table(self) -> dict[str, Any]:
        """The resolved recipe as it stands in the file. Raises RecipeError."""
        return read_toml(self.recipe_path)

    @property
    def seed(self) -> int:
        """The seed of the run. Raises RecipeError."""
        return self.recipe.train.seed

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, plugins, device and the like. Raises InputError for a broken file."""
        return read_json(self.environment_path, Environment, TRAIN_AGAIN, largest=LARGEST)

    @property
    def expected(self) -> dict[str, Any]:
        """What a board expects data and code to be; {} for a run of no board.

        Raises InputError for a broken file.
        """
        if not is_there(self.expected_path):
            return {}
        return read_json(self.expected_path, MadeOf, BOARD_AGAIN, largest=LARGEST)

    def write_environment(
        self, about: Mapping[str, Any], before: Mapping[str, Any], start: int
    ) -> None:
        """Write what the run is made on from a step on, beside what it was made on before.

        A stretch under the same conditions goes on; one that no update is left of goes.
        """
        last = dict(before)
        earlier: list[dict[str, Any]] = [*last.pop("earlier", []), last] if start and before else []
        earlier = [each for each in earlier if each.get("from_step", 0) < start]
        if earlier and {**earlier[-1], "from_step": 0} == {**about, "from_step": 0}:
            start = earlier.pop().get("from_step", 0)
        table = {**about, "from_step": start, "earlier": earlier[-EARLIER:]}
        while len(json.dumps(table, indent=2)) > LARGEST and table["earlier"]:
            del table["earlier"][0]
        self.write_json(self.environment_path, table)

    @property
    def records(self) -> list[dict[str, Any]]:
        """The records so far, all in memory; see `read_records`."""
        return list(self.read_records())

    def read_records(self) -> Iterator[dict[str, Any]]:
        """Yield the records so far, one at a time; a last line that was cut off is left out.

        Raises InputError with the line that is broken.
        """
        for number, line in enumerate(self._lines(), 1):
            yield self._record(line, number)

    def last_record(self) -> dict[str, Any]:
        """Return the last record, whatever is before it, or {}. Raises InputError if it is broken.

        Only the end of the file is read.
        """
        if not is_there(self.metrics_path):
            return {}
        try:
            end = read_end(self.metrics_path, LONGEST)
        except OSError as error:
            raise InputError(unreadable(error, self.metrics_path)) from error
        *before, line = (b"\n" + end).split(b"\n")[:-1]
        return self._record(_text(line), "last") if before else {}

    def _lines(self) -> Iterator[str]:
        if is_there(self.metrics_path):
            yield from map(_text, read_lines(self.metrics_path, LARGEST_METRICS))

    def _record(self, line: str, number: int | str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads(line)
        except (ValueError, RecursionError):
            found = {}
        if not _is_record(found):
            raise InputError(
                f"{shown(str(self.metrics_path), 4096)}: line {number}: expected finite numbers, "
                f"step and seconds among them, got {shown(line)}. gan run --resume leaves it out"
            )
        return found

    @property
    def scores(self) -> dict[str, Any] | None:
        """{"scores": {…}, "protocol": {…}, "step": …}, or None before scoring.

        Raises InputError for a broken file.
        """
        if not is_there(self.scores_path):
            return None
        remedy = "Delete it, and score the run again: gan score RUN"
        return read_json(self.scores_path, Scores, remedy, largest=LARGEST)

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a record. Raises InputError where the records are no plain file."""
        with growing(self.metrics_path) as file:
            file.write(f"{json.dumps(record)}\n".encode())

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
                if record["step"] <= step:
                    file.write(f"{json.dumps(record)}\n".encode())
        if faults:
            tell(first + (f", and {faults - 1:,} more" if faults > 1 else ""))

    def sync_records(self) -> None:
        """Bring the records to the disk, where a checkpoint after them will be."""
        if is_there(self.metrics_path):
            sync(self.metrics_path)

    def write_scores(self, found: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Write the scores of a step, and return them with what was there.

        Those of the same step under the same protocol stay; others are replaced.
        """
        before = self.scores or {}
        scores = {**found, "step": step}
        if all(before.get(key) == scores[key] for key in ("step", "protocol")):
            scores["scores"] = {**before["scores"], **found["scores"]}
        self.write_json(self.scores_path, scores)
        return scores

    def write_recipe(self, table: Mapping[str, Any]) -> None:
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

    def write_json(self, path: Path, value: Mapping[str, Any] | Sequence[Any]) -> None:
        """Write one of the run's JSON files."""
        write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _text(line: bytes) -> str:
    """Return a line as text; it is judged alone, and bytes that are none make no record."""
    return line.removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")


def _is_record(found: object) -> bool:
    """Whether this is numbers by what they are of. Plain code: a board reads records often.

    A run's last record may have `notes`, a list of sentences, beside them.
    """
    return (
        isinstance(found, dict)
        and {"step", "seconds"} <= found.keys()
        and type(found["step"]) is int
        and all(
            type(value) in (int, float) and abs(value) < LARGEST_NUMBER and key.isprintable()
            for key, value in found.items()
            if key != "notes"
        )
        and _are_sentences(found.get("notes", []))
    )


def _are_sentences(found: object) -> bool:
    return isinstance(found, list) and all(
        isinstance(each, str) and len(each) <= 1000 and each.isprintable() for each in found
    )
