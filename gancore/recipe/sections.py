"""The recipe: one TOML file that says what to train, how, and how to score it.

Sections are pydantic models; `Recipe.load` reads a file, applies overrides and validates.
Sections that name a component (`[data]`, `[loss]`, `[[plugin]]` …) carry its options as further
keys, which are validated when the component is built.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_core import PydanticCustomError, PydanticSerializationError, to_json

from gancore.errors import RecipeError
from gancore.files.reading import expanded, read_toml, refuse_absurd
from gancore.files.stored import Json
from gancore.options import Given, checked, explain
from gancore.recipe.overrides import Overrides, Place, override, place_of
from gancore.text import did_you_mean, shown

Probability = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1, le=10**9)]
MetricName = Annotated[str, Field(max_length=100)]
"""Of an installed metric, which is looked for when the recipe is checked, as components are."""

Value = str | float | bool | Sequence[str | float] | None
"""What a key of the core's own sections may be set to."""

MAY_CHANGE = ("train.steps", "train.max_seconds", "checkpoint", "sample", "log", "score")
"""What of a recipe may differ when a run is resumed: none of it changes the updates made.

train.steps does where the learning rate decays, for that is over them.
"""


OLD_NAMES = {"train.allow_batchnorm": "train.allow_batch_statistics"}
"""Keys of recipes that have another name now."""


class Section(BaseModel):
    """A table of the recipe."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)

    @classmethod
    def of(cls, value: Self | Mapping[str, Value] | None) -> Self:
        """Return a section as it is, or made from a table of its keys. Raises RecipeError."""
        if isinstance(value, cls):
            return value
        section = cls.__name__.removesuffix("Section").lower()
        try:
            table = to_json(dict(value or {}), inf_nan_mode="constants")
        except (TypeError, ValueError) as error:  # no mapping, or of what TOML has not
            reason = " ".join(str(error).split())
            raise RecipeError(f"{section}: expected a table of plain values: {reason}") from error
        try:
            return cls.model_validate_json(table)
        except ValidationError as error:
            known = [field.alias or name for name, field in cls.model_fields.items()]
            raise RecipeError(explain(error, section, lambda path: known)) from error

    def table(self) -> dict[str, Any]:
        """Return it as a TOML table, defaults included."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


class Component(Section):
    """A table that names a component; its other keys are the component's options."""

    model_config = ConfigDict(extra="allow")

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are not the core's own."""
        return copy.copy(self.model_extra or {})


class DataSection(Component):
    """`[data]`: the data set and its options."""

    flip: bool = Field(default=False, description="mirror real images at random")


class PluginSection(Component):
    """`[[plugin]]`: a plugin and its options."""

    alias: str | None = Field(
        default=None, alias="as", description="another name, to use one plugin twice"
    )

    @field_validator("name", "alias")
    @classmethod
    def _shows(cls, name: str | None) -> str | None:
        """Records and figures are named after it."""
        if name is not None and not (name and name.isprintable()):
            raise PydanticCustomError("unavailable", "expected a name that can be printed")
        return name

    @property
    def called(self) -> str:
        """What this recipe calls it."""
        return self.alias or self.name


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
    allow_batch_statistics: bool = Field(
        default=False,
        validation_alias=AliasChoices("allow_batch_statistics", "allow_batchnorm"),
        description="let gradient penalties meet scores that depend on other samples",
    )

    @property
    def generator_batch(self) -> int:
        """The generator's batch size."""
        return self.generator_batch_size or self.batch_size


class CheckpointSection(Section):
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

    metrics: tuple[MetricName, ...] = ("fid", "isc")
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
        return str(expanded(path).absolute()) if path else None


