"""Settings: what a recipe says of how to train, sample, record and score, as one value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Self

from pydantic_core import to_json

from gancore.files.stored import Json
from gancore.recipe.sections import (
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

    def tables(self) -> dict[str, dict[str, Json]]:
        """Return the sections as TOML tables, defaults included."""
        return {field.name: getattr(self, field.name).table() for field in fields(self)}


NEEDS: dict[str, tuple[str, Callable[[Settings, bool, bool], bool]]] = {
    "optimizer.betas": ("optimizer.name = 'adam'", lambda of, *_: of.optimizer.name == "adam"),
    "optimizer.alpha": (
        "optimizer.name = 'rmsprop'",
        lambda of, *_: of.optimizer.name == "rmsprop",
    ),
    "train.allow_batch_statistics": (
        "a penalty of the critic",
        lambda _, penalized, extracted: penalized,
    ),
    **dict.fromkeys(
        ("score.extractor", "score.weights"),
        (
            "a metric of features, such as fid, in score.metrics",
            lambda of, penalized, extracted: extracted or not of.score.metrics,
        ),
    ),
}
"""What options need to have an effect: in words, and of (settings, penalized, extracted).

Without any metrics `[score]` is switched off as a whole, and kept for `gan score`.
"""


def idle_options(settings: Settings, *, penalized: bool, extracted: bool) -> list[str]:
    """Return a line for each option that is not at its default, and has no effect beside others.

    penalized: whether a plugin penalizes the critic
    extracted: whether a metric takes what an extractor makes of images
    """
    lines = []
    for key, (needed, has_effect) in NEEDS.items():
        section_name, name = key.split(".")
        section: Section = getattr(settings, section_name)
        value = getattr(section, name)
        is_default = value == type(section).model_fields[name].default
        if not is_default and not has_effect(settings, penalized, extracted):
            lines.append(
                f"{key} = {shown(to_json(value).decode())} has no effect: it needs {needed}; "
                "add that, or leave it out"
            )
    return lines
