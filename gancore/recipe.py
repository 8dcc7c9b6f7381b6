"""The recipe: one TOML file that says what to train, how, and how to score it.

Sections are pydantic models; `Recipe.load` reads a file, applies overrides and validates.
Sections that name a component (`[data]`, `[loss]`, `[[plugin]]` …) carry its options as further
keys, which are validated when the component is built.
"""

from __future__ import annotations

import copy
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticSerializationError, to_json

from gancore.errors import InputError, RecipeError, did_you_mean
from gancore.options import explain, shown

Probability = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
Metric = Literal["fid", "isc", "kid", "prc", "modes", "quality", "w2"]


MAY_CHANGE = ("train.steps", "train.max_seconds", "checkpoint", "sample", "log", "score")
"""What of a recipe may differ when a run is resumed: none of it changes the updates made."""


LARGEST = 256 << 10
"""Bytes of a TOML file; the largest of ours have three thousand."""

DEEPEST = 32
"""Tables and lists in one another; recipes have three."""

CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""Characters that move a terminal's cursor, end a line or turn the direction of writing."""


class Section(BaseModel):
    """A table of the recipe."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @classmethod
    def of(cls, value: Self | Mapping[str, Any] | None) -> Self:
        """Return a section as it is, or made from a table of its keys. Raises RecipeError."""
        if isinstance(value, cls):
            return value
        table = to_json(dict(value or {}), inf_nan_mode="constants")
        try:
            return cls.model_validate_json(table)
        except ValidationError as error:
            known = [field.alias or name for name, field in cls.model_fields.items()]
            raise RecipeError(explain(error, cls.__name__.lower(), lambda path: known)) from error


class Component(Section):
    """A table that names a component; its other keys are the component's options."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are not the core's own."""
        return dict(self.model_extra or {})


class DataSection(Component):
    """`[data]`: the data set and its options."""

    flip: bool = Field(default=False, description="mirror real images at random")


class PluginSection(Component):
    """`[[plugin]]`: a plugin and its options."""

    alias: str | None = Field(
        default=None, alias="as", description="another name, to use one plugin twice"
    )


class Optimizer(Section):
    """`[optimizer]`: the same for generator and critic."""

    name: Literal["adam", "rmsprop"] = "adam"
    lr: float = Field(default=2e-4, gt=0, le=1e3, description="learning rate")
    betas: tuple[Probability, Probability] = Field(default=(0.0, 0.9), description="Adam's β₁, β₂")
    alpha: Probability = Field(default=0.99, description="RMSprop's smoothing")
    decay: Literal["none", "linear", "cosine"] = Field(
        default="none", description="of the learning rate, to 0 over train.steps"
    )


class Train(Section):
    """`[train]`: the loop."""

    steps: int = Field(ge=0, le=10**9, description="generator updates")
    batch_size: int = Field(default=64, ge=1, le=2**20, description="of the critic")
    generator_batch_size: int | None = Field(
        default=None, ge=1, le=2**20, description="of the generator; batch_size if absent"
    )
    critic_steps: int = Field(
        default=1, ge=1, le=10_000, description="critic updates a generator update"
    )
    seed: int = Field(default=0, ge=0, le=2**63 - 1)
    max_seconds: float | None = Field(
        default=None, gt=0, description="then save, and stop as if interrupted"
    )
    precision: Literal["fp32", "bf16"] = Field(
        default="fp32", description="bf16: autocast, but for penalties"
    )
    compile: bool = Field(
        default=False, description="compile both updates, plugins included: slow to start"
    )
    ema: Probability = Field(
        default=0.0, description="decay of the generator's moving average; 0 for none"
    )
    allow_batchnorm: bool = Field(
        default=False, description="let gradient penalties meet batch normalization"
    )

    @property
    def generator_batch(self) -> int:
        """The generator's batch size."""
        return self.generator_batch_size or self.batch_size


class Checkpoint(Section):
    """`[checkpoint]`: steps between checkpoints, and how many to keep."""

    every: Count = 1000
    keep: Count = 3


class Sample(Section):
    """`[sample]`: steps between sample grids, and their size."""

    every: Count = 500
    count: int = Field(default=64, ge=1, le=4096)


class Log(Section):
    """`[log]`: steps between records."""

    every: Count = 50


