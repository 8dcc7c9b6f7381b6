"""`gan run --dry-run`: what would be done, and how long it would take."""

from __future__ import annotations

import sys
import time
from contextlib import nullcontext

import tomli_w
import torch

from gancore.checks.dependence import unprobed
from gancore.cli.tables import tell
from gancore.training import Trainer
from gancore.training.idle import warn_idle

TIMED = 3


def show(trainer: Trainer) -> None:
    """Print the resolved recipe, networks, data, plugins, memory and an estimate of the time."""
    if trainer.learner.ranks.is_first:
        warn_idle(trainer.settings, trainer.plugins, trainer.data)
    seconds = _seconds_a_step(trainer)
    if not trainer.learner.ranks.is_first:
        return
    tell(tomli_w.dumps(trainer.recipe).rstrip())
    tell("")
    for name in ("generator", "critic"):
        module = getattr(trainer, name)
        count = sum(parameter.numel() for parameter in module.parameters())
        tell(f"{name}: {type(module).__name__}, {count:,} parameters")
    data = trainer.data
    size = data.samples.numel() * data.samples.element_size()
    about = data.about and f", {data.about}"
    tell(f"data: {data.name}, {len(data):,} of {data.shape}, {size / 2**20:,.1f} MiB{about}")
    tell("plugins: " + ", ".join(map(str, trainer.plugins.loaded)))
    if (peak := _peak_bytes(trainer)) is not None:
        tell(f"memory: {peak / 2**20:,.0f} MiB at its peak, on {trainer.device}")
    steps = trainer.settings.train.steps
    tell(
        f"time: {seconds * 1e3:.0f} ms a step, about "
        f"{_duration(seconds * steps)} for {steps:,} steps, "
        "scoring not counted"
    )


def _seconds_a_step(trainer: Trainer) -> float:
    """Time a few steps after a first one; the trainer is no use for a run after this."""
    critic_steps = trainer.settings.train.critic_steps
    began = 0.0
    for step in range(TIMED + 1):
        if step == 1:
            began = time.perf_counter()
        with unprobed() if step else nullcontext():
            for number in range(critic_steps):
                trainer.critic_update(step * critic_steps + number)
        trainer.generator_update(step)
    return (time.perf_counter() - began) / TIMED


def _peak_bytes(trainer: Trainer) -> int | None:
    """Return the most memory that was in use; None where the system does not tell."""
    if trainer.device.type == "cuda":
        return torch.cuda.max_memory_allocated(trainer.device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"