class Recipe(Section):
    """A whole recipe."""

    data: DataSection
    generator: Component
    critic: Component
    loss: Component
    plugin: tuple[PluginSection, ...] = Field(default=(), max_length=1000)
    optimizer: Optimizer = Optimizer()
    train: Train
    checkpoint: CheckpointSection = CheckpointSection()
    sample: Sample = Sample()
    log: Log = Log()
    score: Score = Score()

    @classmethod
    def load(cls, path: str | Path, overrides: Overrides = ()) -> Recipe:
        """Read a recipe file; overrides are {"train.steps": 200} or ["train.steps=200"].

        It may be a pipe that the shell made, under /dev/fd, /proc/self/fd or /dev/stdin. None, or
        nothing behind the `=`, removes a key, so that its default holds again. Of an option that
        takes text a command line's `data.path=1_000` is that text, and no number.

        Raises RecipeError with the file, the key path, what was expected and close names.
        """
        table = read_toml(Path(path), pipe=True)
        return cls.parse(table, shown(str(path), 4096), overrides)

    @classmethod
    def parse(
        cls,
        given: Mapping[str, Json],
        where: str = "recipe",
        overrides: Overrides = (),
    ) -> Recipe:
        """Validate a table; `where` begins each error line. Raises RecipeError."""
        table: dict[str, Any] = copy.deepcopy({**given})
        typed = override(table, overrides, _known_keys)
        refuse_absurd(table, where, typed=typed)
        places = {place_of(key): text for key, text in typed.items()}
        try:
            recipe = checked(cls.model_validate_json, table, places)
            recipe._note_typed(places)
            return recipe
        except ValidationError as error:
            raise RecipeError(explain(error, where, _known_keys)) from error
        except PydanticSerializationError as error:
            raise RecipeError(f"{where}: a value that TOML does not have: {error}") from error

    def _note_typed(self, places: Mapping[Place, str]) -> None:
        """Keep what was typed for options, whose types are known where a component is built."""
        sections: list[tuple[Place, Component]] = [
            (("data",), self.data),
            (("generator",), self.generator),
            (("critic",), self.critic),
            (("loss",), self.loss),
            *((("plugin", number), section) for number, section in enumerate(self.plugin)),
        ]
        for place, section in sections:
            typed = {str(key[-1]): text for key, text in places.items() if key[:-1] == place}
            if typed:
                given = Given(section.model_extra or {}, typed)
                object.__setattr__(section, "__pydantic_extra__", given)

    def without(self, names: Sequence[str]) -> Recipe:
        """Return the recipe without the plugins of these names. Raises RecipeError for others."""
        there = [section.called for section in self.plugin]
        for name in names:
            if name not in there:
                hint = did_you_mean(name, there)
                raise RecipeError(f"--no-plugin {name}: the recipe has no such plugin.{hint}")
        kept = [section for section in self.plugin if section.called not in names]
        return self.model_copy(update={"plugin": tuple(kept)})


def differences(
    old: Mapping[str, Json], new: Mapping[str, Json], *, free: Sequence[str] = MAY_CHANGE
) -> list[str]:
    """Return a line for each key of two recipe tables that makes them different runs.

    free: keys and sections that do not
    """
    before, after = (
        {OLD_NAMES.get(key, key): value for key, value in _flat(table).items()}
        for table in (old, new)
    )
    decays = after.get("optimizer.decay", "none") != "none"
    free = [key for key in free if not (decays and key == "train.steps")]
    return [
        f"{key}: was {before.get(key)!r}, is {after.get(key)!r}"
        for key in sorted({*before, *after})
        if before.get(key) != after.get(key)
        and not any(key == path or key.startswith(f"{path}.") for path in free)
    ]


def _flat(value: Json, path: str = "") -> dict[str, Json]:
    """Return the leaves of a recipe table by their key paths."""
    items: list[tuple[str, Json]]
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = [(str(number), item) for number, item in enumerate(value)]
    else:
        return {path: value}
    return {
        key: leaf
        for name, item in items
        for key, leaf in _flat(item, f"{path}.{name}" if path else name).items()
    }


def _known_keys(path: Place) -> list[str]:
    """Name the keys of the table at `path`; none of one that is no section."""
    model: type[BaseModel] = Recipe
    for part in path:
        if isinstance(part, str):
            if part not in model.model_fields:
                return []
            annotation = model.model_fields[part].annotation
            model = PluginSection if part == "plugin" else annotation  # type: ignore[assignment]
    return [field.alias or name for name, field in model.model_fields.items()]