class Score(Section):
    """`[score]`: what to compute at the end of a run, from what."""

    metrics: tuple[Metric, ...] = ("fid", "isc")
    samples: int = Field(default=10_000, ge=2, le=10**7, description="generated samples")
    every: Count | None = Field(
        default=None, description="steps between scores during the run; only at its end if absent"
    )
    extractor: str = "inception-v3-compat"
    weights: str | None = Field(
        default=None, description="the extractor's weights file; its own default if absent"
    )

    @field_validator("weights")
    @classmethod
    def _absolute(cls, path: str | None) -> str | None:
        return str(Path(path).absolute()) if path else None


class Recipe(Section):
    """A whole recipe."""

    data: DataSection
    generator: Component
    critic: Component
    loss: Component
    plugin: tuple[PluginSection, ...] = Field(default=(), max_length=1000)
    optimizer: Optimizer = Optimizer()
    train: Train
    checkpoint: Checkpoint = Checkpoint()
    sample: Sample = Sample()
    log: Log = Log()
    score: Score = Score()

    @classmethod
    def load(cls, path: str | Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Recipe:
        """Read a recipe file; overrides are {"train.steps": 200} or ["train.steps=200"].

        Raises RecipeError with the file, the key path, what was expected and close names.
        """
        table = read_toml(Path(path))
        return cls.parse(table, shown(str(path), 4096), overrides)

    @classmethod
    def parse(
        cls,
        table: dict[str, Any],
        where: str = "recipe",
        overrides: Mapping[str, Any] | Sequence[str] = (),
    ) -> Recipe:
        """Validate a table; `where` begins each error line. Raises RecipeError."""
        table = copy.deepcopy(table)
        if not isinstance(overrides, Mapping):
            overrides = dict(map(parse_override, overrides))
        for key, value in overrides.items():
            _set(table, key, value)
        _refuse_absurd(table, where)
        try:
            return cls.model_validate_json(to_json(table, inf_nan_mode="constants"))
        except ValidationError as error:
            raise RecipeError(explain(error, where, _known_keys)) from error
        except PydanticSerializationError as error:
            raise RecipeError(f"{where}: a value that TOML does not have: {error}") from error

    def without(self, names: Sequence[str]) -> Recipe:
        """Return the recipe without the plugins of these names. Raises RecipeError for others."""
        there = [each.alias or each.name for each in self.plugin]
        for name in names:
            if name not in there:
                hint = did_you_mean(name, there)
                raise RecipeError(f"--no-plugin {name}: the recipe has no such plugin.{hint}")
        kept = [each for each in self.plugin if (each.alias or each.name) not in names]
        return self.model_copy(update={"plugin": tuple(kept)})

    def table(self) -> dict[str, Any]:
        """Return the recipe as a TOML table, defaults included."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file. Raises RecipeError with the file, line and column.

    So are files refused that no recipe or board needs: large ones, deep nesting, absurd numbers,
    control characters in keys and strings.
    """
    where = shown(str(path), 4096)
    try:
        text = read_text(path, LARGEST)
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
    _refuse_absurd(table, where)
    return table


def read_json(path: Path, model: type[BaseModel], remedy: str, *, largest: int) -> dict[str, Any]:
    """Read a JSON file that has at least what the model says, in so many bytes at most.

    Raises InputError with the file, what was expected and the remedy for any other.
    """
    where = shown(str(path), 4096)
    text = read_text(path, largest)
    try:
        model.model_validate_json(text)
    except ValidationError as error:
        (first, *_) = error.errors(include_url=False, include_input=False)
        if first["type"] == "json_invalid":
            raise InputError(f"{where}: is no JSON: {shown(first['msg'])}. {remedy}") from error
        raise InputError(f"{explain(error, where, lambda path: ())}. {remedy}") from error
    found: dict[str, Any] = json.loads(text)
    return found


def read_text(path: Path, largest: int) -> str:
    """Read a UTF-8 file of so many bytes at most. Raises InputError."""
    where = shown(str(path), 4096)
    try:
        with path.open("rb") as file:
            content = file.read(largest + 1)
        if len(content) > largest:
            raise InputError(f"{where}: over the limit of {largest >> 10} KiB for such a file")
        return content.decode()
    except OSError as error:
        raise InputError(f"{where}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8 text: {error.reason}") from error
    except ValueError as error:  # a name with a null byte
        raise InputError(f"{where}: can't be read: {error}") from error


def _refuse_absurd(table: Mapping[str, Any], where: str) -> None:
    """Raise RecipeError for what no table of a recipe needs, before anything is made of it.

    That is: deep nesting, huge numbers, inf and nan, control characters in keys and strings.
    """
    left: list[tuple[str, Any, int]] = [("", table, 0)]
    while left:
        path, value, depth = left.pop()
        if depth > DEEPEST:
            raise RecipeError(f"{where}: {shown(path)}: nested over {DEEPEST} deep")
        if fault := _absurdity(path, value):
            raise RecipeError(f"{where}: {shown(path)}: {fault}")
        if isinstance(value, Mapping | list | tuple):
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            left += [(f"{path}.{key}".lstrip("."), each, depth + 1) for key, each in items]


def _absurdity(path: str, value: Any) -> str | None:
    """Return what is wrong with a key path or a value that could stand nowhere."""
    if CONTROLS.search(path):
        return "a key with control characters. Write it without"
    if isinstance(value, int) and value.bit_length() > 1024:
        return "expected a number of a sane size"
    if isinstance(value, float) and not math.isfinite(value):
        return f"expected a finite number, got {value}"
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


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value`; a value that is no TOML is a string. Raises RecipeError."""
    key, equals, value = text.partition("=")
    if not (equals and key.strip()):
        raise RecipeError(f"override {text!r}: expected KEY=VALUE, such as train.steps=200")
    try:
        table = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        return key.strip(), value
    return key.strip(), table["value"] if len(table) == 1 else value


def _set(table: dict[str, Any], key: str, value: Any) -> None:
    """Set `train.steps` or `plugin.0.weight`; an index just past a list's end appends a table."""
    *parents, last = key.split(".")
    here: Any = table
    for depth, part in enumerate(parents):
        if isinstance(here, list):
            here = _item(here, part, key)
        else:
            following = [*parents, last][depth + 1]
            here = here.setdefault(part, [] if following.isdigit() else {})
        if not isinstance(here, dict | list):
            raise RecipeError(f"override {key!r}: {part!r} is a value, not a table")
    if isinstance(here, list):
        raise RecipeError(f"override {key!r}: name a key of the item, such as {key}.weight")
    here[last] = value


def _item(items: list[Any], part: str, key: str) -> Any:
    is_index = part.isascii() and part.isdigit() and len(part) < 10
    if is_index and int(part) == len(items):
        items.append({})
    if not is_index or int(part) >= len(items):
        raise RecipeError(f"override {key!r}: {part!r} is no index from 0 to {len(items)}")
    return items[int(part)]


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return a line for each key of two recipe tables that makes them different runs."""
    before, after = _flat(old), _flat(new)
    return [
        f"{key}: was {before.get(key)!r}, is {after.get(key)!r}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
        and not any(key == free or key.startswith(f"{free}.") for free in MAY_CHANGE)
    ]


def _flat(value: Any, path: str = "") -> dict[str, Any]:
    """Return the leaves of a recipe table by their key paths."""
    items: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(each, Mapping) for each in value):
        items = [(str(number), each) for number, each in enumerate(value)]
    else:
        return {path: value}
    return {
        key: leaf
        for name, each in items
        for key, leaf in _flat(each, f"{path}.{name}" if path else name).items()
    }


def _toml_place(error: tomllib.TOMLDecodeError, text: str) -> str:
    """Return `line:column: message`; what is missing at the end is missing in the last line."""
    place = r"(?s)(.*) \(at (?:line (\d+), column (\d+)|end of document)\)"
    match = re.fullmatch(place, str(error))
    if match is None:
        return f"1:1: {error}"
    lines = text.splitlines() or [""]
    return f"{match[2] or len(lines)}:{match[3] or len(lines[-1]) + 1}: {match[1]}"


def _known_keys(path: tuple[str | int, ...]) -> list[str]:
    """Name the keys of the table at `path`."""
    model: type[BaseModel] = Recipe
    for part in path:
        if isinstance(part, str):
            annotation = model.model_fields[part].annotation
            model = PluginSection if part == "plugin" else annotation  # type: ignore[assignment]
    return [field.alias or name for name, field in model.model_fields.items()]
