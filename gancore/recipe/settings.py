"""Settings: what a recipe says of how to train, sample, record and score, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, Self

from pydantic_core import to_json

from gancore.recipe.sections import (
    FEATURES,
    CheckpointSection,
    DataSection,
    Log,
    Optimizer,
    Recipe,
    Sample,
    Score,
    Section,
    Train,
)
from gancore.text import shown


@dataclass(frozen=True)
class Settings:
    """The sections of a recipe that do not name what is built."""

    data: DataSection
    train: Train
    optimizer: Optimizer
    checkpoint: CheckpointSection
    sample: Sample
    log: Log
    score: Score

    @classmethod
    def of(cls, recipe: Recipe) -> Self:
        """Return the settings of a recipe."""
        return cls(**{field.name: getattr(recipe, field.name) for field in fields(cls)})

    def tables(self) -> dict[str, dict[str, Any]]:
        """Return the sections as TOML tables, defaults included."""
        return {field.name: _table(getattr(self, field.name)) for field in fields(self)}


def _table(section: Section) -> dict[str, Any]:
    return section.model_dump(mode="json", exclude_none=True)


@dataclass(frozen=True)
class Need:
    """What an option needs in order to have an effect.

    words  says it
    holds  tells whether it is there, from the settings and whether a plugin penalizes the critic
    """

    words: str
    holds: Callable[[Settings, bool], bool]


_FEATURES = Need(
    "fid, isc, kid or prc in score.metrics",
    lambda settings, _: (
        not settings.score.metrics or not FEATURES.isdisjoint(settings.score.metrics)
    ),
)
"""Without any metrics `[score]` is switched off as a whole, and kept for `gan score`."""

NEEDS = {
    "optimizer.betas": Need(
        "optimizer.name = 'adam'", lambda settings, _: settings.optimizer.name == "adam"
    ),
    "optimizer.alpha": Need(
        "optimizer.name = 'rmsprop'", lambda settings, _: settings.optimizer.name == "rmsprop"
    ),
    "train.allow_batch_statistics": Need("a penalty of the critic", lambda _, penalized: penalized),
    "score.extractor": _FEATURES,
    "score.weights": _FEATURES,
}


def idle_options(settings: Settings, *, penalized: bool) -> list[str]:
    """Return a line for each option that is not at its default, and has no effect beside others.

    penalized: whether a plugin penalizes the critic
    """
    lines = []
    for key, need in NEEDS.items():
        section_name, name = key.split(".")
        section: Section = getattr(settings, section_name)
        value = getattr(section, name)
        is_default = value == type(section).model_fields[name].default
        if not is_default and not need.holds(settings, penalized):
            lines.append(
                f"{key} = {shown(to_json(value).decode())} has no effect: it needs {need.words}; "
                "add that, or leave it out"
            )
    return lines
