"""Training: the loop, its updates, checkpoints and the run folder."""

from gancore.training.building import (
    build_trainer,
    check_recipe,
    default_folder,
    load_data,
    refuse,
    refuse_components,
    run,
)
from gancore.training.loading import load_critic, load_generator, score_run
from gancore.training.run_folder import Run
from gancore.training.trainer import Trainer

__all__ = [
    "Run",
    "Trainer",
    "build_trainer",
    "check_recipe",
    "default_folder",
    "load_critic",
    "load_data",
    "load_generator",
    "refuse",
    "refuse_components",
    "run",
    "score_run",
]
