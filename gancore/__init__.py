"""gancore: what does this regularizer do to this GAN, and what does it cost?

The public names resolve when they are first used (PEP 562), so that
`from gancore import plugin, hookimpl` imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gancore.data import Dataset
    from gancore.errors import GancoreError
    from gancore.hooks import hookimpl
    from gancore.plugins import plugin
    from gancore.recipe import Recipe
    from gancore.report.writer import write_report
    from gancore.step import (
        CriticStep,
        GeneratorStep,
        critic_scores,
        input_gradient,
        interpolate,
    )
    from gancore.training import (
        Run,
        Trainer,
        load_critic,
        load_generator,
        run,
        score_run,
    )

_HOME = {
    "CriticStep": "gancore.step",
    "Dataset": "gancore.data",
    "GancoreError": "gancore.errors",
    "GeneratorStep": "gancore.step",
    "Recipe": "gancore.recipe",
    "Run": "gancore.training",
    "Trainer": "gancore.training",
    "critic_scores": "gancore.step",
    "hookimpl": "gancore.hooks",
    "input_gradient": "gancore.step",
    "interpolate": "gancore.step",
    "load_critic": "gancore.training",
    "load_generator": "gancore.training",
    "plugin": "gancore.plugins",
    "run": "gancore.training",
    "score_run": "gancore.training",
    "write_report": "gancore.report.writer",
}

__all__ = [
    "CriticStep",
    "Dataset",
    "GancoreError",
    "GeneratorStep",
    "Recipe",
    "Run",
    "Trainer",
    "critic_scores",
    "hookimpl",
    "input_gradient",
    "interpolate",
    "load_critic",
    "load_generator",
    "plugin",
    "run",
    "score_run",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gancore' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
