"""Consistency regularization.

Zhang et al., 2020, "Consistency Regularization for Generative Adversarial Networks"; for fake
samples too: Zhao et al., 2020, "Improved Consistency Regularization for GANs".
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from gancore import CriticStep, critic_scores, hookimpl, plugin
from gancore.errors import PluginError
from gancore.step import Critic, refuse_unusable, uniform_like

__all__ = ["ConsistencyRegularization", "ImageError", "consistency_penalty", "flip_and_shift"]


class ImageError(PluginError, ValueError):
    """The samples are no images, or too small to be shifted that far."""


def consistency_penalty(
    critic: Critic,
    x: Tensor,
    *,
    weight: float = 10.0,
    shift: int = 4,
    flip: bool = True,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return weight·E[(D(x) − D(T(x)))²], T a random flip and shift of each image.

    Zhang et al., 2020. Both scores carry their gradient.

    critic     any callable (B, C, H, W) → (B,), (B, 1) or (B, 1, 1, 1)
    x          (B, C, H, W) real or generated images, left as they were
    weight     λ
    shift      largest shift, in pixels, along each axis
    flip       mirror every other image, on average
    generator  where flips and shifts are drawn from; torch's global generator if None

    Returns a scalar with the graph to the critic's parameters. Raises ImageError, a ValueError,
    for samples that are no images, or are no larger than `shift`, and gancore.errors.ContractError
    for what is no floating-point tensor, or empty.
    """
    refuse_unusable(x=x)
    x = x.detach()
    moved = flip_and_shift(x, shift=shift, flip=flip, generator=generator)
    return weight * _distance(critic_scores(critic, x), critic_scores(critic, moved))


def flip_and_shift(
    x: Tensor,
    *,
    shift: int = 4,
    flip: bool = True,
    generator: torch.Generator | None = None,
    uniform: Callable[..., Tensor] | None = None,
) -> Tensor:
    """Return each image mirrored with probability ½ and shifted by whole pixels.

    x          (B, C, H, W)
    generator  where flips and shifts are drawn from; torch's global generator if None
    uniform    what draws them instead, such as `step.rand`

    Shifts are uniform on −shift … shift, drawn for each image and axis; what comes in at the border
    is the image reflected (without repeating its edge). Raises ImageError for samples that are no
    images, or are no larger than `shift`, and gancore.errors.ContractError for what is no
    floating-point tensor, or empty.
    """
    refuse_unusable(x=x)
    if x.dim() != 4:
        raise ImageError(
            f"samples of shape {tuple(x.shape)} have neither flips nor shifts: consistency "
            "regularization needs images (B, C, H, W)"
        )
    height, width = x.shape[2:]
    if not 0 <= shift < min(height, width):
        raise ImageError(
            f"shift is {shift}, expected 0 to {min(height, width) - 1}: the images are "
            f"{height}×{width} pixels"
        )
    draw = uniform or uniform_like(x, generator)
    rows, columns = (
        _reflected(
            torch.arange(size, device=x.device)
            + shift
            - (draw(len(x), 1) * (2 * shift + 1)).long().clamp(max=2 * shift),  # float16 rounds up
            size,
        )
        for size in (height, width)
    )
    if flip:
        mirrored = draw(len(x), 1) < 0.5
        columns = torch.where(mirrored, width - 1 - columns, columns)
    samples = torch.arange(len(x), device=x.device)[:, None, None, None]
    channels = torch.arange(x.shape[1], device=x.device)[:, None, None]
    return x[samples, channels, rows[:, None, :, None], columns[:, None, None, :]]


@plugin
class ConsistencyRegularization:
    """weight·E[(D(x) − D(T(x)))²] under random flips and shifts T (Zhang et al., 2020).

    weight: λ, for real images.
    fake_weight: the same for generated ones (Zhao et al., 2020: bCR); 0 leaves them out.
    shift: largest shift, in pixels, along each axis.
    flip: mirror every other image, on average.
    """

    weight: Annotated[float, Gt(0)] = 10.0
    fake_weight: Annotated[float, Ge(0)] = 0.0
    shift: Annotated[int, Ge(0)] = 4
    flip: bool = True

    inapplicable: ClassVar[dict[str, str]] = {"shapes": "vectors have neither flips nor shifts"}

    def __post_init__(self) -> None:
        if not (self.shift or self.flip):
            raise ValueError("shift is 0 and flip is false, so that nothing is left to penalize")

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        """Answer the penalty; D(x) is the loss's own forward pass."""
        value = self.weight * self._distance(step, step.real)
        if self.fake_weight:
            value = value + self.fake_weight * self._distance(step, step.fake)
        return value

    def _distance(self, step: CriticStep, x: Tensor) -> Tensor:
        moved = flip_and_shift(x.detach(), shift=self.shift, flip=self.flip, uniform=step.rand)
        return _distance(step.scores(x), step.scores(moved))


def _reflected(index: Tensor, size: int) -> Tensor:
    last = size - 1
    return last - (last - index.abs()).abs()


def _distance(scores: Tensor, others: Tensor) -> Tensor:
    return (scores - others).square().mean()
