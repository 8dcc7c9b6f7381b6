"""The recipe: one TOML file that says what to train, how, and how to score it."""

from gancore.recipe.overrides import parse_override
from gancore.recipe.sections import (
    Checkpoint,
    Component,
    Count,
    Log,
    Optimizer,
    Recipe,
    Sample,
    Score,
    Section,
    Sections,
    Train,
    differences,
    idle_options,
)

__all__ = [
    "Checkpoint",
    "Component",
    "Count",
    "Log",
    "Optimizer",
    "Recipe",
    "Sample",
    "Score",
    "Section",
    "Sections",
    "Train",
    "differences",
    "idle_options",
    "parse_override",
]
