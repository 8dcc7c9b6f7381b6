"""The R1 penalty.

Mescheder et al., 2018, "Which Training Methods for GANs do actually Converge?".
"""

from __future__ import annotations

from typing import Annotated

from annotated_types import Gt
from torch import Tensor

from gancore import CriticStep, hookimpl, input_gradient, plugin
from gancore.step import Critic

__all__ = ["R1", "r1_penalty"]


def r1_penalty(
    critic: Critic, real: Tensor, *, gamma: float = 10.0, allow_batch_statistics: bool = False
) -> Tensor:
    """Return γ/2·E[‖∇D(x)‖²] over real samples x.

    Mescheder et al., 2018, section 4.1, with the ½ (as in StyleGAN and R3GAN).

    critic  any callable (B, *) → (B,), (B, 1) or (B, 1, 1, 1)
    real    (B, *), left as it was
    gamma   γ
    allow_batch_statistics
            let scores depend on other samples: the gradient is then that of Σ D

    Returns a scalar with the graph to the critic's parameters, in the dtype of `real`. Under
    torch.autocast the critic and its gradient are computed in autocast's precision; outside of it,
    in their own. Raises gancore.errors.ContractError for samples that are no
    floating-point tensor, or none, and for a critic whose scores have no path to its input, or
    depend on other samples than their own.
    """
    gradient = input_gradient(critic, real, allow_batch_statistics=allow_batch_statistics)
    return gamma / 2 * _mean_square(gradient)


@plugin
class R1:
    """γ/2·E[‖∇D(x)‖²] on real samples (Mescheder et al., 2018).

    gamma: γ.
    """

    gamma: Annotated[float, Gt(0)] = 10.0

    @hookimpl
    def penalty(self, step: CriticStep) -> Tensor:
        """Answer the penalty at the step's real samples, whose forward pass the loss shares."""
        return self.gamma / 2 * _mean_square(step.input_gradient(step.real))


def _mean_square(gradient: Tensor) -> Tensor:
    return gradient.flatten(1).square().sum(1).mean()
