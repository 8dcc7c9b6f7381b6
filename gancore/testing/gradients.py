"""Gradients as lists of tensors, one for each parameter: their norms, and central differences."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from gancore.testing.scene import Scene, Subject


def difference(subject: Subject, hook: str, number: int, epsilon: float = 1e-6) -> float:
    """Return the central difference of the first answer to a hook, along a random direction."""
    values = []
    for sign in (1, -1):
        scene = Scene(subject)
        parameters = scene.parameters(hook)
        with torch.no_grad():
            for parameter, part in zip(parameters, direction(parameters, number), strict=True):
                parameter.add_(part, alpha=sign * epsilon)
        values.append(scene.value(hook).item())
    return (values[0] - values[1]) / (2 * epsilon)


def direction(like: Iterable[Tensor], number: int) -> list[Tensor]:
    """Return normal numbers in the shapes of some tensors, the same for each number."""
    generator = torch.Generator().manual_seed(number)
    return [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in like]


def inner(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """Return the inner product of two lists of tensors."""
    return float(sum((a * b).detach().sum() for a, b in zip(one, other, strict=True)))


def norm(tensors: Iterable[Tensor]) -> float:
    """Return the Euclidean norm of all entries, in float64."""
    return math.sqrt(float(sum(x.detach().double().square().sum() for x in tensors)))


def apart(one: Iterable[Tensor], other: Iterable[Tensor]) -> float:
    """Return the norm of the difference of two lists of tensors."""
    return norm([a - b for a, b in zip(one, other, strict=True)])
