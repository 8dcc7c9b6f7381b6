"""Options, plugins and data that can't do what somebody may expect of them: a warning each."""

from __future__ import annotations

import warnings
from collections.abc import Set
from itertools import chain

from torch import Tensor

from gancore.data import Dataset
from gancore.errors import MissingError
from gancore.plugins import Plugins
from gancore.recipe import Settings, idle_options
from gancore.scoring.metrics import metric

DARK = 32
"""Images of which no value reaches this, of 255, are nearly black: 0/1 or 0 … 16, not scaled."""

BOUNDED = {
    "SigmoidBackward0": "a sigmoid",
    "HardsigmoidBackward0": "a sigmoid",
    "LogSigmoidBackward0": "a logarithm of a sigmoid",
    "SoftmaxBackward0": "a softmax",
    "TanhBackward0": "a tanh",
}
"""What makes scores bounded, by the name of its node in the graph."""

TRANSPARENT = (
    *("View", "UnsafeView", "ReshapeAlias", "Squeeze", "Unsqueeze", "Select", "Slice", "Permute"),
    *("Transpose", "T", "Alias", "Clone", "ToCopy", "Mean", "Clamp"),
)
"""Nodes that leave bounded scores as bounded as they were."""


class IdleWarning(UserWarning):
    """Something that was asked for has no effect, or not the one that it is for."""


def check_idle(settings: Settings, plugins: Plugins) -> list[str]:
    """Return a line for each option and plugin that has no effect, as far as names can tell."""
    penalties = plugins.terms("penalty")
    extracted = any(map(_extracts, settings.score.metrics))
    lines = idle_options(settings, penalized=bool(penalties), extracted=extracted)
    if not (penalties or plugins.terms("generator_penalty")):
        lines += [
            f"plugin {plugin} has no effect: it scales penalties, and there is none; add one, or "
            "leave it out"
            for plugin in plugins.penalties("penalty_scale")
        ]
    return lines


def _extracts(name: str) -> bool:
    """Whether a metric takes features; one that is not installed may."""
    try:
        return bool(metric(name).needs)
    except MissingError:
        return True


def warn_idle(settings: Settings, plugins: Plugins, data: Dataset) -> None:
    """Warn, before a run, of what has no effect in it."""
    for line in (*check_idle(settings, plugins), *data.doubts, *_dark(data)):
        warnings.warn(line, IdleWarning, stacklevel=3)


def warn_never_due(plugins: Plugins, seen: Set[str]) -> None:
    """Warn, after a run, of each plugin whose penalties were all left out; `seen` were not."""
    hooks = ("penalty", "generator_penalty")
    penalizing = chain.from_iterable(map(plugins.penalties, hooks))
    for plugin in dict.fromkeys(penalizing):
        if seen.isdisjoint(f"{hook}/{plugin.name}" for hook in hooks):
            line = f"plugin {plugin}: its penalty was scaled by 0 in every update: look at what"
            warnings.warn(f"{line} scales it, and at train.steps", IdleWarning, stacklevel=3)


def warn_bounded(plugins: Plugins, scores: Tensor) -> None:
    """Warn where a critic's scores end in a sigmoid or the like, and the loss takes any number."""
    node = scores.grad_fn
    while node is not None and node.name().partition("Backward")[0] in TRANSPARENT:
        node = node.next_functions[0][0]
    what = BOUNDED.get(node.name()) if node is not None else None
    if what and getattr(plugins.loss.instance, "any_score", False):
        line = f"the critic ends in {what}, and the loss {plugins.loss} is for scores of any size"
        warnings.warn(f"{line}: take it off the critic", IdleWarning, stacklevel=3)


def _dark(data: Dataset) -> list[str]:
    if not data.is_images or bool((data.samples[:64] >= DARK).any()):
        return []
    most = int(data.samples.max())
    if most >= DARK:
        return []
    line = f"data set {data.name!r}: no value is above {most}, so that all images are nearly black"
    return [f"{line}: scale them to 0 … 255, black to white"]
