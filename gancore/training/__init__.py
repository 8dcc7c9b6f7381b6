"""Training: the loop, its updates, checkpoints and the run folder."""

from gancore.training.experiment import (
    check,
    default_folder,
    load_critic,
    load_data,
    load_generator,
    refuse,
    refuse_components,
    run,
    score_run,
    trainer,
)
from gancore.training.folder import Run
from gancore.training.trainer import Trainer

__all__ = [
    "Run",
    "Trainer",
    "check",
    "default_folder",
    "load_critic",
    "load_data",
    "load_generator",
    "refuse",
    "refuse_components",
    "run",
    "score_run",
    "trainer",
]
