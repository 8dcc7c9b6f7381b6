"""WGAN-GP's gradient penalty (Gulrajani et al., 2017, "Improved Training of Wasserstein GANs")."""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from gancore import CriticStep, hookimpl, input_gradient, interpolate, plugin
from gancore.step import Critic

__all__ = ["GradientPenalty", "gradient_penalty"]


def gradient_penalty(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    *,
    weight: float = 10.0,
    target: float = 1.0,
    one_sided: bool = False,
    generator: torch.Generator | None = None,
    allow_batch_statistics: bool = False,
) -> Tensor:
    """Return λ·E[(‖∇D(x̂)‖₂ − target)²], x̂ uniform on the lines between real and fake.

    Gulrajani et al., 2017, equation 3. The norm is taken over all non-batch dimensions.

    critic     any callable (B, *) → (B,), (B, 1) or (B, 1, 1, 1)
    real, fake (B, *), left as they were
    weight     λ
    target     the norm to pull to
    one_sided  penalize only norms above the target: max(0, ‖∇‖ − target)²
    generator  where α is drawn from; torch's global generator if None
    allow_batch_statistics
               let scores depend on other samples: the gradient is then that of Σ D

    Returns a scalar with the graph to the critic's parameters, in the dtype of `real`. Under
    torch.autocast the critic and its gradient are computed in autocast's precision; outside of it,
    in their own. Raises gancore.errors.ContractError for samples that are no
    floating-point tensor, or none, and for a critic whose scores have no path to its input, or
    depend on other samples than their own.
    """
    x = interpolate(real, fake, generator=generator)
    gradient = input_gradient(critic, x, allow_batch_statistics=allow_batch_statistics)
    return weight * _distance(gradient, target, one_sided)


@plugin
class GradientPenalty:
    """λ·E[(‖∇D(x̂)‖₂ − target)²] on lines between real and fake (Gulrajani et al., 2017).

    weight: λ.
    target: the gradient norm to pull to.
    one_sided: penalize only norms above the target.
    """

    weight: Annotated[float, Gt(0)] = 10.0
    target: Annotated[float, Ge(0)] = 1.0
    one_sided: bool = False

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        """Answer the penalty at the step's interpolates."""
        gradient = step.input_gradient(step.interpolates)
        return self.weight * _distance(gradient, self.target, self.one_sided)


def _distance(gradient: Tensor, target: float, one_sided: bool) -> Tensor:
    # vector_norm, unlike sqrt of a sum, has derivative 0 at a zero gradient, not nan
    excess: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1) - target
    return (excess.relu() if one_sided else excess).square().mean()
