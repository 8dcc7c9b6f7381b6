"""The hooks: when the trainer calls a plugin, with what, and what it may answer.

A plugin implements some of these as plain functions marked `@hookimpl`; they may leave out
parameters that they do not need. Plugins act in recipe order. A hook leaves its arguments as they
were, and torch's global settings too: where it does not, the run ends and names the plugin.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from gancore.step import CriticStep, GeneratorStep

PROJECT = "gancore"

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


@hookspec
def configure(plugins: Mapping[str, object]) -> None:
    """Check how this plugin fits the others: once, when all are registered. Since 0.1.

    `plugins` maps each recipe name to its plugin, in recipe order, the loss included. Raise
    ValueError to refuse the combination; its message is shown to the user.
    """


@hookspec
def prepare_critic(critic: nn.Module) -> None:
    """Change the critic's modules: once, before device and optimizer. Since 0.1.

    Its dtype stays.
    Raise ValueError to refuse a critic; its message is shown to the user.
    """


@hookspec
def setup(
    generator: nn.Module, critic: nn.Module, shape: tuple[int, ...], device: torch.device
) -> None:
    """Make what needs the networks or the samples' shape: once before training. Since 0.1.

    Both networks are on `device` and stay as they were; `shape` is that of one sample, (C, H, W)
    or (d,). A network that the plugin keeps as an attribute, a feature extractor say, is then moved
    to `device`, and saved with the run unless the plugin has a `state_dict` of its own. Raise
    ValueError to refuse the networks; its message is shown to the user.
    """


@hookspec(firstresult=True)
def critic_loss(step: CriticStep) -> Tensor:  # type: ignore[empty-body]
    """Answer the scalar that the critic minimizes: each critic update. Since 0.1.

    Exactly one plugin of a run, its loss, implements this.
    """


@hookspec(firstresult=True)
def generator_loss(step: GeneratorStep) -> Tensor:  # type: ignore[empty-body]
    """Answer the scalar that the generator minimizes: each generator update. Since 0.1.

    Exactly one plugin of a run, its loss, implements this.
    """


@hookspec
def penalty(step: CriticStep) -> Tensor | None:
    """Answer a scalar to add to the critic's loss, or None for nothing. Since 0.1.

    Called each critic update in which this plugin's scale is not 0, before the loss. The scalar
    has the dtype and device of `step.real` and must depend on the critic's parameters.
    """


@hookspec
def generator_penalty(step: GeneratorStep) -> Tensor | None:
    """Answer a scalar for the generator's loss, or None; otherwise as `penalty`. Since 0.1."""


@hookspec
def penalty_scale(plugin: str, update: int, hook: str) -> float | None:
    """Answer a factor for the penalty of the plugin of this name, or None for 1. Since 0.1.

    Called each update for each penalty; the core multiplies all answers, and at 0 the penalty
    is not called at all. `hook` says which of a plugin's two it is, "penalty" or
    "generator_penalty". `update` counts from 0: critic updates for `penalty`, generator updates
    for `generator_penalty`.
    """


@hookspec
def post_step(critic: nn.Module, update: int) -> None:
    """Act on the critic after its optimizer step, under no_grad: each critic update. Since 0.1.

    Values of parameters and buffers may change, in place; parameters, parts and modes stay.
    """


@hookspec
def start(folder: Path, step: int) -> None:
    """Begin: once, with the run folder and the generator updates a resumed run has made. Since 0.1.

    `step` is one less where the last step has no record yet. Records and samples that an earlier
    process made after `step` no longer count. Of many processes that train together only the first
    calls `start`, `sample` and `log`.
    """


@hookspec
def sample(samples: Tensor, step: int) -> None:
    """Receive a grid's samples, on the CPU: uint8 (N, C, H, W), float32 (N, d). Since 0.1."""


@hookspec
def log(record: Mapping[str, float]) -> None:
    """Receive each logged record (the keys of a line of metrics.jsonl). Since 0.1."""
