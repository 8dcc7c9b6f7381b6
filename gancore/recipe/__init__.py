"""The recipe: one TOML file that says what to train, how, and how to score it."""

from gancore.recipe.overrides import parse_override
from gancore.recipe.sections import (
    CheckpointSection,
    Component,
    Count,
    DataSection,
    Log,
    Optimizer,
    Recipe,
    Sample,
    Score,
    Section,
    Train,
    Value,
    differences,
)
from gancore.recipe.settings import Settings, idle_options

__all__ = [
    "CheckpointSection",
    "Component",
    "Count",
    "DataSection",
    "Log",
    "Optimizer",
    "Recipe",
    "Sample",
    "Score",
    "Section",
    "Settings",
    "Train",
    "Value",
    "differences",
    "idle_options",
    "parse_override",
]
