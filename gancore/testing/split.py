"""A batch split over two processes, acted by one: what each finds, and the mean of both."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gancore.testing.scene import CheckFailed, Scene, Subject

COUNT = 2
ASKED = 100
"""How many statistics a plugin may have averaged in an update before it is taken for endless."""


def split_gradients(subject: Subject, hook: str) -> list[Tensor]:
    """Return the gradients of the first answer to a hook, averaged over two halves of the batch.

    The halves come one after the other, but a statistic that the plugin has averaged needs both:
    each round finds one more of them, as it may depend on those before. Raises CheckFailed where
    the halves have different numbers of them averaged.
    """
    known: list[Tensor] = []
    while len(known) < ASKED:
        asked, gradients = zip(
            *(_half(subject, hook, index, known) for index in range(COUNT)), strict=True
        )
        counts = [len(statistics) for statistics in asked]
        if len(set(counts)) > 1:
            raise CheckFailed(
                f"{hook} had {' and '.join(map(str, counts))} statistics averaged "
                "on the halves of a batch: processes would wait for each other"
            )
        if counts[0] == len(known):
            return [torch.stack(halves).mean(0) for halves in zip(*gradients, strict=True)]
        known.append(torch.stack([statistics[len(known)] for statistics in asked]).mean(0))
    raise CheckFailed(f"{hook} had {ASKED} statistics averaged, and asked for more")


def _half(
    subject: Subject, hook: str, index: int, known: Sequence[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the statistics that a half asks for, and its gradients, given the known averages."""
    asked: list[Tensor] = []

    def average(statistic: Tensor) -> Tensor:
        asked.append(statistic)
        return known[len(asked) - 1] if len(asked) <= len(known) else statistic

    scene = Scene(subject)
    scene.take(index, COUNT, average)
    _, gradients = scene.gradients(hook)
    return asked, gradients
